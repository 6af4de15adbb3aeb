"""What a user sets of a detection run: data, augmentation, detector; each a typed signature."""

import inspect
from pathlib import Path
from typing import Any, Literal

import torch

from wavevit.data.detection.layouts import DetectionFormat
from wavevit.data.detection.resize import SizeRule
from wavevit.data.detection.transforms import (
    DetectionTransform,
    Recipe,
    detection_eval_transform,
    detection_train_transform,
)
from wavevit.detection.card import TASK, DetectorCard
from wavevit.detection.detector import Detector
from wavevit.detection.factory import create_detector, detector_class
from wavevit.detection.official import is_official
from wavevit.detection.recognise import recognise
from wavevit.models.pyramid_backbone import BatchNormMode
from wavevit.training.detection_splits import DetectionSplits, generated_splits, open_detection
from wavevit.training.pyramid_settings import check_backbone, check_model_settings, try_out
from wavevit.training.pyramid_weights import Family, load_pyramid_weights

SHAPES = "shapes"


class DetectionData:
    """The annotated images, their size, and how they are batched.

    Args:
        path: Folder or file in COCO, YOLO or Pascal VOC layout, or "shapes" for the built-in
            generated set, whose images have a side of `short_edge`.
        format: "coco", "yolo" or "voc"; None tells it by the names of the files.
        train_split: Split to train on.
        val_split: Split to measure on; None takes "val", and holds out a share of the training
            split where there is none.
        val_fraction: That share.
        split_seed: Seed of what is held out.
        keep_empty: Trains on images without objects, too; officially they are left out.
        clip_boxes: Cuts boxes and outlines that stick out of their images; otherwise they are
            errors.
        short_edge: Length that the shorter side of images is resized to, pixels.
        long_edge: Limit of the longer side, pixels, which goes before. Augment may have other
            lengths for training.
        size_rule: "keep_ratio", or "multiple_of_16", the official detectors' rounding.
        batch_size: Images per process and forward pass.
        eval_batch_size: The same in evaluations. Above 1, images are padded to the largest of
            their batch, which changes results slightly.
        num_workers: Processes that decode and augment; 0 does so in the main process.

    Raises:
        ValueError: A value out of range.
    """

    def __init__(
        self,
        path: str = SHAPES,
        format: DetectionFormat | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        keep_empty: bool = False,
        clip_boxes: bool = False,
        short_edge: int = 480,
        long_edge: int = 800,
        size_rule: SizeRule = "keep_ratio",
        batch_size: int = 4,
        eval_batch_size: int = 1,
        num_workers: int = 2,
    ) -> None:
        if not path:
            raise ValueError("data.path is empty; name a folder, a COCO file, or shapes")
        if not 32 <= short_edge <= long_edge <= 8192:
            raise ValueError(
                "data.short_edge must be at least 32 and no more than data.long_edge, that at most "
                f"8192; got {short_edge} and {long_edge}"
            )
        if min(batch_size, eval_batch_size) < 1 or num_workers < 0:
            raise ValueError(
                "data.batch_size and data.eval_batch_size must be at least 1 and data.num_workers "
                f"at least 0, got {batch_size}, {eval_batch_size} and {num_workers}"
            )
        if not 0 < val_fraction < 1:
            raise ValueError(f"data.val_fraction must be between 0 and 1, got {val_fraction}")
        self.path = path
        self.format = format
        self.train_split = train_split
        self.val_split = val_split
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.keep_empty = keep_empty
        self.clip_boxes = clip_boxes
        self.short_edge = short_edge
        self.long_edge = long_edge
        self.size_rule = size_rule
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers

    def open(self, *, with_masks: bool) -> DetectionSplits:
        """The splits.

        Args:
            with_masks: Whether masks are trained.

        Raises:
            FileNotFoundError: No such path.
            ValueError: Nothing usable there, anything wrong with the annotations, or objects
                without masks where masks are trained.
        """
        if self.path == SHAPES:
            return generated_splits(self.short_edge, with_masks=with_masks)
        return open_detection(
            self.path,
            format=self.format,
            train_split=self.train_split,
            val_split=self.val_split,
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
            keep_empty=self.keep_empty,
            clip=self.clip_boxes,
            with_masks=with_masks,
        )

    def eval_transform(self) -> DetectionTransform:
        """The resize of evaluations."""
        return detection_eval_transform(
            short_edge=self.short_edge, long_edge=self.long_edge, size_rule=self.size_rule
        )


