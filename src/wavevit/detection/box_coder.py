"""Box regression targets relative to reference boxes.

Legend: N boxes; ``...`` any leading dimensions, which broadcast.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

# An edge grows or shrinks at most by this factor in one step, so that exp() cannot overflow.
_MAX_LOG_RATIO = math.log(1000 / 16)


class DeltaBoxCoder:
    """Centre offsets in units of the reference's size, and logarithms of size ratios.

    Girshick et al. 2014, arXiv 1311.2524, appendix C; each divided by a standard deviation, as in
    Girshick 2015, arXiv 1504.08083, section 2.3.

    Args:
        stds: Standard deviations of dx, dy, dw, dh.
    """

    def __init__(self, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        self.stds = tuple(stds)

    def encode(self, references: Tensor, boxes: Tensor) -> Tensor:
        """Deltas fp32 ``(..., 4)`` that lead from the references to the boxes.

        Args:
            references: Boxes ``(..., 4)``, xyxy, of positive size.
            boxes: Boxes ``(..., 4)``, xyxy, of positive size.
        """
        x, y, w, h = _centres_and_sizes(references.float())
        to_x, to_y, to_w, to_h = _centres_and_sizes(boxes.float())
        deltas = ((to_x - x) / w, (to_y - y) / h, torch.log(to_w / w), torch.log(to_h / h))
        # Python numbers: a tensor of them would have to be copied to the device.
        return torch.stack([d / std for d, std in zip(deltas, self.stds, strict=True)], dim=-1)

    def decode(
        self, references: Tensor, deltas: Tensor, image_size: tuple[int, int] | None = None
    ) -> Tensor:
        """Boxes fp32 ``(..., 4)``, xyxy, that the deltas lead to from the references.

        Args:
            references: Boxes ``(..., 4)``, xyxy.
            deltas: Deltas ``(..., 4)``; class-specific ones ``(N, K, 4)`` go with references
                ``(N, 1, 4)``.
            image_size: Height and width to clip the boxes to, in pixels; None does not clip.
        """
        x, y, w, h = _centres_and_sizes(references.float())
        dx, dy, dw, dh = (
            d * std for d, std in zip(deltas.float().unbind(dim=-1), self.stds, strict=True)
        )
        to_x, to_y = x + w * dx, y + h * dy
        to_w = w * torch.exp(dw.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO))
        to_h = h * torch.exp(dh.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO))
        boxes = torch.stack(
            (to_x - 0.5 * to_w, to_y - 0.5 * to_h, to_x + 0.5 * to_w, to_y + 0.5 * to_h), dim=-1
        )
        return boxes if image_size is None else clip_boxes_to_image(boxes, image_size)


class DistanceBoxCoder:
    """Distances from a point to the left, top, right and bottom edges (Tian et al. 2019).

    FCOS, arXiv 1904.01355, section 3.1.
    """

    def encode(self, points: Tensor, boxes: Tensor) -> Tensor:
        """Distances fp32 ``(..., 4)``: left, top, right, bottom; negative outside the box.

        Args:
            points: Points ``(..., 2)``, x and y.
            boxes: Boxes ``(..., 4)``, xyxy.
        """
        points, boxes = points.float(), boxes.float()
        return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)

    def decode(self, points: Tensor, distances: Tensor) -> Tensor:
        """Boxes fp32 ``(..., 4)``, xyxy.

        Args:
            points: Points ``(..., 2)``, x and y.
            distances: Distances ``(..., 4)``: left, top, right, bottom.
        """
        points, distances = points.float(), distances.float()
        return torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)


def box_centres(boxes: Tensor) -> Tensor:
    """Centres ``(..., 2)`` of boxes.

    Args:
        boxes: Boxes ``(..., 4)``, xyxy.
    """
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _centres_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return (x1 + x2) * 0.5, (y1 + y2) * 0.5, x2 - x1, y2 - y1
