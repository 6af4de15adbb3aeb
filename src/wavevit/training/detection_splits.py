"""What a detection run trains on and what it is measured on.

Shape legend: I images, M objects of all images, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wavevit.data.detection.annotations import DetectionAnnotations
from wavevit.data.detection.dataset import DetectionDataset, DetectionSource
from wavevit.data.detection.files import read_detection
from wavevit.data.detection.layouts import DetectionFormat, find_detection_layout
from wavevit.data.detection.shapes import DetectionShapes
from wavevit.data.holdout import choose_val
from wavevit.training.fingerprint import digest, digest_names


@dataclass(frozen=True)
class DetectionSplits:
    """Images to train on and images to measure on.

    Attributes:
        train: Images to train on.
        val: Images to measure on.
        val_inputs: The same images for the detector, which needs no masks of them.
        held_out: Whether we drew `val` ourselves.
        description: One line for the log.
    """

    train: DetectionSource
    val: DetectionSource
    val_inputs: DetectionSource
    held_out: bool
    description: str

    def keep_validation(self, kept: NDArray[np.int64]) -> "DetectionSplits":
        """The splits with some of the validation images only.

        Args:
            kept: Their indices.
        """
        assert isinstance(self.val, DetectionDataset)
        assert isinstance(self.val_inputs, DetectionDataset)
        return replace(self, val=self.val.subset(kept), val_inputs=self.val_inputs.subset(kept))

    def fingerprints(self) -> dict[str, str]:
        """Starts of SHA-256s that tell other content, by name.

        Images count by their names and sizes, not by their pixels; objects by boxes, labels and
        areas, which masks change.
        """
        found = {"classes": digest_names(self.train.class_names)}
        for name, images in (("training", self.train), ("validation", self.val)):
            found[f"{name} images"] = digest_names(images.sample_ids())
            found[f"{name} annotations"] = digest(_annotation_pieces(images))
        return found


def _annotation_pieces(images: DetectionSource) -> Iterator[bytes]:
    if isinstance(images, DetectionShapes):
        yield f"{images.seed} {images.image_size}".encode()
    elif isinstance(images, DetectionDataset):
        table = images.annotations
        for column in (
            table.image_ids,
            table.sizes,
            table.num_objects,
            table.labels,
            table.crowd,
            table.boxes_xywh,
            table.areas,
        ):
            yield np.ascontiguousarray(column).tobytes()


def generated_splits(image_size: int, *, with_masks: bool) -> DetectionSplits:
    """The built-in generated set.

    Args:
        image_size: Side of its images, pixels.
        with_masks: Whether masks are trained.
    """
    return DetectionSplits(
        train=DetectionShapes("train", image_size=image_size, with_masks=with_masks),
        val=DetectionShapes("val", image_size=image_size, with_masks=with_masks),
        val_inputs=DetectionShapes("val", image_size=image_size),
        held_out=False,
        description=f"the built-in shapes of {image_size} x {image_size} px",
    )


def open_detection(
    path: str,
    *,
    format: DetectionFormat | None,
    train_split: str,
    val_split: str | None,
    val_fraction: float,
    split_seed: int,
    keep_empty: bool,
    clip: bool,
    with_masks: bool,
) -> DetectionSplits:
    """The splits of annotated image files.

    Args:
        path: Folder or file, as in `find_detection_layout`.
        format: As there.
        train_split: Name of the split to train on; where there is but one split, that is it.
        val_split: Name of the split to measure on; None takes "val", and holds out images of the
            other where there is none.
        val_fraction: Share of the images to hold out.
        split_seed: Seed of that choice.
        keep_empty: Whether images without objects are trained on.
        clip: Whether what sticks out of its image is cut; otherwise it is an error.
        with_masks: Whether masks are trained.

    Raises:
        FileNotFoundError: No such path.
        ValueError: Nothing usable there, anything wrong with the annotations, images that are in
            both splits, or objects without masks where masks are trained.
        OSError: A file cannot be read.
    """
    layout = find_detection_layout(path, format)
    names = list(layout.splits)
    if train_split not in names and len(names) == 1:
        train_split = names[0]
    if val_split is None and "val" in names and train_split != "val":
        val_split = "val"
    train = whole = read_detection(layout, train_split, with_masks=with_masks, clip=clip)
    if val_split is None:
        train, val = _hold_out(path, whole, val_fraction, split_seed)
        what = f"{len(val):,} held out for validation"
    else:
        classes = whole.class_names
        val = read_detection(
            layout, val_split, class_names=classes, with_masks=with_masks, clip=clip
        )
        _refuse_common(train, val, (train_split, val_split))
        what = f"{len(val):,} of {val_split!r} for validation"
    used = DetectionDataset(train, with_masks=with_masks).for_training(keep_empty=keep_empty)
    dropped = len(train) - len(used)
    left_out = f" ({dropped:,} without objects, or too small, left out)" if dropped else ""
    return DetectionSplits(
        train=used,
        val=DetectionDataset(val, with_masks=with_masks),
        val_inputs=DetectionDataset(val),
        held_out=val_split is None,
        description=f"{layout.description}; {len(used):,} images to train on{left_out}, {what}",
    )


def _hold_out(
    path: str, annotations: DetectionAnnotations, fraction: float, seed: int
) -> tuple[DetectionAnnotations, DetectionAnnotations]:
    """Images to train on, and those held out, whatever classes are in them."""
    all_alike = np.zeros(len(annotations), np.int64)
    is_val = choose_val(annotations.sample_ids(), all_alike, fraction=fraction, seed=seed)
    val = annotations.subset(np.flatnonzero(is_val))
    if not len(val) or not val.num_objects.sum():
        raise ValueError(
            f"{path}: no image with objects is left to hold out for validation, of "
            f"{len(annotations):,} in all; add images, or name their split with data.val_split"
        )
    return annotations.subset(np.flatnonzero(~is_val)), val


def _refuse_common(
    train: DetectionAnnotations, val: DetectionAnnotations, names: tuple[str, str]
) -> None:
    common = set(train.sample_ids()) & set(val.sample_ids())
    if common:
        raise ValueError(
            f"{len(common):,} images are in both {names[0]!r} and {names[1]!r}, such as "
            f"{min(common)}; choose other data.train_split and data.val_split"
        )
