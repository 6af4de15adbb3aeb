"""Generalized focal loss (Li et al. 2020, "Generalized focal loss: learning qualified and
distributed bounding boxes for dense object detection", arXiv 2006.04388).

Legend: B batch, C channels, H W rows and columns of a level, K classes, n bins of a distance.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wavevit.detection.anchors import AnchorGenerator
from wavevit.detection.atss_assigner import ATSSAssigner
from wavevit.detection.box_coder import DistanceBoxCoder, box_centres
from wavevit.detection.dense_head import PyramidNetwork, Scale, conv_tower, init_head, map_sizes
from wavevit.detection.dense_postprocess import DensePostProcess
from wavevit.detection.dense_targets import DenseTruth, gather_cells, match_cells, own_cells
from wavevit.detection.detector import Detection, Detector
from wavevit.detection.fpn import FPN
from wavevit.detection.losses import (
    distribution_focal_loss,
    giou_loss,
    mean_over_processes,
    paired_iou,
    quality_focal_loss,
)
from wavevit.detection.preprocess import ImageBatch, Preprocess
from wavevit.detection.targets import Target
from wavevit.models.option_checks import check_positive, check_share, check_whole
from wavevit.models.pyramid_backbone import PyramidBackbone

STRIDES = (8, 16, 32, 64, 128)
_BOX_WEIGHT = 2.0
_DISTRIBUTION_WEIGHT = 0.25
# Keeps the bin right of a distance within reach.
_DISTANCE_MARGIN = 0.1


class GFLHead(nn.Module):
    """Class logits, which stand for quality too, and distributions of the four distances.

    Two towers that all levels share.

    Args:
        in_channels: Channels C of the pyramid.
        num_classes: Classes, K.
        num_bins: Bins of a distance, n.
        channels: Channels of the towers.
        num_convs: Convolutions of each tower.
        num_levels: Levels of the pyramid, each with a scale of its own for distributions.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_bins: int,
        channels: int,
        num_convs: int,
        num_levels: int,
    ) -> None:
        super().__init__()
        self.cls_tower = conv_tower(in_channels, channels, num_convs, group_norm=True)
        self.box_tower = conv_tower(in_channels, channels, num_convs, group_norm=True)
        width = channels if num_convs else in_channels
        self.cls_logits = nn.Conv2d(width, num_classes, 3, padding=1)
        self.box_output = nn.Conv2d(width, 4 * num_bins, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in range(num_levels))
        init_head(self, self.cls_logits)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Class logits ``(B, K, H, W)`` and distributions ``(B, 4 * n, H, W)`` of every level.

        Args:
            levels: Maps ``(B, C, H, W)``.
        """
        cls_maps = [self.cls_logits(self.cls_tower(level)) for level in levels]
        box_maps = [
            scale(self.box_output(self.box_tower(level)))
            for level, scale in zip(levels, self.scales, strict=True)
        ]
        return cls_maps, box_maps


class GFL(Detector):
    """One-stage detector whose scores are box qualities and whose edges are distributions.

    Args:
        backbone: Gives maps at strides 4 to 32; the first is not used.
        num_classes: Classes of objects.
        fpn_channels: Channels of the pyramid.
        head_channels: Channels of the head's towers.
        num_tower_convs: Convolutions of each tower.
        max_distance: Largest distance from a cell to an edge, in strides of the level.
        anchor_scale: Side of the anchors by which positives are chosen, in strides.
        candidate_anchors: Anchors of a level, nearest to an object, that may become positive.
        score_threshold: Detections up to this score are dropped.
        nms_threshold: Of two detections of a class that overlap more, the better one stays.
        candidates_per_level: Most detections of a level before NMS.
        detections_per_image: Most detections of an image.

    Raises:
        ValueError: An option out of range.
    """

    def __init__(
        self,
        backbone: PyramidBackbone,
        num_classes: int,
        *,
        fpn_channels: int = 256,
        head_channels: int = 256,
        num_tower_convs: int = 4,
        max_distance: int = 16,
        anchor_scale: float = 8.0,
        candidate_anchors: int = 9,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.6,
        candidates_per_level: int = 1000,
        detections_per_image: int = 100,
    ) -> None:
        super().__init__(num_classes, Preprocess(backbone.mean, backbone.std))
        check_whole(1, fpn_channels=fpn_channels, head_channels=head_channels)
        check_whole(0, num_tower_convs=num_tower_convs)
        check_whole(1, max_distance=max_distance, candidate_anchors=candidate_anchors)
        check_positive(anchor_scale=anchor_scale)
        check_share(score_threshold=score_threshold, nms_threshold=nms_threshold)
        check_whole(1, candidates_per_level=candidates_per_level)
        check_whole(1, detections_per_image=detections_per_image)
        self.max_distance = max_distance
        self.anchors = AnchorGenerator(STRIDES, (anchor_scale,), (1.0,))
        self.network = PyramidNetwork(
            backbone,
            FPN(
                backbone.channels,
                fpn_channels,
                start_level=1,
                num_levels=len(STRIDES),
                extra_levels="on_output",
            ),
            GFLHead(
                fpn_channels,
                num_classes,
                max_distance + 1,
                head_channels,
                num_tower_convs,
                len(STRIDES),
            ),
        )
        self.coder = DistanceBoxCoder()
        self.assigner = ATSSAssigner(candidate_anchors)
        self.postprocess = DensePostProcess(
            self.decode,
            num_classes,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            candidates_per_level=candidates_per_level,
            detections_per_image=detections_per_image,
        )

    def distances(self, distributions: Tensor) -> Tensor:
        """Expected distances ``(..., 4)`` in strides (equation 5).

        Args:
            distributions: The head's values ``(..., 4 * n)``: logits of the distances 0 to n - 1,
                for left, top, right, bottom.
        """
        probability = distributions.unflatten(-1, (4, self.max_distance + 1)).softmax(dim=-1)
        bins = torch.arange(
            self.max_distance + 1, device=probability.device, dtype=probability.dtype
        )
        return (probability * bins).sum(dim=-1)

    def decode(self, anchors: Tensor, distributions: Tensor, stride: int) -> Tensor:
        """Boxes ``(..., 4)``, xyxy, of a level's anchors.

        Args:
            anchors: Anchors ``(..., 4)``, xyxy.
            distributions: The head's values ``(..., 4 * n)`` for them.
            stride: Of the level.
        """
        return self.coder.decode(box_centres(anchors), self.distances(distributions) * stride)

    def compute_losses(self, batch: ImageBatch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Quality focal loss of classes, GIoU of boxes, distribution focal loss of distances.

        Args:
            batch: Normalised and padded images.
            targets: Checked targets, on the images' device.
        """
        cls_maps, box_maps = self.network(batch.tensor)
        cells = own_cells(cls_maps, batch, self.anchors)
        truth = match_cells(self.anchors, self.assigner, cells, targets)
        logits = gather_cells(cls_maps, cells, self.num_classes)
        distributions = gather_cells(box_maps, cells, 4 * (self.max_distance + 1))
        return self._losses(logits, distributions[truth.positives], truth)

    def _losses(
        self, logits: Tensor, distributions: Tensor, truth: DenseTruth
    ) -> dict[str, Tensor]:
        """The losses of all anchors' logits and the positives' distributions."""
        strides = truth.strides[:, None]
        points, wanted = box_centres(truth.anchors) / strides, truth.boxes / strides
        boxes = self.coder.decode(points, self.distances(distributions))
        quality = paired_iou(boxes.detach(), wanted)
        # A box counts as much as the detector is sure of the object.
        weight = logits.detach()[truth.positives].amax(dim=1).sigmoid()
        total_weight = mean_over_processes(weight.sum()).clamp(min=1)
        wanted_distances = self.coder.encode(points, wanted).clamp(
            0, self.max_distance - _DISTANCE_MARGIN
        )
        distribution_loss = distribution_focal_loss(
            distributions.unflatten(-1, (4, self.max_distance + 1)), wanted_distances
        ).mean(dim=1)
        cls_loss = quality_focal_loss(logits, truth.labels, truth.positives, quality)
        return {
            "loss_cls": cls_loss / mean_over_processes(truth.num_positives),
            "loss_box": _BOX_WEIGHT * (giou_loss(boxes, wanted) * weight).sum() / total_weight,
            "loss_dfl": _DISTRIBUTION_WEIGHT * (distribution_loss * weight).sum() / total_weight,
        }

    def detect(self, batch: ImageBatch) -> list[Detection]:
        """Detections of every image, in its own pixels.

        Args:
            batch: Normalised and padded images.
        """
        cls_maps, box_maps = self.network(batch.tensor)
        anchors = self.anchors(map_sizes(cls_maps), batch.tensor.device)
        return self.postprocess(cls_maps, box_maps, None, anchors, STRIDES, batch.sizes)
