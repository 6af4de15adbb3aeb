"""Data sets for semantic segmentation: images with a label per pixel, on disk and generated."""
