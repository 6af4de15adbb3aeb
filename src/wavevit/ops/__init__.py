"""Tensors in, tensors out: the wavelet transforms."""

from wavevit.ops.dwt import Details, Pyramid, dwt2, haar_dwt2, haar_idwt2, idwt2

__all__ = ["Details", "Pyramid", "dwt2", "haar_dwt2", "haar_idwt2", "idwt2"]
