"""What a user sets of a segmentation run: data, augmentation, segmenter; each a typed signature."""

from pathlib import Path
from typing import Any, Literal

import torch

from wavevit.data.resize import SizeRule
from wavevit.data.segmentation.layouts import PairPattern
from wavevit.data.segmentation.masks import LabelRule
from wavevit.data.segmentation.transforms import (
    ImageTransform,
    SegmentationTransform,
    segmentation_eval_transform,
    segmentation_train_transform,
)
from wavevit.models.pyramid_backbone import BatchNormMode
from wavevit.segmentation.card import TASK, SegmenterCard
from wavevit.segmentation.factory import create_segmenter, segmenter_class
from wavevit.segmentation.official import is_official
from wavevit.segmentation.recognise import recognise
from wavevit.segmentation.segmenter import Segmenter
from wavevit.training.pyramid_settings import check_backbone, check_model_settings, try_out
from wavevit.training.pyramid_weights import Family, load_pyramid_weights
from wavevit.training.segmentation_splits import (
    SegmentationSplits,
    generated_splits,
    open_segmentation_splits,
)

SHAPES = "shapes"


class SegmentationData:
    """The images with masks, their size, and how they are batched.

    Args:
        path: Folder with images and masks, or "shapes" for the built-in generated set, whose
            images have a side of `short_edge`.
        train_split: Split to train on.
        val_split: Split to measure on; None takes "val", and holds out a share of the training
            split where there is none.
        val_fraction: That share.
        split_seed: Seed of what is held out.
        image_folder: Folder of images, relative to the data or to the folder of a split; None
            looks for the usual names.
        mask_folder: Folder of masks, likewise.
        image_suffix: How the names of images end, such as "_rgb.jpg".
        mask_suffix: How the names of masks end, such as "_labels.png".
        ignore_index: Number in masks of pixels that do not count, besides 255.
        reduce_zero_label: Takes 0 in masks for pixels that do not count, and 1 for the first
            class, as in ADE20K.
        num_classes: Classes, where there is no classes.txt; None counts them in the masks.
        short_edge: Length that the shorter side of images is resized to in evaluations, pixels;
            in training, times a random factor.
        long_edge: Limit of the longer side, pixels, which goes before.
        size_rule: Of evaluations: "keep_ratio", or "multiple_of_16", the official rounding.
        batch_size: Images per process and forward pass. The heads normalise over the batch: 1 is
            only for several processes with trainer.batch_norm sync.
        num_workers: Processes that decode and augment; 0 does so in the main process.

    Raises:
        ValueError: A value out of range.
    """

    def __init__(
        self,
        path: str = SHAPES,
        train_split: str = "train",
        val_split: str | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        image_folder: str | None = None,
        mask_folder: str | None = None,
        image_suffix: str | None = None,
        mask_suffix: str | None = None,
        ignore_index: int | None = None,
        reduce_zero_label: bool = False,
        num_classes: int | None = None,
        short_edge: int = 512,
        long_edge: int = 2048,
        size_rule: SizeRule = "keep_ratio",
        batch_size: int = 4,
        num_workers: int = 2,
    ) -> None:
        if not path:
            raise ValueError("data.path is empty; name a folder, or shapes")
        if not 32 <= short_edge <= long_edge <= 8192:
            raise ValueError(
                "data.short_edge must be at least 32 and at most data.long_edge, that at most "
                f"8192; got {short_edge} and {long_edge}"
            )
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                "data.batch_size must be at least 1 and data.num_workers at least 0, got "
                f"{batch_size} and {num_workers}"
            )
        if not 0 < val_fraction < 1:
            raise ValueError(f"data.val_fraction must be between 0 and 1, got {val_fraction}")
        if num_classes is not None and not 1 <= num_classes <= 255:
            raise ValueError(f"data.num_classes must be 1 to 255, got {num_classes}")
        self.path = path
        self.train_split = train_split
        self.val_split = val_split
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.pattern = PairPattern(image_folder, mask_folder, image_suffix, mask_suffix)
        self.rule = LabelRule(ignore_index, reduce_zero_label)
        self.num_classes = num_classes
        self.short_edge = short_edge
        self.long_edge = long_edge
        self.size_rule: SizeRule = size_rule
        self.batch_size = batch_size
        self.num_workers = num_workers

    def open(self) -> SegmentationSplits:
        """The splits.

        Raises:
            FileNotFoundError: No such path.
            ValueError: Nothing usable there, or anything wrong with the masks.
        """
        if self.path == SHAPES:
            return generated_splits(self.short_edge)
        return open_segmentation_splits(
            self.path,
            pattern=self.pattern,
            rule=self.rule,
            num_classes=self.num_classes,
            train_split=self.train_split,
            val_split=self.val_split,
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
        )

    def eval_transform(self) -> ImageTransform:
        """The resize of evaluations."""
        return segmentation_eval_transform(
            short_edge=self.short_edge, long_edge=self.long_edge, size_rule=self.size_rule
        )


