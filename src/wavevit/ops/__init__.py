"""Tensors in, tensors out: the wavelet transforms, and operations with kernels of their own."""

from wavevit.ops.dwt import Details, Pyramid, dwt2, haar_dwt2, haar_idwt2, idwt2
from wavevit.ops.triton_support import use_kernels

__all__ = [
    "Details",
    "Pyramid",
    "dwt2",
    "haar_dwt2",
    "haar_idwt2",
    "idwt2",
    "use_kernels",
]
