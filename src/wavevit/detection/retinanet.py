"""RetinaNet (Lin et al. 2017, "Focal loss for dense object detection", arXiv 1708.02002).

Legend: B batch, C channels, H W rows and columns of a level, A anchors of a cell, K classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavevit.detection.anchors import AnchorGenerator, octave_scales
from wavevit.detection.box_coder import DeltaBoxCoder
from wavevit.detection.dense_head import PyramidNetwork, conv_tower, init_head, map_sizes
from wavevit.detection.dense_postprocess import DensePostProcess
from wavevit.detection.dense_targets import gather_cells, match_cells, own_cells
from wavevit.detection.detector import Detection, Detector
from wavevit.detection.fpn import FPN
from wavevit.detection.losses import focal_loss
from wavevit.detection.max_iou_assigner import Assignment, MaxIoUAssigner
from wavevit.detection.preprocess import ImageBatch, Preprocess
from wavevit.detection.targets import Target
from wavevit.models.option_checks import (
    check_all_positive,
    check_positive,
    check_share,
    check_whole,
)
from wavevit.models.pyramid_backbone import PyramidBackbone

STRIDES = (8, 16, 32, 64, 128)
_SCALES_PER_OCTAVE = 3


class RetinaHead(nn.Module):
    """Class logits and box deltas of every anchor, by two towers that all levels share.

    Args:
        in_channels: Channels C of the pyramid.
        num_anchors: Anchors of a cell, A.
        num_classes: Classes, K.
        channels: Channels of the towers.
        num_convs: Convolutions of each tower.
    """

    def __init__(
        self, in_channels: int, num_anchors: int, num_classes: int, channels: int, num_convs: int
    ) -> None:
        super().__init__()
        self.cls_tower = conv_tower(in_channels, channels, num_convs, group_norm=False)
        self.box_tower = conv_tower(in_channels, channels, num_convs, group_norm=False)
        width = channels if num_convs else in_channels
        self.cls_logits = nn.Conv2d(width, num_anchors * num_classes, 3, padding=1)
        self.box_output = nn.Conv2d(width, num_anchors * 4, 3, padding=1)
        init_head(self, self.cls_logits)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Class logits ``(B, A * K, H, W)`` and deltas ``(B, A * 4, H, W)`` of every level.

        Args:
            levels: Maps ``(B, C, H, W)``.
        """
        cls_maps = [self.cls_logits(self.cls_tower(level)) for level in levels]
        box_maps = [self.box_output(self.box_tower(level)) for level in levels]
        return cls_maps, box_maps


class RetinaNet(Detector):
    """One-stage detector on nine anchors a cell, trained with the focal loss.

    Args:
        backbone: Gives maps at strides 4 to 32; the first is not used.
        num_classes: Classes of objects.
        fpn_channels: Channels of the pyramid.
        head_channels: Channels of the head's towers.
        num_tower_convs: Convolutions of each tower.
        anchor_scale: Side of the smallest square anchor of a level, in its strides.
        anchor_ratios: Heights of anchors over their widths.
        score_threshold: Detections up to this class probability are dropped.
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
        anchor_scale: float = 4.0,
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        candidates_per_level: int = 1000,
        detections_per_image: int = 100,
    ) -> None:
        super().__init__(num_classes, Preprocess(backbone.mean, backbone.std))
        check_whole(1, fpn_channels=fpn_channels, head_channels=head_channels)
        check_whole(0, num_tower_convs=num_tower_convs)
        check_positive(anchor_scale=anchor_scale)
        check_all_positive(anchor_ratios=anchor_ratios)
        check_share(score_threshold=score_threshold, nms_threshold=nms_threshold)
        check_whole(1, candidates_per_level=candidates_per_level)
        check_whole(1, detections_per_image=detections_per_image)
        self.anchors = AnchorGenerator(
            STRIDES, octave_scales(anchor_scale, _SCALES_PER_OCTAVE), anchor_ratios
        )
        self.network = PyramidNetwork(
            backbone,
            FPN(
                backbone.channels,
                fpn_channels,
                start_level=1,
                num_levels=len(STRIDES),
                extra_levels="on_input",
            ),
            RetinaHead(
                fpn_channels,
                self.anchors.num_per_cell,
                num_classes,
                head_channels,
                num_tower_convs,
            ),
        )
        self.coder = DeltaBoxCoder()
        self.assigner = MaxIoUAssigner(positive_iou=0.5, negative_iou=0.4)
        self.postprocess = DensePostProcess(
            self.decode,
            num_classes,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            candidates_per_level=candidates_per_level,
            detections_per_image=detections_per_image,
        )

    def decode(self, anchors: Tensor, deltas: Tensor, stride: int) -> Tensor:
        """Boxes ``(..., 4)``, xyxy, of a level's anchors.

        Args:
            anchors: Anchors ``(..., 4)``, xyxy.
            deltas: The head's values ``(..., 4)`` for them.
            stride: Of the level; deltas are relative to the anchors, so it does not matter.
        """
        return self.coder.decode(anchors, deltas)

    def assign(self, anchors_per_level: Sequence[Tensor], gt_boxes: Tensor) -> Assignment:
        """Which object each anchor of an image answers for.

        Args:
            anchors_per_level: Anchors ``(n, 4)`` of every level, xyxy.
            gt_boxes: Ground truth ``(G, 4)``, xyxy.
        """
        return self.assigner(torch.cat(list(anchors_per_level)), gt_boxes)

    def compute_losses(self, batch: ImageBatch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Focal loss of classes and L1 of deltas, each over the number of positives.

        Args:
            batch: Normalised and padded images.
            targets: Checked targets, on the images' device.
        """
        cls_maps, box_maps = self.network(batch.tensor)
        cells = own_cells(cls_maps, batch, self.anchors)
        truth = match_cells(self.anchors, self.assign, cells, targets)
        logits = gather_cells(cls_maps, cells, self.num_classes)
        deltas = gather_cells(box_maps, cells, 4)[truth.positives]
        wanted = self.coder.encode(truth.anchors, truth.boxes)
        return {
            "loss_cls": focal_loss(logits, truth.labels, truth.positives) / truth.num_positives,
            "loss_box": F.l1_loss(deltas, wanted, reduction="sum") / truth.num_positives,
        }

    def detect(self, batch: ImageBatch) -> list[Detection]:
        """Detections of every image, in its own pixels.

        Args:
            batch: Normalised and padded images.
        """
        cls_maps, box_maps = self.network(batch.tensor)
        anchors = self.anchors(map_sizes(cls_maps), batch.tensor.device)
        return self.postprocess(cls_maps, box_maps, None, anchors, STRIDES, batch.sizes)
