"""Losses of the dense detectors; sums, in fp32, which the detectors divide.

Legend: N anchors, K classes, P positive anchors, n bins.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wavevit.detection.max_iou_assigner import IGNORED

_EPS = 1e-6


class _BackgroundFocal(torch.autograd.Function):
    """``sigmoid(x)**gamma * softplus(x)``, summed over classes: the focal loss of no object.

    The logits of all anchors make the largest tensors of a training step. Written with autograd,
    this would keep five more of their size; here it keeps one, the derivative.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, gamma: float) -> Tensor:
        probability = logits.sigmoid()
        cross_entropy = F.softplus(logits)
        focus = probability**gamma
        loss = (focus * cross_entropy).sum(dim=1)
        slope = cross_entropy.mul_(gamma).mul_(1 - probability).add_(probability).mul_(focus)
        ctx.save_for_backward(slope)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grad[:, None] * slope, None


def _background(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """The sum over all anchors that count, as if none had an object."""
    per_anchor = _BackgroundFocal.apply(logits, gamma)
    return torch.where(labels == IGNORED, 0.0, per_anchor).sum()


def focal_loss(
    logits: Tensor, labels: Tensor, positives: Tensor, *, gamma: float = 2.0, alpha: float = 0.25
) -> Tensor:
    """The sum of sigmoid focal losses (Lin et al. 2017, arXiv 1708.02002, equation 5).

    Args:
        logits: fp32 ``(N, K)``.
        labels: int64 ``(N,)``: class, `NEGATIVE` or `IGNORED`.
        positives: int64 ``(P,)``: the anchors with a class.
        gamma: How much well-classified ones count less.
        alpha: Weight of the right class; the others have ``1 - alpha``.
    """
    x = logits[positives, labels[positives]]
    probability = x.sigmoid()
    right = alpha * (1 - probability) ** gamma * F.softplus(-x)
    counted_as_wrong = (1 - alpha) * probability**gamma * F.softplus(x)
    everywhere = (1 - alpha) * _background(logits, labels, gamma)
    return everywhere + (right - counted_as_wrong).sum()


def quality_focal_loss(
    logits: Tensor, labels: Tensor, positives: Tensor, quality: Tensor, *, beta: float = 2.0
) -> Tensor:
    """The sum of quality focal losses (Li et al. 2020, arXiv 2006.04388, equation 2).

    Args:
        logits: fp32 ``(N, K)``.
        labels: int64 ``(N,)``: class, `NEGATIVE` or `IGNORED`.
        positives: int64 ``(P,)``: the anchors with a class.
        quality: fp32 ``(P,)``: what the positives' class probability shall be, in [0, 1].
        beta: How much what is nearly right counts less.
    """
    x = logits[positives, labels[positives]]
    probability = x.sigmoid()
    distance = (quality - probability).abs() ** beta
    right = distance * F.binary_cross_entropy_with_logits(x, quality, reduction="none")
    counted_as_wrong = probability**beta * F.softplus(x)
    return _background(logits, labels, beta) + (right - counted_as_wrong).sum()


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropies ``(P, 4)`` with the two bins around a distance (same paper, equation 6).

    Args:
        logits: fp32 ``(P, 4, n)``: of the distances 0, 1, ..., n - 1.
        distances: fp32 ``(P, 4)`` in [0, n - 1).
    """
    left = distances.long()
    right_weight = distances - left
    log_probability = logits.log_softmax(dim=-1)
    at_left = log_probability.gather(-1, left[..., None]).squeeze(-1)
    at_right = log_probability.gather(-1, left[..., None] + 1).squeeze(-1)
    return -((1 - right_weight) * at_left + right_weight * at_right)


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Overlaps ``(P,)`` of each box with its partner.

    Args:
        boxes: fp32 ``(P, 4)``, xyxy.
        others: fp32 ``(P, 4)``, xyxy.
    """
    intersection, union = _intersection_and_union(boxes, others)
    return intersection / union


def giou_loss(boxes: Tensor, others: Tensor) -> Tensor:
    """``1 - GIoU`` ``(P,)`` of each box with its partner (Rezatofighi et al. 2019, 1902.09630).

    Unlike torchvision's, it does not wait for the device.

    Args:
        boxes: fp32 ``(P, 4)``, xyxy.
        others: fp32 ``(P, 4)``, xyxy.
    """
    intersection, union = _intersection_and_union(boxes, others)
    lower = torch.minimum(boxes[:, :2], others[:, :2])
    upper = torch.maximum(boxes[:, 2:], others[:, 2:])
    hull = (upper - lower).clamp(min=0).prod(dim=1).clamp(min=_EPS)
    return 1 - intersection / union + (hull - union) / hull


def _intersection_and_union(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    lower = torch.maximum(boxes[:, :2], others[:, :2])
    upper = torch.minimum(boxes[:, 2:], others[:, 2:])
    intersection = (upper - lower).clamp(min=0).prod(dim=1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    other_area = (others[:, 2:] - others[:, :2]).prod(dim=1)
    return intersection, (area + other_area - intersection).clamp(min=_EPS)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a number over the processes of a distributed run; itself without one.

    Args:
        value: A scalar that needs no gradient.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    value = value.detach().clone()
    torch.distributed.all_reduce(value)
    return value / torch.distributed.get_world_size()
