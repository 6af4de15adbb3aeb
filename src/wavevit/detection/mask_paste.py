"""Masks of boxes, pasted into the image.

Legend: N masks, S side of a small square mask, H W rows and columns of the image.
"""

import math

import numpy as np
import torch
from torch import Tensor


def paste_masks(probabilities: Tensor, boxes_xyxy: Tensor, size: tuple[int, int]) -> Tensor:
    """The small masks stretched over their boxes, float32 ``(N, H, W)``, 0 elsewhere.

    Bilinear between the centres of the small mask's cells, zero beyond its border, taken at the
    centres of the pixels: what `grid_sample` computes with ``align_corners=False``. Stretching
    over a box is separable, so each mask is a product of three matrices, and nothing as large as
    the result is held beside it.

    Args:
        probabilities: ``(N, S, S)`` in [0, 1].
        boxes_xyxy: ``(N, 4)`` pixels, inside the image or not.
        size: H and W of the image.
    """
    probabilities, boxes_xyxy = probabilities.detach().float(), boxes_xyxy.detach().float()
    with torch.autocast(probabilities.device.type, enabled=False):
        if probabilities.device.type == "cpu":
            return _paste_boxes(probabilities, boxes_xyxy, size)
        return _paste_together(probabilities, boxes_xyxy, size)


def _paste_together(probabilities: Tensor, boxes_xyxy: Tensor, size: tuple[int, int]) -> Tensor:
    """All masks over the whole image in two matrix products: for accelerators."""
    H, W = size
    S = probabilities.shape[-1]
    x1, y1, x2, y2 = boxes_xyxy.unbind(dim=1)
    along_y = interpolation_weights(y1, y2, S, torch.arange(H, device=x1.device))
    along_x = interpolation_weights(x1, x2, S, torch.arange(W, device=x1.device))
    return torch.bmm(torch.bmm(along_y, probabilities), along_x.transpose(1, 2))


def _paste_boxes(probabilities: Tensor, boxes_xyxy: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask by mask, only the box's part: for the CPU, where that is much less work."""
    H, W = size
    S = probabilities.shape[-1]
    # Zeros from numpy cost nothing until they are touched: the system hands out pages on demand.
    pasted = torch.from_numpy(np.zeros((len(probabilities), H, W), dtype=np.float32))
    for mask, box, target in zip(probabilities, boxes_xyxy, pasted, strict=True):
        x1, y1, x2, y2 = box.tolist()
        top, bottom = _reach(y1, y2, S, H)
        left, right = _reach(x1, x2, S, W)
        along_y = interpolation_weights(box[1:2], box[3:4], S, torch.arange(top, bottom))[0]
        along_x = interpolation_weights(box[0:1], box[2:3], S, torch.arange(left, right))[0]
        target[top:bottom, left:right] = along_y @ mask @ along_x.T
    return pasted


def interpolation_weights(start: Tensor, end: Tensor, num_cells: int, pixels: Tensor) -> Tensor:
    """How much each cell of a stretched row gives to each pixel, ``(N, P, num_cells)``.

    Args:
        start: ``(N,)`` where the row of cells begins, pixels.
        end: ``(N,)`` where it ends.
        num_cells: Cells of the row.
        pixels: ``(P,)`` indices of pixels.
    """
    extent = (end - start).clamp(min=torch.finfo(torch.float32).tiny)
    # In units of cells, 0 at the centre of the first.
    position = (pixels + 0.5 - start[:, None]) / extent[:, None] * num_cells - 0.5
    cells = torch.arange(num_cells, device=start.device)
    return (1 - (position[:, :, None] - cells).abs()).clamp(min=0)


def _reach(start: float, end: float, num_cells: int, length: int) -> tuple[int, int]:
    """The pixels that a stretched row can touch: half a cell beyond both of its ends."""
    margin = (end - start) / num_cells / 2
    first = min(max(math.floor(start - margin - 0.5), 0), length)
    last = min(max(math.ceil(end + margin + 0.5), first), length)
    return first, last
