"""Intersection over union of label maps, the same for any number of processes.

Shape legend: N images, H rows, W columns, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

IGNORED = 255
"""Label of pixels that do not count."""

_MAX_CLASSES = 255
_VALUES = 256  # of a byte
_PIXELS_AT_ONCE = 2**20


@dataclass(frozen=True)
class SegmentationRows:
    """What is kept of images, in the order of the sample ids; can be pickled and sent.

    Attributes:
        sample_ids: Names of the images, sorted.
        num_pixels: (N,) pixels that count.
        num_right: (N,) those whose predicted class is the true one.
        mean_iou: (N,) mean over the classes that are in the image or predicted in it; NaN where no
            pixel counts.
        confusion: (K, K) pixels of all N images by true class (row) and predicted class (column).
    """

    sample_ids: list[str]
    num_pixels: IntArray
    num_right: IntArray
    mean_iou: FloatArray
    confusion: IntArray

    def __len__(self) -> int:
        return len(self.sample_ids)


@dataclass(frozen=True)
class SegmentationResult:
    """What evaluation found. All shares are fractions in [0, 1].

    Attributes:
        class_names: K names.
        confusion: (K, K) pixels by true class (row) and predicted class (column).
        rows: Every image.
    """

    class_names: list[str]
    confusion: IntArray
    rows: SegmentationRows

    @property
    def num_images(self) -> int:
        """Images evaluated."""
        return len(self.rows)

    @cached_property
    def class_counts(self) -> IntArray:
        """(K,) pixels of each true class."""
        counts: IntArray = self.confusion.sum(axis=1)
        return counts

    @cached_property
    def class_iou(self) -> FloatArray:
        """(K,) IoU of each class; NaN where it is neither in the truth nor predicted."""
        return class_iou(self.confusion)

    @cached_property
    def class_accuracy(self) -> FloatArray:
        """(K,) share of each true class that is found; NaN where there are no such pixels."""
        return _shares(np.diag(self.confusion), self.class_counts)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that have an IoU."""
        return float(np.nanmean(self.class_iou))

    @property
    def mean_accuracy(self) -> float:
        """Mean over the classes that have an accuracy."""
        return float(np.nanmean(self.class_accuracy))

    @property
    def pixel_accuracy(self) -> float:
        """Share of all pixels whose predicted class is the true one."""
        return int(np.trace(self.confusion)) / int(self.confusion.sum())

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean IoU of the true classes, weighted by their pixels."""
        used = self.class_counts > 0
        weights = self.class_counts[used] / self.confusion.sum()
        return float((weights * self.class_iou[used]).sum())

    def summary(self) -> dict[str, float]:
        """The single numbers, by name."""
        return {
            "mean_iou": self.mean_iou,
            "mean_accuracy": self.mean_accuracy,
            "pixel_accuracy": self.pixel_accuracy,
            "frequency_weighted_iou": self.frequency_weighted_iou,
        }


class SegmentationMetrics:
    """Counts pixels by true and predicted class, in whole numbers, and notes which images.

    So the result is the same to the bit for any order of the images and for rows that were counted
    in several processes and merged. One matrix is kept, and of each image three numbers.

    A class that is neither in the truth nor predicted in any image has no IoU and is left out of
    the mean, as in mmsegmentation.

    Args:
        class_names: K names, 1 to 255.

    Raises:
        ValueError: Another number of classes.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        if not 1 <= len(class_names) <= _MAX_CLASSES:
            raise ValueError(f"expected 1 to {_MAX_CLASSES} classes, got {len(class_names)}")
        self.class_names = list(class_names)
        self.num_classes = len(class_names)
        self._numbers: dict[str, tuple[int, int, float]] = {}
        self._confusion = np.zeros((self.num_classes, self.num_classes), np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    def update(
        self,
        sample_id: str,
        predicted: Tensor | NDArray[np.integer],
        labels: Tensor | NDArray[np.integer],
    ) -> None:
        """Adds an image.

        Args:
            sample_id: Name, never seen before.
            predicted: (H, W) classes in [0, K), of any integer dtype, on any device; quickest as
                uint8.
            labels: (H, W) true classes in [0, K); 255 where a pixel does not count.

        Raises:
            ValueError: Wrong shapes, a value outside the classes, or an image that was added
                before.
        """
        self._check_new(sample_id)
        confusion = self._count(sample_id, _to_array(predicted), _to_array(labels))
        num_pixels, num_right = int(confusion.sum()), int(np.trace(confusion))
        mean_iou = float(np.nanmean(class_iou(confusion))) if num_pixels else float("nan")
        self._numbers[sample_id] = (num_pixels, num_right, mean_iou)
        self._confusion += confusion

    def merge(self, rows: SegmentationRows) -> None:
        """Adds images of another accumulator, e.g. of another process.

        Args:
            rows: What `rows` of the other one returned.

        Raises:
            ValueError: Other classes, or an image that was added before: it would count twice.
        """
        if rows.confusion.shape != self._confusion.shape:
            raise ValueError(
                f"expected counts of {self.num_classes} classes, got {len(rows.confusion)}"
            )
        for sample_id in rows.sample_ids:
            self._check_new(sample_id)
        numbers = zip(
            rows.num_pixels.tolist(), rows.num_right.tolist(), rows.mean_iou.tolist(), strict=True
        )
        self._numbers.update(zip(rows.sample_ids, numbers, strict=True))
        self._confusion += rows.confusion

    def rows(self) -> SegmentationRows:
        """Every image so far, in the order of the sample ids."""
        sample_ids = sorted(self._numbers)
        numbers = [self._numbers[sample_id] for sample_id in sample_ids]
        return SegmentationRows(
            sample_ids=sample_ids,
            num_pixels=np.array([row[0] for row in numbers], np.int64),
            num_right=np.array([row[1] for row in numbers], np.int64),
            mean_iou=np.array([row[2] for row in numbers], np.float64),
            confusion=self._confusion.copy(),
        )

    def compute(self) -> SegmentationResult:
        """The metrics of all images so far.

        Raises:
            ValueError: There are none, or no pixel of them counts.
        """
        if not self._numbers:
            raise ValueError("no images to compute metrics of; the data set is empty")
        if not self._confusion.any():
            raise ValueError(
                f"all pixels of the {len(self):,} images are labelled {IGNORED}, to be ignored; "
                "check the label files, their ignore index and reduce_zero_label"
            )
        rows = self.rows()
        return SegmentationResult(self.class_names, rows.confusion, rows)

    def _check_new(self, sample_id: str) -> None:
        if sample_id in self._numbers:
            raise ValueError(
                f"image {sample_id!r} came twice; every image must be evaluated exactly once"
            )

    def _count(
        self, sample_id: str, predicted: NDArray[np.integer], labels: NDArray[np.integer]
    ) -> IntArray:
        """(K, K) pixels of an image by true and predicted class."""
        if predicted.shape != labels.shape or labels.ndim != 2:
            raise ValueError(
                f"image {sample_id!r}: expected predicted classes and labels (H, W) of one size, "
                f"got {predicted.shape} and {labels.shape}"
            )
        K = self.num_classes
        counts = np.zeros((_VALUES, _VALUES), np.int64)
        rows = max(_PIXELS_AT_ONCE // max(labels.shape[1], 1), 1)
        for start in range(0, len(labels), rows):  # counting takes eight bytes a pixel
            truth, guess = labels[start : start + rows], predicted[start : start + rows]
            self._check_range(sample_id, truth, guess)
            # One count for every pair of bytes: no pixel needs to be left out beforehand.
            pairs = truth.astype(np.uint16) << 8 | guess.astype(np.uint16)
            counts += np.bincount(pairs.ravel(), minlength=_VALUES**2).reshape(_VALUES, _VALUES)
        unknown = np.flatnonzero(counts[K:IGNORED].any(axis=1))
        if len(unknown):
            raise self._bad_value(sample_id, "label", int(unknown[0]) + K)
        unknown = np.flatnonzero(counts[:, K:].any(axis=0))
        if len(unknown):
            raise self._bad_value(sample_id, "predicted class", int(unknown[0]) + K)
        return counts[:K, :K]

    def _check_range(self, sample_id: str, *maps: NDArray[np.integer]) -> None:
        """Raises unless all values are those of a byte."""
        for name, values in zip(("label", "predicted class"), maps, strict=True):
            if values.dtype == np.uint8 or not values.size:
                continue
            for value in (int(values.min()), int(values.max())):
                if not 0 <= value < _VALUES:
                    raise self._bad_value(sample_id, name, value)

    def _bad_value(self, sample_id: str, name: str, value: int) -> ValueError:
        or_ignored = f", or {IGNORED} for pixels that do not count" if name == "label" else ""
        return ValueError(
            f"image {sample_id!r} has the {name} {value}; expected those of {self.num_classes} "
            f"classes (0 to {self.num_classes - 1}){or_ignored}"
        )


def class_iou(confusion: IntArray) -> FloatArray:
    """(K,) intersection over union of each class; NaN where it is nowhere.

    Args:
        confusion: (K, K) pixels by true class (row) and predicted class (column).
    """
    right = np.diag(confusion)
    return _shares(right, confusion.sum(axis=1) + confusion.sum(axis=0) - right)


def _shares(parts: IntArray, wholes: IntArray) -> FloatArray:
    shares = np.full(len(wholes), np.nan)
    np.divide(parts, wholes, out=shares, where=wholes > 0)
    return shares


def _to_array(values: Tensor | NDArray[np.integer]) -> NDArray[np.integer]:
    array: NDArray[np.integer] = (
        values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    )
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"expected classes as whole numbers, got {array.dtype}")
    return array
