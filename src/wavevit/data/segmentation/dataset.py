"""Segmentation data sets: an image with a label per pixel, by index.

Shape legend: N images, K classes, H rows, W columns.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from wavevit.data.holdout import choose_val
from wavevit.data.image_header import read_header
from wavevit.data.segmentation.class_list import SegmentationClasses
from wavevit.data.segmentation.masks import LabelRule, MaskSizeError, load_labels
from wavevit.data.segmentation.pairs import FilePairs
from wavevit.data.segmentation.sample import SegmentationSample
from wavevit.data.sized_image import ImageSizeError, load_sized


class SegmentationSource(Protocol):
    """Images with a label per pixel, addressed by index."""

    class_names: list[str]
    """Name of every label."""

    palette: list[list[int]]
    """Red, green, blue in [0, 255] of every label."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def sample_id(self, index: int) -> str:
        """Unique name of an image, a posix path that is the same on every machine."""
        ...

    def sample_ids(self) -> Iterator[str]:
        """The names of all images in order."""
        ...

    def load(self, index: int) -> SegmentationSample:
        """An image and its labels; raises `UnreadableImageError` and `masks.MaskError`."""
        ...

    def subset(self, indices: NDArray[np.int64]) -> "SegmentationSource":
        """The images at `indices`, in that order, with the same classes."""
        ...


class SegmentationDataset:
    """Image files with masks.

    Args:
        pairs: The files.
        classes: What labels stand for.
        rule: How numbers in mask files are labels.
        description: One line for the log: where all this was read from.
    """

    def __init__(
        self, pairs: FilePairs, classes: SegmentationClasses, rule: LabelRule, description: str
    ) -> None:
        self.pairs = pairs
        self.classes = classes
        self.class_names = classes.names
        self.palette = classes.palette
        self.rule = rule
        self.description = description

    def __len__(self) -> int:
        return len(self.pairs)

    def sample_id(self, index: int) -> str:
        """Posix path of an image file, relative to the data set's folder."""
        return self.pairs.images[index]

    def sample_ids(self) -> Iterator[str]:
        """The sample ids of all images in order."""
        return iter(self.pairs.images)

    def mask_ids(self) -> Iterator[str]:
        """Posix paths of the masks of all images, in order."""
        return iter(self.pairs.masks)

    def load(self, index: int) -> SegmentationSample:
        """An image and its labels.

        The image is the upright one, or the one as stored where that has its mask's size.

        Args:
            index: Of the image.

        Raises:
            UnreadableImageError: If the image or its mask cannot be decoded. It names the file.
            MaskError: If they differ in size, or the mask is no picture of numbers or has one that
                no class has. It names the file.
        """
        labels = load_labels(self.pairs.mask_path(index), len(self.class_names), self.rule)
        H, W = labels.shape
        partner = f"its mask {self.pairs.masks[index]} has"
        try:
            picture = load_sized(self.pairs.image_path(index), (H, W), partner)
        except ImageSizeError as error:
            raise MaskSizeError(error.path, error.reason) from error
        return SegmentationSample(
            # A view of (H, W, 3) memory, which resizing is quickest with.
            image=torch.from_numpy(np.array(picture)).permute(2, 0, 1),
            labels=torch.from_numpy(labels),
        )

    def check_mask(self, index: int) -> None:
        """Raises what `load` would of a wrong mask; the image is decoded only if sizes differ.

        Args:
            index: Of the image.

        Raises:
            UnreadableImageError: If the mask cannot be decoded, or the image does not begin like
                one.
            MaskError: As in `load`.
        """
        labels = load_labels(self.pairs.mask_path(index), len(self.class_names), self.rule)
        if read_header(self.pairs.image_path(index)).size != labels.shape:
            self.load(index)  # the one as stored may fit

    def subset(self, indices: NDArray[np.int64]) -> "SegmentationDataset":
        """The data set of the images at `indices`, in that order, with the same classes."""
        return SegmentationDataset(
            self.pairs.take(indices), self.classes, self.rule, self.description
        )

    def hold_out(
        self, *, fraction: float, seed: int
    ) -> "tuple[SegmentationDataset, SegmentationDataset]":
        """Images to train on, and those held out for validation, whatever classes are in them.

        Args:
            fraction: Share to hold out, in (0, 1); at least one image on each side.
            seed: Any integer; the same one holds out the same images.

        Raises:
            ValueError: There are fewer than two images.
        """
        if len(self) < 2:
            raise ValueError(
                f"{self.description}: expected two or more images to hold some out for "
                f"validation, got {len(self)}; add images, or name their split"
            )
        all_alike = np.zeros(len(self), np.int64)
        is_val = choose_val(self.sample_ids(), all_alike, fraction=fraction, seed=seed)
        return self.subset(np.flatnonzero(~is_val)), self.subset(np.flatnonzero(is_val))