class SegmentationAugmentation:
    """What is done to training images and their masks.

    Args:
        crop_size: Rows and columns that the network sees, pixels; smaller images are padded.
        scales: Range of the random factor on data.short_edge and data.long_edge.
        max_class_share: A crop is drawn again, up to ten times, while one class fills this share
            of what counts in it, or nothing counts; 1 takes the first.
        hflip: Probability of a horizontal flip.
        photometric: Changes brightness, contrast, saturation and hue at random.

    Raises:
        ValueError: A value out of range.
    """

    def __init__(
        self,
        crop_size: tuple[int, int] = (512, 512),
        scales: tuple[float, float] = (0.5, 2.0),
        max_class_share: float = 0.75,
        hflip: float = 0.5,
        photometric: bool = True,
    ) -> None:
        if min(crop_size) < 32:
            raise ValueError(
                f"augment.crop_size must be at least 32 x 32 pixels, got {list(crop_size)}"
            )
        self.crop_size = crop_size
        self.scales = scales
        self.max_class_share = max_class_share
        self.hflip = hflip
        self.photometric = photometric

    def transform(self, data: SegmentationData, card: SegmenterCard) -> SegmentationTransform:
        """The transform of one training image.

        Args:
            data: Sizes.
            card: Colour of the padding.

        Raises:
            ValueError: A value out of range.
        """
        try:
            return segmentation_train_transform(
                crop_size=self.crop_size,
                short_edge=data.short_edge,
                long_edge=data.long_edge,
                scales=self.scales,
                max_class_share=self.max_class_share,
                hflip=self.hflip,
                photometric=self.photometric,
                mean=card.mean,
            )
        except ValueError as error:
            raise ValueError(f"augment: {error}") from error


# For small images, and for CPUs.
NARROW_HEADS: dict[str, dict[str, Any]] = {
    "upernet": {"channels": 64, "auxiliary_channels": 64},
}
_FAMILY = Family(
    task=TASK,
    kind="segmenter",
    is_official=is_official,
    recognise=lambda state: recognise(state)[:2],
)


class SegmenterSettings:
    """Which segmenter on which backbone, and what of it is trained.

    Args:
        segmenter: "upernet".
        backbone: Any model name of timm that gives maps at strides 4, 8, 16 and 32.
        heads: "published" has the published widths; "narrow" 64 channels.
        weights: Checkpoint to start from: a classifier's for the backbone, or a segmenter's, ours
            or mmsegmentation's, whose class layers are dropped when class counts differ.
        pretrained: Starts the backbone from timm's own weights, downloaded.
        drop_path_rate: Stochastic depth of the backbone's last block; published: 0.1 (S), 0.3 (B).
        batch_norm: BatchNorms of the backbone. "affine_frozen", as published: scale and shift stay
            as they are, statistics move; "frozen": both stay; "trained": neither does.
        frozen_stages: So many of the backbone's four stages are not trained.
        grad_checkpointing: Recomputes the backbone's activations in the backward pass to save
            memory.
        options: Further arguments of the segmenter, such as dice_weight or class_weights.

    Raises:
        FileNotFoundError: No such weights.
        ValueError: No such segmenter or option, or a value out of range.
    """

    def __init__(
        self,
        segmenter: str = "upernet",
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
            cls = segmenter_class(segmenter)
        except ValueError as error:
            raise ValueError(f"model.segmenter: {error}") from error
        check_model_settings(
            segmenter,
            cls,
            weights=weights,
            pretrained=pretrained,
            drop_path_rate=drop_path_rate,
            options=options or {},
        )
        self.segmenter = segmenter
        self.backbone = backbone
        self.weights = weights
        self.pretrained = pretrained
        self.drop_path_rate = drop_path_rate
        self.batch_norm = batch_norm
        self.frozen_stages = frozen_stages
        self.grad_checkpointing = grad_checkpointing
        narrow = NARROW_HEADS[segmenter] if heads == "narrow" else {}
        self.options = {**narrow, **(options or {})}

    def card(
        self, class_names: list[str], palette: list[list[int]], data: SegmentationData
    ) -> SegmenterCard:
        """How to rebuild the trained segmenter and feed it, without training-only settings.

        Args:
            class_names: Names of the data's classes.
            palette: Their colours.
            data: Sizes of the images, and how their masks count.

        Raises:
            ValueError: timm has no such backbone, or values that do not fit.
        """
        check_backbone(self.backbone)
        with torch.device("meta"):
            network = create_segmenter(
                self.segmenter, self.backbone, num_classes=len(class_names), **self.options
            )
        return SegmenterCard(
            segmenter=self.segmenter,
            backbone=self.backbone,
            options=self.options,
            class_names=class_names,
            palette=palette,
            mean=network.mean,
            std=network.std,
            short_edge=data.short_edge,
            long_edge=data.long_edge,
            size_rule=data.size_rule,
            reduce_zero_label=data.rule.reduce_zero_label,
            ignore_index=data.rule.ignore_index,
        )

    def build(self, card: SegmenterCard) -> Segmenter:
        """The segmenter to train.

        Args:
            card: From `card`.

        Raises:
            ValueError: A backbone or options that do not fit, or weights that do not.
        """
        segmenter = create_segmenter(
            card.segmenter,
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
            load_pyramid_weights(segmenter, card.segmenter, card.backbone, self.weights, _FAMILY)
        name = f"{card.segmenter} on {card.backbone}"
        try_out(segmenter, name, lambda: segmenter(torch.zeros(2, 3, 64, 96)))
        return segmenter
