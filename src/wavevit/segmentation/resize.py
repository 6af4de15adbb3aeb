"""Bilinear resizing of maps.

Legend: B batch, C channels, H W rows and columns.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_bilinear(features: Tensor, size: Sequence[int]) -> Tensor:
    """Maps ``(B, C, H, W)`` that cover the same area with another number of cells.

    Aligned are the outer edges, not the centres of the cells in the corners.

    Args:
        features: Maps of any size.
        size: H and W to make.
    """
    return F.interpolate(features, size=list(size), mode="bilinear", align_corners=False)


def in_full_precision(logits: Tensor) -> Tensor:
    """The logits in float32, or in float64 if that is what they are.

    Args:
        logits: Of any floating-point type.
    """
    return logits if logits.dtype == torch.float64 else logits.float()
