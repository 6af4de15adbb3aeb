"""Cascade Mask R-CNN (Cai and Vasconcelos 2019, arXiv 1906.09756); masks are optional.

Legend: B batch, H W rows and columns of an image in pixels, P proposals of an image, R regions of
the batch, K classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from wavevit.detection.box_coder import DeltaBoxCoder
from wavevit.detection.box_head import BoxHead
from wavevit.detection.detector import Detection, Detector
from wavevit.detection.fpn import FPN
from wavevit.detection.losses import giou_loss
from wavevit.detection.mask_head import MaskHead, add_masks, mask_loss
from wavevit.detection.max_iou_assigner import MaxIoUAssigner
from wavevit.detection.preprocess import ImageBatch, Preprocess
from wavevit.detection.proposal_sampler import RandomSampler
from wavevit.detection.regions import (
    DetectionSettings,
    RegionSample,
    RegionSampler,
    classification_loss,
    positive_regions,
    select_detections,
)
from wavevit.detection.roi_pooling import RoIPooling, join_regions
from wavevit.detection.rpn import ProposalSettings, Pyramid, RegionProposer, RPNHead, RPNNetwork
from wavevit.detection.targets import Target
from wavevit.models.option_checks import (
    check_all_positive,
    check_positive,
    check_share,
    check_switch,
    check_whole,
)
from wavevit.models.pyramid_backbone import PyramidBackbone

BOX_ROI_SIZE = 7
MASK_ROI_SIZE = 14
GIOU_WEIGHT = 10.0


class CascadeStage(NamedTuple):
    """One step of the cascade.

    Attributes:
        iou: From this overlap on a region is positive, below it negative.
        loss_weight: Weight of the stage's losses.
        stds: Standard deviations of the box deltas dx, dy, dw, dh.
    """

    iou: float
    loss_weight: float
    stds: tuple[float, float, float, float]


STAGES = (
    CascadeStage(0.5, 1.0, (0.1, 0.1, 0.2, 0.2)),
    CascadeStage(0.6, 0.5, (0.05, 0.05, 0.1, 0.1)),
    CascadeStage(0.7, 0.25, (0.033, 0.033, 0.067, 0.067)),
)


class CascadeMaskRCNN(Detector):
    """Proposals, refined stage by stage, each stage trained on better ones than the one before.

    Losses: "loss_rpn_cls", "loss_rpn_box", and of each stage i "loss_cls_i", "loss_box_i",
    "loss_mask_i".

    Args:
        backbone: Gives maps at strides 4, 8, 16, 32.
        num_classes: Classes K of objects, without the background.
        masks: Finds masks too.
        fpn_channels: Width of the pyramid's levels.
        stages: The steps, first one first.
        num_box_convs: Convolutions of each box head.
        box_channels: Their width.
        fc_channels: Width of each box head's fully connected layer.
        num_mask_convs: Convolutions of each mask head.
        mask_channels: Their width.
        num_anchor_samples: Anchors of an image that the proposal network learns from.
        num_region_samples: Regions of an image that each stage learns from.
        num_proposals_train: Proposals of an image in training.
        num_proposals_test: Proposals of an image in evaluation.
        score_threshold: Detections up to this class probability are dropped.
        nms_threshold: Of two detections of a class that overlap more, the better one stays.
        detections_per_image: Most detections of an image.

    Raises:
        ValueError: No stage, or an option out of range.
    """

    def __init__(
        self,
        backbone: PyramidBackbone,
        num_classes: int,
        *,
        masks: bool = True,
        fpn_channels: int = 256,
        stages: Sequence[CascadeStage] = STAGES,
        num_box_convs: int = 4,
        box_channels: int = 256,
        fc_channels: int = 1024,
        num_mask_convs: int = 4,
        mask_channels: int = 256,
        num_anchor_samples: int = 256,
        num_region_samples: int = 512,
        num_proposals_train: int = 2000,
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
        check_whole(0, num_box_convs=num_box_convs)
        check_whole(1, box_channels=box_channels)
        super().__init__(num_classes, Preprocess(backbone.mean, backbone.std), with_masks=masks)
        self.stages = stages = _checked_stages(stages)
        neck = FPN(backbone.channels, fpn_channels, num_levels=5, extra_levels="max_pool")
        self.proposer = RegionProposer(
            (*backbone.strides, 2 * backbone.strides[-1]),
            for_training=ProposalSettings(num_before_nms=2000, num_after_nms=num_proposals_train),
            for_testing=ProposalSettings(num_before_nms=1000, num_after_nms=num_proposals_test),
            assigner=MaxIoUAssigner(0.7, 0.3, min_positive_iou=0.3),
            sampler=RandomSampler(num_anchor_samples, positive_fraction=0.5),
            only_inside=True,
            smooth_l1_beta=1 / 9,
        )
        rpn_head = RPNHead(fpn_channels, self.proposer.anchors.num_per_cell)
        self.network = RPNNetwork(backbone, neck, rpn_head)
        self.box_pooling = RoIPooling(BOX_ROI_SIZE, backbone.strides)
        self.box_heads = nn.ModuleList(
            BoxHead(
                fpn_channels,
                num_classes,
                roi_size=BOX_ROI_SIZE,
                num_convs=num_box_convs,
                conv_channels=box_channels,
                num_fcs=1,
                fc_channels=fc_channels,
            )
            for _ in stages
        )
        self.mask_pooling = RoIPooling(MASK_ROI_SIZE, backbone.strides)
        self.mask_heads = nn.ModuleList(
            MaskHead(
                fpn_channels, num_classes, num_convs=num_mask_convs, conv_channels=mask_channels
            )
            for _ in (stages if masks else ())
        )
        self.box_coders = [DeltaBoxCoder(stage.stds) for stage in stages]
        self.region_samplers = [
            RegionSampler(
                MaxIoUAssigner(stage.iou, stage.iou, match_low_quality=False),
                RandomSampler(num_region_samples, positive_fraction=0.25),
                num_classes,
            )
            for stage in stages
        ]
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
        boxes = [p.boxes for p in proposals]
        return losses | self.region_losses(pyramid.features, boxes, targets, batch.sizes)

    def region_losses(
        self,
        features_per_level: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[Target],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Weighted losses of all stages.

        Args:
            features_per_level: Levels of the pyramid, ``(B, C, H, W)``.
            proposals: ``(P, 4)`` of each image, xyxy in pixels.
            targets: Ground truth of each image.
            sizes: H and W of each image, pixels.
        """
        losses: dict[str, Tensor] = {}
        for i, stage in enumerate(self.stages):
            samples = [
                self.region_samplers[i](boxes, target)
                for boxes, target in zip(proposals, targets, strict=True)
            ]
            regions = join_regions([sample.boxes for sample in samples])
            logits, deltas = self.box_heads[i](self.box_pooling(features_per_level, regions))
            positives = positive_regions(deltas, samples, targets)
            decoded = self.box_coders[i].decode(positives.boxes, positives.deltas)
            box_loss = GIOU_WEIGHT * giou_loss(decoded, positives.gt_boxes).sum()
            losses[f"loss_cls_{i}"] = stage.loss_weight * classification_loss(logits, samples)
            losses[f"loss_box_{i}"] = stage.loss_weight * box_loss / max(len(regions), 1)
            if self.with_masks:
                losses[f"loss_mask_{i}"] = stage.loss_weight * mask_loss(
                    self.mask_heads[i], self.mask_pooling, features_per_level, samples, targets
                )
            if i + 1 < len(self.stages):
                proposals = self._refine_samples(i, samples, logits, deltas, sizes)
        return losses

    @torch.no_grad()
    def _refine_samples(
        self,
        stage: int,
        samples: Sequence[RegionSample],
        logits: Tensor,
        deltas: Tensor,
        sizes: Sequence[tuple[int, int]],
    ) -> list[Tensor]:
        """Proposals of the next stage: where this stage moves its regions, ground truths left out.

        Positives follow the deltas of their true class, negatives those of the likeliest.
        """
        true = torch.cat([sample.labels for sample in samples])
        likeliest = logits[:, :-1].argmax(dim=1)
        labels = torch.where(true == self.num_classes, likeliest, true)
        refined = self._refine(stage, [s.boxes for s in samples], deltas, labels, sizes)
        # The next stage's sampler adds the ground truths again.
        return [boxes[~sample.is_gt] for boxes, sample in zip(refined, samples, strict=True)]

    def _refine(
        self,
        stage: int,
        boxes_per_image: Sequence[Tensor],
        deltas: Tensor,
        labels: Tensor,
        sizes: Sequence[tuple[int, int]],
    ) -> list[Tensor]:
        of_label = deltas[torch.arange(len(labels), device=labels.device), labels]
        boxes = self.box_coders[stage].decode(torch.cat(list(boxes_per_image)), of_label)
        per_image = boxes.split([len(b) for b in boxes_per_image])
        return [clip_boxes_to_image(b, size) for b, size in zip(per_image, sizes, strict=True)]

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

        Classes by the mean of all stages' logits, boxes by the last stage, masks by the mean of
        all stages' probabilities.

        Args:
            features_per_level: Levels of the pyramid, ``(B, C, H, W)``.
            proposals: ``(P, 4)`` of each image, xyxy in pixels.
            sizes: H and W of each image, pixels.
        """
        boxes, logits_per_stage = list(proposals), []
        for i, head in enumerate(self.box_heads):
            logits, deltas = head(self.box_pooling(features_per_level, join_regions(boxes)))
            logits_per_stage.append(logits.float())
            if i + 1 < len(self.stages):
                boxes = self._refine(i, boxes, deltas, logits[:, :-1].argmax(dim=1), sizes)
        detections = select_detections(
            torch.stack(logits_per_stage).mean(dim=0).softmax(dim=1),
            deltas,
            boxes,
            coder=self.box_coders[-1],
            sizes=sizes,
            settings=self.settings,
        )
        if self.with_masks:
            add_masks(detections, self.mask_heads, self.mask_pooling, features_per_level, sizes)
        return detections


def _checked_stages(stages: object) -> tuple[CascadeStage, ...]:
    """Stages from a configuration or a model file too, where they are lists."""
    rows = list(stages) if isinstance(stages, list | tuple) else []
    if not rows:
        raise ValueError(f"the option stages must be a list of at least 1 stage, got {stages!r}")
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) != 3:
            raise ValueError(
                f"the option stages must have [iou, loss_weight, stds] of each stage, got {row!r}"
            )
        iou, loss_weight, stds = row
        check_share(**{"stages, iou": iou})
        check_positive(**{"stages, loss_weight": loss_weight})
        check_all_positive(**{"stages, stds": stds})
        if len(stds) != 4:
            raise ValueError(f"the option stages must have 4 stds of each stage, got {stds!r}")
    return tuple(CascadeStage(iou, weight, tuple(stds)) for iou, weight, stds in rows)