class DetectionAugmentation:
    """What is done to training images, and to their boxes and masks.

    Args:
        recipe: "single_scale" resizes and flips; "multi_scale" draws the size and crops every
            second image (DETR's, as published); "large_scale_jitter" scales by a wide range of
            factors onto a canvas.
        short_edges: Lengths of the shorter side to draw from, pixels; None takes data.short_edge.
        long_edge: Limit of the longer side, pixels; None takes data.long_edge.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of brightness, contrast and saturation jitter, in [0, 1].
        short_edges_before_crop: Shorter sides before a crop of "multi_scale", pixels.
        crop_sizes: Least and largest side of a crop of "multi_scale", pixels.
        jitter_canvas: Rows and columns of "large_scale_jitter"'s canvas, pixels.
        jitter_scales: Range of its factor; at 1 the image just fits.

    Raises:
        ValueError: A value out of range.
    """

    def __init__(
        self,
        recipe: Recipe = "single_scale",
        short_edges: tuple[int, ...] | None = None,
        long_edge: int | None = None,
        hflip: float = 0.5,
        color_jitter: float = 0.0,
        short_edges_before_crop: tuple[int, ...] = (400, 500, 600),
        crop_sizes: tuple[int, int] = (384, 600),
        jitter_canvas: tuple[int, int] = (1024, 1024),
        jitter_scales: tuple[float, float] = (0.1, 2.0),
    ) -> None:
        for name, value in (("hflip", hflip), ("color_jitter", color_jitter)):
            if not 0 <= value <= 1:
                raise ValueError(f"augment.{name} must be in [0, 1], got {value}")
        self.recipe = recipe
        self.short_edges = short_edges
        self.long_edge = long_edge
        self.hflip = hflip
        self.color_jitter = color_jitter
        self.short_edges_before_crop = short_edges_before_crop
        self.crop_sizes = crop_sizes
        self.jitter_canvas = jitter_canvas
        self.jitter_scales = jitter_scales

    def transform(self, data: DetectionData) -> DetectionTransform:
        """The transform of one training image.

        Args:
            data: Sizes and their rule, where nothing else is said here.

        Raises:
            ValueError: Sizes that do not go together.
        """
        try:
            return detection_train_transform(
                self.recipe,
                short_edges=self.short_edges or (data.short_edge,),
                long_edge=self.long_edge or data.long_edge,
                size_rule=data.size_rule,
                hflip=self.hflip,
                color_jitter=self.color_jitter,
                short_edges_before_crop=self.short_edges_before_crop,
                crop_sizes=self.crop_sizes,
                jitter_canvas=self.jitter_canvas,
                jitter_scales=self.jitter_scales,
            )
        except ValueError as error:
            raise ValueError(f"augment: {error}") from error


# About a quarter of the published channels: for small images, and for CPUs.
_NARROW_TOWERS = {"fpn_channels": 64, "head_channels": 64, "num_tower_convs": 2}
_NARROW_REGIONS = {
    "fpn_channels": 64,
    "fc_channels": 256,
    "num_mask_convs": 2,
    "mask_channels": 64,
    "num_region_samples": 128,
    "num_proposals_train": 300,
    "num_proposals_test": 300,
}
NARROW_HEADS: dict[str, dict[str, Any]] = {
    "retinanet": _NARROW_TOWERS,
    "atss": _NARROW_TOWERS,
    "gfl": _NARROW_TOWERS,
    "mask_rcnn": _NARROW_REGIONS,
    "cascade_mask_rcnn": {**_NARROW_REGIONS, "num_box_convs": 1, "box_channels": 64},
    "sparse_rcnn": {
        "fpn_channels": 64,
        "num_proposals": 50,
        "num_stages": 3,
        "inner_channels": 16,
        "ffn_channels": 256,
    },
}
_FAMILY = Family(
    task=TASK,
    kind="detector",
    is_official=is_official,
    recognise=lambda state: recognise(state)[:2],
)


