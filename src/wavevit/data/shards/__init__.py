"""Data sets in tar shards: writing, indexing and reading them."""
