"""One-to-one matching of predictions and ground truths at the least total cost.

Legend: P predictions of one image, G ground-truth boxes, K classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou

FOCAL_ALPHA = 0.25
# Stands for a cost that is not a number: a network that diverged is reported by its loss.
LARGE_COST = 1e5


class Matching(NamedTuple):
    """The pairs of one image, by ascending prediction.

    Attributes:
        predictions: int64 ``(min(P, G),)`` matched predictions.
        targets: int64 ``(min(P, G),)`` the ground truth of each.
    """

    predictions: Tensor
    targets: Tensor


class HungarianMatcher:
    """Matches by class, distance and overlap (DETR, arXiv 2005.12872; Sparse R-CNN, 2011.12450).

    Args:
        cls_weight: Weight of the focal classification cost.
        l1_weight: Weight of the L1 distance of the boxes over the image's size.
        giou_weight: Weight of the generalised IoU.
    """

    def __init__(
        self, cls_weight: float = 2.0, l1_weight: float = 5.0, giou_weight: float = 2.0
    ) -> None:
        self.cls_weight = cls_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight

    @torch.no_grad()
    def cost(
        self,
        cls_logits: Tensor,
        boxes_xyxy: Tensor,
        gt_labels: Tensor,
        gt_boxes_xyxy: Tensor,
        size: tuple[int, int],
    ) -> Tensor:
        """Cost of every pair, float32 ``(P, G)``.

        Args:
            cls_logits: ``(P, K)``, one sigmoid a class.
            boxes_xyxy: ``(P, 4)`` pixels.
            gt_labels: int64 ``(G,)``.
            gt_boxes_xyxy: ``(G, 4)`` pixels.
            size: H and W of the image.
        """
        H, W = size
        scale = boxes_xyxy.new_tensor([W, H, W, H], dtype=torch.float32)
        boxes, gt_boxes = boxes_xyxy.float(), gt_boxes_xyxy.float()
        distance = torch.cdist(boxes / scale, gt_boxes / scale, p=1)
        overlap = generalized_box_iou(boxes, gt_boxes)
        classification = focal_cost(cls_logits.float()[:, gt_labels])
        return (
            self.cls_weight * classification
            + self.l1_weight * distance
            - self.giou_weight * overlap
        )

    def __call__(self, costs: Sequence[Tensor]) -> list[Matching]:
        """The cheapest pairs of each image.

        Args:
            costs: ``(P, G)`` of each image, on any device; they travel to the CPU together.
        """
        if not costs:
            return []
        device = costs[0].device
        flat = torch.cat([cost.flatten() for cost in costs])
        flat = flat.nan_to_num(LARGE_COST, LARGE_COST, -LARGE_COST).cpu()
        matchings = []
        for cost, values in zip(costs, flat.split([c.numel() for c in costs]), strict=True):
            rows, columns = linear_sum_assignment(values.reshape(cost.shape).numpy())
            matchings.append(
                Matching(torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device))
            )
        return matchings


def focal_cost(logits: Tensor, alpha: float = FOCAL_ALPHA) -> Tensor:
    """Focal loss of a positive minus that of a negative, gamma 2; same shape as the logits.

    Args:
        logits: Any shape.
        alpha: Weight of positives; negatives have ``1 - alpha``.
    """
    probability = logits.sigmoid()
    as_positive = alpha * (1 - probability).square() * F.softplus(-logits)
    as_negative = (1 - alpha) * probability.square() * F.softplus(logits)
    return as_positive - as_negative
