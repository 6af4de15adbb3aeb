"""The pictures that commands write: curves, grids, confusion matrices, annotated images."""