class DetectorSettings:
    """Which detector on which backbone, and what of it is trained.

    Args:
        detector: "retinanet", "atss", "gfl", "mask_rcnn", "cascade_mask_rcnn" or "sparse_rcnn".
        backbone: Any model name of timm that gives maps at strides 4, 8, 16 and 32.
        heads: "published" has the published widths; "narrow" about a quarter of them.
        weights: Checkpoint to start from: a classifier's for the backbone, or a detector's, ours
            or mmdetection's, whose class layers are dropped when class counts differ.
        pretrained: Starts the backbone from timm's own weights, downloaded.
        drop_path_rate: Stochastic depth of the backbone's last block; published: 0.1.
        batch_norm: BatchNorms of the backbone. "affine_frozen", as published: scale and shift stay
            as they are, statistics move; "frozen": both stay; "trained": neither does.
        frozen_stages: So many of the backbone's four stages are not trained.
        grad_checkpointing: Recomputes the backbone's activations in the backward pass to save
            memory.
        options: Further arguments of the detector, such as score_threshold.

    Raises:
        FileNotFoundError: No such weights.
        ValueError: No such detector or option, or a value out of range.
    """

    def __init__(
        self,
        detector: str = "gfl",
        backbone: str = "wavevit_nano",
        heads: Literal["published", "narrow"] = "published",
        weights: Path | None = None,
        pretrained: bool = False,
        drop_path_rate: float = 0.0,
        batch_norm: BatchNormMode = "affine_frozen",
        frozen_stages: int = 0,
        grad_checkpointing: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        try:
            cls = detector_class(detector)
        except ValueError as error:
            raise ValueError(f"model.detector: {error}") from error
        check_model_settings(
            detector,
            cls,
            weights=weights,
            pretrained=pretrained,
            drop_path_rate=drop_path_rate,
            options=options or {},
        )
        self.detector = detector
        self.backbone = backbone
        self.weights = weights
        self.pretrained = pretrained
        self.drop_path_rate = drop_path_rate
        self.batch_norm = batch_norm
        self.frozen_stages = frozen_stages
        self.grad_checkpointing = grad_checkpointing
        narrow = NARROW_HEADS[detector] if heads == "narrow" else {}
        self.options = {**narrow, **(options or {})}
        may_have_masks = "masks" in inspect.signature(cls).parameters
        self.with_masks = bool(self.options.get("masks", may_have_masks))

    def card(
        self, class_names: list[str], category_ids: list[int], data: DetectionData
    ) -> DetectorCard:
        """How to rebuild the trained detector and feed it, without training-only settings.

        Args:
            class_names: Names of the data's classes.
            category_ids: Their ids in COCO files.
            data: Sizes of the images.

        Raises:
            ValueError: timm has no such backbone.
        """
        check_backbone(self.backbone)
        return DetectorCard(
            detector=self.detector,
            backbone=self.backbone,
            options=self.options,
            class_names=class_names,
            category_ids=category_ids,
            short_edge=data.short_edge,
            long_edge=data.long_edge,
            size_rule=data.size_rule,
        )

    def build(self, card: DetectorCard) -> Detector:
        """The detector to train.

        Args:
            card: From `card`.

        Raises:
            ValueError: A backbone or options that do not fit, or weights that do not.
        """
        detector = create_detector(
            card.detector,
            card.backbone,
            num_classes=len(card.class_names),
            pretrained=self.pretrained,
            drop_path_rate=self.drop_path_rate,
            batch_norm=self.batch_norm,
            frozen_stages=self.frozen_stages,
            grad_checkpointing=self.grad_checkpointing,
            **card.options,
        )
        if self.weights is not None:
            load_pyramid_weights(detector, card.detector, card.backbone, self.weights, _FAMILY)
        name = f"{card.detector} on {card.backbone}"
        try_out(detector, name, lambda: detector([torch.zeros(3, 64, 96)]))
        return detector
