"""Adaptive training sample selection (Zhang et al. 2020, arXiv 1912.02424, algorithm 1).

Legend: N anchors of all levels, G ground-truth boxes, T candidates of a ground-truth box.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from wavevit.detection.box_coder import box_centres
from wavevit.detection.max_iou_assigner import NEGATIVE, Assignment

# Distances computed at once: bounds the memory for images with very many ground-truth boxes.
_MAX_PAIRS = 2**23
_MIN_INSIDE = 0.01  # pixels from a box's edges to the centre of an anchor inside it


class ATSSAssigner:
    """Thresholds that each ground-truth box derives from its nearest anchors' overlaps.

    Of the anchors nearest to its centre, the same number on every level, those are positive whose
    overlap reaches the mean plus the standard deviation of all of them and whose centres lie
    inside the box. An anchor that several boxes want goes to the one it overlaps most.

    Args:
        candidates_per_level: Nearest anchors of a level, k in the paper.
    """

    def __init__(self, candidates_per_level: int = 9) -> None:
        self.candidates_per_level = candidates_per_level

    @torch.no_grad()
    def __call__(self, anchors_per_level: Sequence[Tensor], gt_boxes: Tensor) -> Assignment:
        """The assignment of one image.

        Args:
            anchors_per_level: Anchors ``(n, 4)`` of every level, xyxy.
            gt_boxes: Ground truth ``(G, 4)``, xyxy.
        """
        anchors, gt_boxes = torch.cat(list(anchors_per_level)).float(), gt_boxes.float()
        N, G = len(anchors), len(gt_boxes)
        matched = torch.full((N,), NEGATIVE, dtype=torch.int64, device=anchors.device)
        best_iou = anchors.new_zeros(N)
        if not G:
            return Assignment(matched, best_iou)
        candidates = self._candidates(anchors_per_level, gt_boxes)
        boxes = anchors[candidates]
        iou = _iou_with_row(boxes, gt_boxes)
        threshold = iou.mean(dim=1) + iou.std(dim=1)
        centres = box_centres(boxes)
        inside = torch.cat((centres - gt_boxes[:, None, :2], gt_boxes[:, None, 2:] - centres), -1)
        positive = (iou >= threshold[:, None]) & (inside.amin(dim=-1) > _MIN_INSIDE)
        # Without a Python number of positives, for which the device would be waited for.
        flat = candidates.flatten()
        claimed_iou = torch.where(positive, iou, -1.0).flatten()
        best_claim = torch.full_like(best_iou, -1.0).scatter_reduce(0, flat, claimed_iou, "amax")
        wins = positive.flatten() & (claimed_iou == best_claim[flat])
        gt_index = torch.arange(G, device=anchors.device).repeat_interleave(candidates.shape[1])
        winner = torch.full_like(matched, G).scatter_reduce(
            0, flat, torch.where(wins, gt_index, G), "amin"
        )
        matched = torch.where(winner < G, winner, NEGATIVE)
        return Assignment(matched, best_claim.clamp(min=0))

    def _candidates(self, anchors_per_level: Sequence[Tensor], gt_boxes: Tensor) -> Tensor:
        """Indices ``(G, T)`` of the anchors nearest to each ground-truth box's centre."""
        gt_centres = box_centres(gt_boxes)
        nearest_per_level, first = [], 0
        for anchors in anchors_per_level:
            centres = box_centres(anchors.float())
            count = min(self.candidates_per_level, len(anchors))
            step = max(_MAX_PAIRS // max(len(anchors), 1), 1)
            nearest = [
                (some[:, None] - centres).square().sum(dim=-1).sqrt().topk(count, largest=False)[1]
                for some in gt_centres.split(step)
            ]
            nearest_per_level.append(torch.cat(nearest) + first)
            first += len(anchors)
        return torch.cat(nearest_per_level, dim=1)


def _iou_with_row(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Overlaps ``(G, T)`` of boxes ``(G, T, 4)`` with the ground-truth box of their row."""
    gt = gt_boxes[:, None]
    lower = torch.maximum(boxes[..., :2], gt[..., :2])
    upper = torch.minimum(boxes[..., 2:], gt[..., 2:])
    intersection = (upper - lower).clamp(min=0).prod(dim=-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    gt_area = (gt[..., 2:] - gt[..., :2]).prod(dim=-1)
    return intersection / (area + gt_area - intersection)
