"""What a segmentation run trains on and what it is measured on."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wavevit.data.segmentation.dataset import SegmentationDataset, SegmentationSource
from wavevit.data.segmentation.files import SegmentationFiles, open_segmentation
from wavevit.data.segmentation.layouts import PairPattern
from wavevit.data.segmentation.masks import LabelRule
from wavevit.data.segmentation.shapes import SegmentationShapes
from wavevit.training.fingerprint import digest, digest_names


@dataclass(frozen=True)
class SegmentationSplits:
    """Images to train on and images to measure on.

    Attributes:
        train: Images to train on.
        val: Images to measure on.
        held_out: Whether we drew `val` ourselves.
        description: One line for the log.
    """

    train: SegmentationSource
    val: SegmentationSource
    held_out: bool
    description: str

    def keep_validation(self, kept: NDArray[np.int64]) -> "SegmentationSplits":
        """The splits with some of the validation images only.

        Args:
            kept: Their indices.
        """
        return replace(self, val=self.val.subset(kept))

    def fingerprints(self) -> dict[str, str]:
        """Starts of SHA-256s that tell other content, by name.

        Images count by their names, not by their pixels; masks by the sizes of their files.
        """
        found = {"classes": digest_names(self.train.class_names)}
        for name, images in (("training", self.train), ("validation", self.val)):
            found[f"{name} images"] = digest_names(images.sample_ids())
            found[f"{name} masks"] = digest(_mask_pieces(images))
        return found


def _mask_pieces(images: SegmentationSource) -> Iterator[bytes]:
    if isinstance(images, SegmentationShapes):
        yield f"{images.seed} {images.image_size}".encode()
    elif isinstance(images, SegmentationDataset):
        for index in range(len(images)):
            yield str(os.path.getsize(images.pairs.mask_path(index))).encode()


def generated_splits(image_size: int) -> SegmentationSplits:
    """The built-in generated set.

    Args:
        image_size: Side of its images, pixels.
    """
    return SegmentationSplits(
        train=SegmentationShapes("train", image_size=image_size),
        val=SegmentationShapes("val", image_size=image_size),
        held_out=False,
        description=f"the built-in shapes of {image_size} x {image_size} px",
    )


def open_segmentation_splits(
    path: str,
    *,
    pattern: PairPattern,
    rule: LabelRule,
    num_classes: int | None,
    train_split: str,
    val_split: str | None,
    val_fraction: float,
    split_seed: int,
) -> SegmentationSplits:
    """The splits of image files with masks.

    Args:
        path: Folder, as in `open_segmentation`.
        pattern: Names of folders and endings of files.
        rule: How numbers in mask files are labels.
        num_classes: Where there is no classes.txt.
        train_split: Name of the split to train on; where there is but one split, that is it.
        val_split: Name of the split to measure on; None takes "val", and holds out images of the
            other where there is none.
        val_fraction: Share of the images to hold out.
        split_seed: Seed of that choice.

    Raises:
        FileNotFoundError: No such path.
        ValueError: Nothing usable there, or anything wrong with the masks.
        OSError: A file cannot be read.
    """
    files = open_segmentation(path, pattern=pattern, rule=rule, num_classes=num_classes)
    if val_split is None and "val" in files.splits and train_split != "val":
        val_split = "val"
    if val_split is None:
        train, val = hold_out_split(files, val_fraction, split_seed, train_split)
        what = f"{len(val):,} held out for validation"
    elif val_split == train_split:
        raise ValueError(
            f"data.train_split and data.val_split are both {train_split!r}: a network is not "
            "measured on what it has learned"
        )
    else:
        train, val = files.dataset(train_split), files.dataset(val_split)
        what = f"{len(val):,} of {val_split!r} for validation"
    return SegmentationSplits(
        train=train,
        val=val,
        held_out=val_split is None,
        description=f"{files.description}; {len(train):,} images to train on, {what}",
    )


def hold_out_split(
    files: SegmentationFiles, fraction: float, seed: int, split: str = "train"
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Images to train on and those held out, of data without a split for validation.

    Args:
        files: The data.
        fraction: Share of the images to hold out.
        seed: Of that choice.
        split: To draw from; where there is but one, that is it.

    Raises:
        ValueError: No such split, too few images, or anything wrong with the masks.
    """
    if split not in files.splits and len(files.splits) == 1:
        split = files.splits[0]
    return files.dataset(split).hold_out(fraction=fraction, seed=seed)
