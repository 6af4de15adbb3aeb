"""Sizes that images are resized to, the official rule and the plain one, and resizing.

A size is ``(H, W)``, rows and columns in pixels. Legend: H, W rows and columns of the resized
image, H0, W0 of the original one.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Size = tuple[int, int]
SizeRule = Literal["multiple_of_16", "keep_ratio"]

_STEP = 16


def keep_ratio_size(size: Size, short_edge: int, long_edge: int) -> Size:
    """The largest size of the same aspect ratio, rounded, that both edges allow.

    Args:
        size: Of the image.
        short_edge: Limit of the shorter side, pixels.
        long_edge: Limit of the longer side, pixels.

    Returns:
        At least one pixel a side.
    """
    H, W = size
    scale = min(long_edge / max(H, W), short_edge / min(H, W))
    return max(int(H * scale + 0.5), 1), max(int(W * scale + 0.5), 1)


def multiple_of_16_size(size: Size, short_edge: int, long_edge: int) -> Size:
    """The size that the official detectors and segmenters are tested at (their `CResize`).

    The sides of `keep_ratio_size` go to the nearest multiple of 16 where that one fits, else to the
    next lower one. So the two scales differ by up to 6 %, far more for long strips.

    Args:
        size: Of the image.
        short_edge: Limit of the shorter side, pixels.
        long_edge: Limit of the longer side, pixels.

    Returns:
        At least 16 pixels a side, also for strips of which the official rule would leave nothing.
    """
    height, width = (side / _STEP for side in keep_ratio_size(size, short_edge, long_edge))
    # One after the other: the height is compared with a width that may have grown already.
    width += _rounds_up(width, short_edge if width < height else long_edge)
    height += _rounds_up(height, short_edge if height < width else long_edge)
    return max(int(height), 1) * _STEP, max(int(width), 1) * _STEP


def _rounds_up(steps: float, limit: int) -> bool:
    # Python's round: halves go to the even number.
    return round(steps) > int(steps) and (int(steps) + 1) * _STEP <= limit


SIZE_RULES: dict[SizeRule, Callable[[Size, int, int], Size]] = {
    "multiple_of_16": multiple_of_16_size,
    "keep_ratio": keep_ratio_size,
}


def resize_image(image: Tensor, size: Size, *, antialias: bool = False) -> Tensor:
    """The image at another size, bilinear.

    Without antialiasing it is within one level of OpenCV's ``INTER_LINEAR``, which the official
    pipeline uses: equal at 19 of 20 pixels when enlarging. Both work in fixed point; ours rounds
    between the two directions.

    Args:
        image: uint8 ``(3, H0, W0)``; quickest as a view of ``(H0, W0, 3)`` memory.
        size: Of the result.
        antialias: Whether shrinking averages over all pixels, as Pillow does.

    Returns:
        uint8 ``(3, H, W)``.
    """
    if image.shape[1:] == size:
        return image
    # As (1, H, W, 3) memory, batch stride included, torch enlarges it three times as quickly, and
    # can shrink it to one pixel (pytorch/pytorch#68430).
    pixels = image.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
    return F.interpolate(pixels, size, mode="bilinear", antialias=antialias)[0]


def nearest_indices(length: int, new_length: int) -> NDArray[np.int64]:
    """Which of the old rows, or columns, each new one shows, as OpenCV's ``INTER_NEAREST`` picks.

    Args:
        length: Number of old ones.
        new_length: Number of new ones.

    Returns:
        (new_length,) indices in [0, length).
    """
    step = 1 / (new_length / length)  # in this order: its rounding decides at whole numbers
    nearest = np.floor(np.arange(new_length) * step).astype(np.int64)
    return np.minimum(nearest, length - 1)
