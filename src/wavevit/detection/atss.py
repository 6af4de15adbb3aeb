"""ATSS (Zhang et al. 2020, "Bridging the gap between anchor-based and anchor-free detection via
adaptive training sample selection", arXiv 1912.02424).

Legend: B batch, C channels, H W rows and columns of a level, K classes, P positive anchors.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from wavevit.detection.anchors import AnchorGenerator
from wavevit.detection.atss_assigner import ATSSAssigner
from wavevit.detection.box_coder import DeltaBoxCoder, DistanceBoxCoder, box_centres
from wavevit.detection.dense_head import PyramidNetwork, Scale, conv_tower, init_head, map_sizes
from wavevit.detection.dense_postprocess import DensePostProcess
from wavevit.detection.dense_targets import gather_cells, match_cells, own_cells
from wavevit.detection.detector import Detection, Detector
from wavevit.detection.fpn import FPN
from wavevit.detection.losses import focal_loss, giou_loss, mean_over_processes
from wavevit.detection.preprocess import ImageBatch, Preprocess
from wavevit.detection.targets import Target
from wavevit.models.option_checks import check_positive, check_share, check_whole
from wavevit.models.pyramid_backbone import PyramidBackbone

STRIDES = (8, 16, 32, 64, 128)
_BOX_WEIGHT = 2.0


class ATSSHead(nn.Module):
    """Class logits, box deltas and centerness of the one anchor of every cell.

    Two towers that all levels share; centerness is read from the boxes' tower.

    Args:
        in_channels: Channels C of the pyramid.
        num_classes: Classes, K.
        channels: Channels of the towers.
        num_convs: Convolutions of each tower.
        num_levels: Levels of the pyramid, each with a scale of its own for deltas.
    """

    def __init__(
        self, in_channels: int, num_classes: int, channels: int, num_convs: int, num_levels: int
    ) -> None:
        super().__init__()
        self.cls_tower = conv_tower(in_channels, channels, num_convs, group_norm=True)
        self.box_tower = conv_tower(in_channels, channels, num_convs, group_norm=True)
        width = channels if num_convs else in_channels
        self.cls_logits = nn.Conv2d(width, num_classes, 3, padding=1)
        self.box_output = nn.Conv2d(width, 4, 3, padding=1)
        self.centerness = nn.Conv2d(width, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in range(num_levels))
        init_head(self, self.cls_logits)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Class logits ``(B, K, H, W)``, deltas ``(B, 4, H, W)``, centerness ``(B, 1, H, W)``.

        Args:
            levels: Maps ``(B, C, H, W)``.
        """
        cls_maps, box_maps, centerness_maps = [], [], []
        for level, scale in zip(levels, self.scales, strict=True):
            box_features = self.box_tower(level)
            cls_maps.append(self.cls_logits(self.cls_tower(level)))
            box_maps.append(scale(self.box_output(box_features)))
            centerness_maps.append(self.centerness(box_features))
        return cls_maps, box_maps, centerness_maps


class ATSS(Detector):
    """One-stage detector on one anchor a cell, whose positives follow from the objects' statistics.

    Args:
        backbone: Gives maps at strides 4 to 32; the first is not used.
        num_classes: Classes of objects.
        fpn_channels: Channels of the pyramid.
        head_channels: Channels of the head's towers.
        num_tower_convs: Convolutions of each tower.
        anchor_scale: Side of a level's anchors, in its strides.
        candidate_anchors: Anchors of a level, nearest to an object, that may become positive.
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
        check_whole(1, candidate_anchors=candidate_anchors)
        check_positive(anchor_scale=anchor_scale)
        check_share(score_threshold=score_threshold, nms_threshold=nms_threshold)
        check_whole(1, candidates_per_level=candidates_per_level)
        check_whole(1, detections_per_image=detections_per_image)
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
            ATSSHead(fpn_channels, num_classes, head_channels, num_tower_convs, len(STRIDES)),
        )
        self.coder = DeltaBoxCoder((0.1, 0.1, 0.2, 0.2))
        self.assigner = ATSSAssigner(candidate_anchors)
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

    def compute_losses(self, batch: ImageBatch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Focal loss of classes, GIoU of boxes weighted by centerness, and centerness itself.

        Args:
            batch: Normalised and padded images.
            targets: Checked targets, on the images' device.
        """
        cls_maps, box_maps, centerness_maps = self.network(batch.tensor)
        cells = own_cells(cls_maps, batch, self.anchors)
        truth = match_cells(self.anchors, self.assigner, cells, targets)
        logits = gather_cells(cls_maps, cells, self.num_classes)
        deltas = gather_cells(box_maps, cells, 4)[truth.positives]
        centerness = gather_cells(centerness_maps, cells, 1)[truth.positives, 0]

        wanted = centerness_targets(truth.anchors, truth.boxes)
        num_positives = mean_over_processes(truth.num_positives)
        total_weight = mean_over_processes(wanted.sum()).clamp(min=1)
        boxes = self.coder.decode(truth.anchors, deltas)
        return {
            "loss_cls": focal_loss(logits, truth.labels, truth.positives) / num_positives,
            "loss_box": _BOX_WEIGHT * (giou_loss(boxes, truth.boxes) * wanted).sum() / total_weight,
            "loss_centerness": F.binary_cross_entropy_with_logits(
                centerness, wanted, reduction="sum"
            )
            / num_positives,
        }

    def detect(self, batch: ImageBatch) -> list[Detection]:
        """Detections of every image, in its own pixels.

        Args:
            batch: Normalised and padded images.
        """
        cls_maps, box_maps, centerness_maps = self.network(batch.tensor)
        anchors = self.anchors(map_sizes(cls_maps), batch.tensor.device)
        return self.postprocess(cls_maps, box_maps, centerness_maps, anchors, STRIDES, batch.sizes)


def centerness_targets(anchors: Tensor, boxes: Tensor) -> Tensor:
    """How central each anchor's centre lies in its object's box, in [0, 1], ``(P,)``.

    Tian et al. 2019, FCOS, arXiv 1904.01355, equation 3.

    Args:
        anchors: fp32 ``(P, 4)``, xyxy, with centres inside the boxes.
        boxes: fp32 ``(P, 4)``, xyxy.
    """
    distances = DistanceBoxCoder().encode(box_centres(anchors), boxes)
    horizontal, vertical = distances[:, 0::2], distances[:, 1::2]
    ratio = horizontal.amin(1) / horizontal.amax(1) * (vertical.amin(1) / vertical.amax(1))
    return ratio.sqrt()
