"""Image sizes for detection, and the way back from a resized image to the original one.

A size is ``(H, W)``, rows and columns in pixels. Legend: N objects; H, W rows and columns of the
resized image, H0, W0 of the original one.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Known from here, too.
from wavevit.data.resize import SIZE_RULES as SIZE_RULES
from wavevit.data.resize import Size as Size
from wavevit.data.resize import SizeRule as SizeRule
from wavevit.data.resize import keep_ratio_size as keep_ratio_size
from wavevit.data.resize import multiple_of_16_size as multiple_of_16_size
from wavevit.data.resize import resize_image as resize_image

_PASTED_BYTES = 64 * 2**20  # of the masks enlarged at once


def restore_boxes(boxes_xyxy: Tensor, size: Size, original_size: Size) -> Tensor:
    """Boxes of a resized image in the pixels of the original one.

    Args:
        boxes_xyxy: ``(N, 4)`` in pixels of the resized image.
        size: Of the resized image.
        original_size: Of the image as stored.

    Returns:
        ``(N, 4)`` float32, inside of the original image.
    """
    H, W = size
    H0, W0 = original_size
    limits = boxes_xyxy.new_tensor([W0, H0, W0, H0], dtype=torch.float32)
    scales = limits / limits.new_tensor([W, H, W, H])
    return torch.minimum((boxes_xyxy.float() * scales).clamp(min=0), limits)


def restore_masks(
    masks: Tensor, original_size: Size, *, threshold: float = 0.5
) -> Iterator[Tensor]:
    """Masks of a resized image in the pixels of the original one, a few at a time.

    A hundred masks of a large photo are gigabytes as probabilities, so whoever encodes or draws
    them should take them as they come.

    Args:
        masks: ``(N, H, W)`` probabilities in [0, 1] in the resized image.
        original_size: Of the image as stored.
        threshold: Least probability of a pixel that belongs to the object.

    Yields:
        ``(n, H0, W0)`` bool, all N of them in order.
    """
    H0, W0 = original_size
    count = max(_PASTED_BYTES // (4 * H0 * W0), 1)
    for start in range(0, len(masks), count):
        part = masks[start : start + count].float()
        if part.shape[1:] != original_size:
            part = F.interpolate(part[:, None], original_size, mode="bilinear")[:, 0]
        yield part >= threshold
