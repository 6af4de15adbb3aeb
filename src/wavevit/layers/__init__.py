"""Modules used by more than one model."""

from wavevit.layers.dwt import DWT2d, IDWT2d

__all__ = ["DWT2d", "IDWT2d"]
