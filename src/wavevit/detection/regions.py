"""Regions on their way through a box head: what they are to learn, and what they finally are.

Legend: P proposals, R regions of one image or batch, G ground truths of an image, K classes,
H W rows and columns of an image in pixels, N detections of an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from wavevit.detection.box_coder import DeltaBoxCoder
from wavevit.detection.max_iou_assigner import NEGATIVE, MaxIoUAssigner
from wavevit.detection.proposal_sampler import RandomSampler
from wavevit.detection.targets import Target


class RegionSample(NamedTuple):
    """Regions of one image with their truth, positives first.

    Attributes:
        boxes: fp32 ``(R, 4)``, xyxy in pixels.
        gt_index: int64 ``(num_positive,)``, ground truth of each positive.
        labels: int64 ``(R,)``, class of its ground truth; K, the background, for negatives.
        is_gt: bool ``(R,)``, whether the region is a ground truth that was added to the proposals.
    """

    boxes: Tensor
    gt_index: Tensor
    labels: Tensor
    is_gt: Tensor

    @property
    def num_positive(self) -> int:
        """How many regions, the first ones, answer for a ground truth."""
        return len(self.gt_index)

    @property
    def positive_boxes(self) -> Tensor:
        """``(num_positive, 4)``, xyxy in pixels."""
        return self.boxes[: self.num_positive]


class RegionSampler:
    """Chooses the regions that a box head learns from, ground truths among them.

    Args:
        assigner: Which proposals answer for which ground truth.
        sampler: How many of them are learned from.
        num_classes: Classes K, and the label of the background.
    """

    def __init__(self, assigner: MaxIoUAssigner, sampler: RandomSampler, num_classes: int) -> None:
        self.assigner = assigner
        self.sampler = sampler
        self.num_classes = num_classes

    @torch.no_grad()
    def __call__(self, proposals: Tensor, target: Target) -> RegionSample:
        """The regions of one image.

        Args:
            proposals: ``(P, 4)`` xyxy pixels.
            target: The image's ground truth.
        """
        gt_boxes, gt_labels = target["boxes"], target["labels"]
        G = len(gt_boxes)
        of_proposals = self.assigner(proposals, gt_boxes).matched
        matched = torch.cat([torch.arange(G, device=of_proposals.device), of_proposals])
        boxes = torch.cat([gt_boxes, proposals.float()])
        sample = self.sampler(matched >= 0, matched == NEGATIVE)
        chosen = torch.cat(sample)
        gt_index = matched[sample.positive]
        labels = torch.full_like(chosen, self.num_classes)
        labels[: len(gt_index)] = gt_labels[gt_index]
        return RegionSample(boxes[chosen], gt_index, labels, chosen < G)


def classification_loss(logits: Tensor, samples: Sequence[RegionSample]) -> Tensor:
    """Cross-entropy of the regions, over their number.

    Args:
        logits: ``(R, K + 1)`` of all images' regions.
        samples: The regions of each image.
    """
    labels = torch.cat([sample.labels for sample in samples])
    return F.cross_entropy(logits.float(), labels, reduction="sum") / max(len(labels), 1)


class PositiveRegions(NamedTuple):
    """The positive regions of a batch, image after image.

    Attributes:
        boxes: fp32 ``(R, 4)``, xyxy in pixels.
        deltas: fp32 ``(R, 4)``, those that the head gave for the true class.
        gt_boxes: fp32 ``(R, 4)``, xyxy in pixels.
    """

    boxes: Tensor
    deltas: Tensor
    gt_boxes: Tensor


def positive_regions(
    deltas: Tensor, samples: Sequence[RegionSample], targets: Sequence[Target]
) -> PositiveRegions:
    """What a box loss compares.

    Args:
        deltas: ``(R, K, 4)`` of all images' regions.
        samples: The regions of each image.
        targets: The ground truth of each image.
    """
    labels = torch.cat([s.labels[: s.num_positive] for s in samples])
    gt_boxes = [t["boxes"][s.gt_index] for s, t in zip(samples, targets, strict=True)]
    positive_deltas = [
        of_image[: sample.num_positive]
        for of_image, sample in zip(
            deltas.split([len(s.boxes) for s in samples]), samples, strict=True
        )
    ]
    of_class = torch.cat(positive_deltas)[torch.arange(len(labels), device=labels.device), labels]
    boxes = torch.cat([s.positive_boxes for s in samples])
    return PositiveRegions(boxes, of_class.float(), torch.cat(gt_boxes))


class DetectionSettings(NamedTuple):
    """Which boxes count as detections.

    Attributes:
        score_threshold: Those up to this class probability do not.
        nms_threshold: Of two boxes of a class that overlap more, the better one does.
        detections_per_image: No more than so many, the best ones.
    """

    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections_per_image: int = 100


def select_detections(
    probabilities: Tensor,
    deltas: Tensor,
    boxes_per_image: Sequence[Tensor],
    *,
    coder: DeltaBoxCoder,
    sizes: Sequence[tuple[int, int]],
    settings: DetectionSettings,
) -> list[dict[str, Tensor]]:
    """Detections of each image, best first: "boxes" ``(N, 4)``, "labels" and "scores" ``(N,)``.

    Args:
        probabilities: ``(R, K + 1)`` of all images' regions, background last.
        deltas: ``(R, K, 4)`` of all images' regions.
        boxes_per_image: Regions of each image, xyxy in pixels.
        coder: Reads the deltas.
        sizes: H and W of each image, to which boxes are clipped.
        settings: Thresholds.
    """
    counts = [len(boxes) for boxes in boxes_per_image]
    per_image = zip(
        probabilities[:, :-1].float().split(counts),
        deltas.split(counts),
        boxes_per_image,
        sizes,
        strict=True,
    )
    return [_select(*of_image, coder, settings) for of_image in per_image]


def _select(
    probabilities: Tensor,
    deltas: Tensor,
    regions: Tensor,
    size: tuple[int, int],
    coder: DeltaBoxCoder,
    settings: DetectionSettings,
) -> dict[str, Tensor]:
    region, label = (probabilities > settings.score_threshold).nonzero().unbind(dim=1)
    scores = probabilities[region, label]
    # Only boxes that pass are decoded: a few of the K of each region.
    boxes = coder.decode(regions[region], deltas[region, label], size)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero().flatten()
    boxes, scores, label = boxes[kept], scores[kept], label[kept]
    kept = batched_nms(boxes, scores, label, settings.nms_threshold)[
        : settings.detections_per_image
    ]
    return {"boxes": boxes[kept], "labels": label[kept], "scores": scores[kept]}
