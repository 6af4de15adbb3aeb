"""Which ground-truth box each anchor or proposal answers for, by overlap.

Legend: N boxes, G ground-truth boxes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

NEGATIVE = -1
IGNORED = -2

# Overlaps computed at once: bounds the memory for images with very many ground-truth boxes.
_MAX_PAIRS = 2**23


class Assignment(NamedTuple):
    """The ground-truth box of each box.

    Attributes:
        matched: int64 ``(N,)``: index of the ground-truth box, `NEGATIVE` or `IGNORED`.
        iou: fp32 ``(N,)``: largest overlap with any ground-truth box; 0 without one.
    """

    matched: Tensor
    iou: Tensor


class MaxIoUAssigner:
    """Each box answers for the ground-truth box it overlaps most, if it does so enough.

    Ren et al. 2015, arXiv 1506.01497, section 3.1.2.

    Args:
        positive_iou: A box is positive from this overlap on.
        negative_iou: A box is negative below this overlap; what lies between is ignored.
        min_positive_iou: Smallest overlap of a low-quality match.
        match_low_quality: Each ground-truth box also claims the boxes that overlap it most (all
            that do so equally), however little; of several claims the last ground-truth box's
            counts.
    """

    def __init__(
        self,
        positive_iou: float,
        negative_iou: float,
        *,
        min_positive_iou: float = 0.0,
        match_low_quality: bool = True,
    ) -> None:
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.min_positive_iou = min_positive_iou
        self.match_low_quality = match_low_quality

    @torch.no_grad()
    def __call__(self, boxes: Tensor, gt_boxes: Tensor) -> Assignment:
        """The assignment of one image.

        Args:
            boxes: Anchors or proposals ``(N, 4)``, xyxy.
            gt_boxes: Ground truth ``(G, 4)``, xyxy.
        """
        boxes, gt_boxes = boxes.float(), gt_boxes.float()
        N, G = len(boxes), len(gt_boxes)
        best_iou = boxes.new_zeros(N)
        best_gt = torch.zeros(N, dtype=torch.int64, device=boxes.device)
        claimed_by = torch.full_like(best_gt, -1)
        step = max(_MAX_PAIRS // max(N, 1), 1)
        for first in range(0, G if N else 0, step):
            iou = box_iou(gt_boxes[first : first + step], boxes)
            chunk_iou, chunk_gt = iou.max(dim=0)
            # Strictly better: the first of equal ground-truth boxes keeps the box.
            better = chunk_iou > best_iou
            best_iou = torch.where(better, chunk_iou, best_iou)
            best_gt = torch.where(better, chunk_gt + first, best_gt)
            if self.match_low_quality:
                claimed_by = torch.maximum(claimed_by, self._claims(iou, first))
        matched = torch.full_like(best_gt, IGNORED)
        matched = torch.where(best_iou < self.negative_iou, NEGATIVE, matched)
        if G:
            matched = torch.where(best_iou >= self.positive_iou, best_gt, matched)
            matched = torch.where(claimed_by >= 0, claimed_by, matched)
        return Assignment(matched, best_iou)

    def _claims(self, iou: Tensor, first: int) -> Tensor:
        """The last ground-truth box ``(N,)`` that claims each box; -1 without one.

        Args:
            iou: Overlaps ``(G, N)`` of consecutive ground-truth boxes.
            first: Index of the first of them.
        """
        best_of_gt = iou.amax(dim=1, keepdim=True)
        claims = (iou == best_of_gt) & (best_of_gt >= self.min_positive_iou)
        index = torch.arange(first, first + len(iou), device=iou.device)
        return torch.where(claims, index[:, None], -1).amax(dim=0)
