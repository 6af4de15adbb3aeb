"""Data set layouts, image decoding, transforms and samplers."""
