"""Mask R-CNN (He et al. 2017, arXiv 1703.06870); without masks, Faster R-CNN on an FPN.

Legend: B batch, H W rows and columns of an image in pixels, P proposals of an image, R regions of
the batch, K classes.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from wavevit.detection.box_coder import DeltaBoxCoder
from wavevit.detection.box_head import BoxHead
from wavevit.detection.detector import Detection, Detector
from wavevit.detection.fpn import FPN
from wavevit.detection.mask_head import MaskHead, add_masks, mask_loss
from wavevit.detection.max_iou_assigner import MaxIoUAssigner
from wavevit.detection.preprocess import ImageBatch, Preprocess
from wavevit.detection.proposal_sampler import RandomSampler
from wavevit.detection.regions import (
    DetectionSettings,
    RegionSampler,
    classification_loss,
    positive_regions,
    select_detections,
)
from wavevit.detection.roi_pooling import RoIPooling, join_regions
from wavevit.detection.rpn import (
    ProposalSettings,
    Pyramid,
    RegionProposer,
    RPNHead,
    RPNNetwork,
)
from wavevit.detection.targets import Target
from wavevit.models.option_checks import check_share, check_switch, check_whole
from wavevit.models.pyramid_backbone import PyramidBackbone

BOX_ROI_SIZE = 7
MASK_ROI_SIZE = 14


class MaskRCNN(Detector):
    """Proposals, then class, box and mask of each.

    Losses: "loss_rpn_cls", "loss_rpn_box", "loss_cls", "loss_box", "loss_mask".

    Args:
        backbone: Gives maps at strides 4, 8, 16, 32.
        num_classes: Classes K of objects, without the background.
        masks: Finds masks too; False makes it Faster R-CNN.
        fpn_channels: Width of the pyramid's levels.
        fc_channels: Width of the box head's two fully connected layers.
        num_mask_convs: Convolutions of the mask head.
        mask_channels: Their width.
        num_anchor_samples: Anchors of an image that the proposal network learns from.
        num_region_samples: Regions of an image that the box head learns from.
        num_proposals_train: Proposals of an image in training.
        num_proposals_test: Proposals of an image in evaluation.
        score_threshold: Detections up to this class probability are dropped.
        nms_threshold: Of two detections of a class that overlap more, the better one stays.
        detections_per_image: Most detections of an image.

    Raises:
        ValueError: An option out of range.
    """

    def __init__(
        self,
        backbone: PyramidBackbone,
        num_classes: int,
        *,
        masks: bool = True,
        fpn_channels: int = 256,
        fc_channels: int = 1024,
        num_mask_convs: int = 4,
        mask_channels: int = 256,
        num_anchor_samples: int = 256,
        num_region_samples: int = 512,
        num_proposals_train: int = 1000,
        num_proposals_test: int = 1000,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
    ) -> None:
        check_switch(masks=masks)
        check_whole(1, fpn_channels=fpn_channels, fc_channels=fc_channels)
        check_whole(0, num_mask_convs=num_mask_convs)
        check_whole(1, mask_channels=mask_channels)
        check_whole(1, num_anchor_samples=num_anchor_samples)
        check_whole(1, num_region_samples=num_region_samples)
        check_whole(1, num_proposals_train=num_proposals_train)
        check_whole(1, num_proposals_test=num_proposals_test)
        check_share(score_threshold=score_threshold, nms_threshold=nms_threshold)
        check_whole(1, detections_per_image=detections_per_image)
        super().__init__(num_classes, Preprocess(backbone.mean, backbone.std), with_masks=masks)
        neck = FPN(backbone.channels, fpn_channels, num_levels=5, extra_levels="max_pool")
        self.proposer = RegionProposer(
            (*backbone.strides, 2 * backbone.strides[-1]),
            for_training=ProposalSettings(num_before_nms=2000, num_after_nms=num_proposals_train),
            for_testing=ProposalSettings(num_before_nms=1000, num_after_nms=num_proposals_test),
            assigner=MaxIoUAssigner(0.7, 0.3, min_positive_iou=0.3),
            sampler=RandomSampler(num_anchor_samples, positive_fraction=0.5),
        )
        self.network = RPNNetwork(
            backbone, neck, RPNHead(fpn_channels, self.proposer.anchors.num_per_cell)
        )
        # Regions are taken from the backbone's own levels, not from the extra one.
        self.box_pooling = RoIPooling(BOX_ROI_SIZE, backbone.strides)
        self.box_head = BoxHead(fpn_channels, num_classes, fc_channels=fc_channels)
        self.mask_pooling = RoIPooling(MASK_ROI_SIZE, backbone.strides)
        self.mask_head = (
            MaskHead(
                fpn_channels, num_classes, num_convs=num_mask_convs, conv_channels=mask_channels
            )
            if masks
            else None
        )
        self.box_coder = DeltaBoxCoder((0.1, 0.1, 0.2, 0.2))
        self.region_sampler = RegionSampler(
            MaxIoUAssigner(0.5, 0.5, min_positive_iou=0.5),
            RandomSampler(num_region_samples, positive_fraction=0.25),
            num_classes,
        )
        self.settings = DetectionSettings(score_threshold, nms_threshold, detections_per_image)

    def compute_losses(self, batch: ImageBatch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Losses by name: see the class.

        Args:
            batch: Normalised and padded images.
            targets: Checked targets, on the images' device.
        """
        pyramid: Pyramid = self.network(batch.tensor)
        losses = self.proposer.losses(pyramid, batch, targets)
        proposals = self.proposer.proposals(pyramid, batch.sizes, training=True)
        return losses | self.region_losses(pyramid.features, [p.boxes for p in proposals], targets)

    def region_losses(
        self,
        features_per_level: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Losses of the box and mask heads.

        Args:
            features_per_level: Levels of the pyramid, ``(B, C, H, W)``.
            proposals: ``(P, 4)`` of each image, xyxy in pixels.
            targets: Ground truth of each image.
        """
        samples = [
            self.region_sampler(boxes, target)
            for boxes, target in zip(proposals, targets, strict=True)
        ]
        regions = join_regions([sample.boxes for sample in samples])
        logits, deltas = self.box_head(self.box_pooling(features_per_level, regions))
        positives = positive_regions(deltas, samples, targets)
        expected = self.box_coder.encode(positives.boxes, positives.gt_boxes)
        box_loss = F.l1_loss(positives.deltas, expected, reduction="sum")
        losses = {
            "loss_cls": classification_loss(logits, samples),
            # Over all regions, as published, so that an image's weight is that of its objects.
            "loss_box": box_loss / max(len(regions), 1),
        }
        if self.mask_head is not None:
            losses["loss_mask"] = mask_loss(
                self.mask_head, self.mask_pooling, features_per_level, samples, targets
            )
        return losses

    def detect(self, batch: ImageBatch) -> list[Detection]:
        """Detections of every image, in its own pixels.

        Args:
            batch: Normalised and padded images.
        """
        pyramid: Pyramid = self.network(batch.tensor)
        proposals = self.proposer.proposals(pyramid, batch.sizes, training=False)
        return self.detect_regions(pyramid.features, [p.boxes for p in proposals], batch.sizes)

    def detect_regions(
        self,
        features_per_level: Sequence[Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Detection]:
        """Detections of each image among its proposals.

        Args:
            features_per_level: Levels of the pyramid, ``(B, C, H, W)``.
            proposals: ``(P, 4)`` of each image, xyxy in pixels.
            sizes: H and W of each image, pixels.
        """
        pooled = self.box_pooling(features_per_level, join_regions(proposals))
        logits, deltas = self.box_head(pooled)
        detections = select_detections(
            logits.float().softmax(dim=1),
            deltas,
            proposals,
            coder=self.box_coder,
            sizes=sizes,
            settings=self.settings,
        )
        if self.mask_head is not None:
            add_masks(detections, [self.mask_head], self.mask_pooling, features_per_level, sizes)
        return detections
