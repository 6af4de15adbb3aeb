"""Mask files: PNGs whose pixels are numbers of classes, and the labels they stand for.

Legend: H rows, W columns, K classes. A number is what stands in a file; a label is in [0, K), or
255 for pixels to be ignored.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from wavevit.data.images import (
    IMAGE_FORMATS,
    MAX_IMAGE_PIXELS,
    UnreadableImageError,
    open_regular_file,
    pillow_warnings_ignored,
    why_unreadable,
)
from wavevit.data.segmentation.problems import counted
from wavevit.data.segmentation.sample import IGNORED

Numbers = NDArray[np.uint8] | NDArray[np.uint16]

_LARGEST_NUMBER = 2**16 - 1
_KINDS = ("1", "L", "P", "I", "I;16")  # Pillow's modes of one channel of whole numbers
# Pillow spreads grey levels of 2 and 4 bits over 8: by these factors.
_SPREAD = {"L;2": 85, "L;4": 17}
_SHOWN = 5  # numbers without a class in one line


class MaskError(ValueError):
    """A mask that is not damaged, but wrong: `path` says which file, `reason` why, in a line.

    It is no `UnreadableImageError`, whose files training replaces by others: this one stops it.
    """

    kind: ClassVar[str]
    """A key of `problems.ERROR_KINDS`."""

    def __init__(self, path: str, reason: str | None = None) -> None:
        # From a text alone, torch makes the error again that a worker process has raised.
        advice = "`wavevit check-data` lists all such files"
        super().__init__(path if reason is None else f"{path!r}: {reason} ({advice})")
        self.path = path
        self.reason = path if reason is None else reason


class MaskKindError(MaskError):
    """A file that is a picture, but none of numbers."""

    kind = "mask_kind"


class MaskSizeError(MaskError):
    """An image of another size than its mask; `path` is the image's."""

    kind = "mask_size"


class UnknownLabelError(MaskError):
    """A mask with numbers that no class has."""

    kind = "unknown_label"


@dataclass(frozen=True)
class LabelRule:
    """How numbers in mask files are labels. 255 is ignored by every rule.

    Attributes:
        ignore_index: Another number that is ignored; None for no other.
        reduce_zero_label: Whether 0 is ignored and the first class has the number 1, as in
            ADE20K's files.

    Raises:
        ValueError: A number out of range.
    """

    ignore_index: int | None = None
    reduce_zero_label: bool = False

    def __post_init__(self) -> None:
        if self.ignore_index is not None and not 0 <= self.ignore_index <= _LARGEST_NUMBER:
            raise ValueError(
                f"ignore_index is a number of mask files in [0, {_LARGEST_NUMBER}], got "
                f"{self.ignore_index}"
            )

    @property
    def first(self) -> int:
        """The number of the first class."""
        return int(self.reduce_zero_label)

    def is_ignored(self, number: int) -> bool:
        """Whether a number is for pixels to be ignored.

        Args:
            number: Of a mask file.
        """
        return number == IGNORED or number == self.ignore_index or number < self.first

    def count_labels(self, counts: Mapping[int, int]) -> dict[int, int]:
        """Pixels of each label, of classes that there are or not; without the ignored ones.

        Args:
            counts: Pixels of each number.
        """
        return {n - self.first: c for n, c in counts.items() if not self.is_ignored(n)}

    def to_labels(self, numbers: Numbers, num_classes: int) -> NDArray[np.uint8] | None:
        """The labels of a mask, in memory of their own; None if it has others than of K classes.

        Args:
            numbers: (H, W), of a mask file.
            num_classes: K.

        Returns:
            (H, W).
        """
        is_ignored = None if self.ignore_index is None else numbers == self.ignore_index
        if numbers.dtype == np.uint8:
            labels = numbers.copy()
        else:
            is_wide = numbers > IGNORED
            if is_ignored is not None:
                is_wide &= ~is_ignored
            if is_wide.any():
                return None
            labels = numbers.astype(np.uint8)
        if self.reduce_zero_label:
            labels -= np.uint8(1)  # 0 becomes 255
            labels[numbers == IGNORED] = IGNORED
        if is_ignored is not None:
            labels[is_ignored] = IGNORED
        # One more wraps 255 to 0, so that the largest of the others is left.
        largest = int((labels + np.uint8(1)).max()) - 1
        return labels if largest < num_classes else None

    def unknown(self, counts: Mapping[int, int], num_classes: int) -> dict[int, int]:
        """The numbers that are neither ignored nor of a class, and their pixels.

        Args:
            counts: Pixels of each number.
            num_classes: K.
        """
        last = self.first + num_classes - 1
        return {n: c for n, c in counts.items() if n > last and not self.is_ignored(n)}

    def unknown_text(self, unknown: Mapping[int, int], num_classes: int) -> str:
        """What to say of numbers that no class has, and what to do.

        Args:
            unknown: These numbers, at least one, and their pixels.
            num_classes: K.
        """
        listed = sorted(unknown.items())
        shown = ", ".join(f"{n} in {counted(count, 'pixel')}" for n, count in listed[:_SHOWN])
        hidden = len(listed) - _SHOWN
        more = f" and {counted(hidden, 'other label')}" if hidden > 0 else ""
        last = self.first + num_classes - 1
        text = f"label {shown}{more}; the {num_classes} classes are {self.first} to {last}"
        remedies = []
        if self.ignore_index is None and len(listed) == 1:
            remedies.append(f"ignore_index={listed[0][0]} ignores it")
        if not self.reduce_zero_label and listed[0][0] == num_classes and len(listed) == 1:
            remedies.append("reduce_zero_label ignores 0 and counts classes from 1")
        return "; ".join([text, *remedies])


def read_mask(path: str | Path) -> Numbers:
    """The numbers of a mask file, whatever colours a palette gives them.

    Args:
        path: Of a PNG file of one channel: grey of 1 to 16 bits, or with a palette.

    Returns:
        (H, W) numbers; uint16 where the file has 16 bits.

    Raises:
        MaskKindError: A picture of another kind, such as an RGB one.
        UnreadableImageError: It cannot be decoded.
    """
    with _opened(path) as image:
        packing = image.tile[0].args
        numbers = np.asarray(image)
    if packing in _SPREAD:
        return numbers // np.uint8(_SPREAD[packing])
    return numbers.astype(np.uint16 if image.mode in ("I", "I;16") else np.uint8, copy=False)


def read_palette(path: str | Path) -> list[list[int]]:
    """The colours of the numbers 0, 1, ... in a mask file; none without a palette.

    Args:
        path: Of the file.

    Returns:
        Red, green, blue in [0, 255] of each.

    Raises:
        MaskKindError: A picture of another kind.
        UnreadableImageError: It cannot be decoded.
    """
    with _opened(path) as image:
        flat = image.getpalette("RGB") or []
    return [flat[start : start + 3] for start in range(0, len(flat), 3)]


def load_labels(path: str | Path, num_classes: int, rule: LabelRule) -> NDArray[np.uint8]:
    """The labels of a mask file.

    Args:
        path: As in `read_mask`.
        num_classes: K.
        rule: How its numbers are labels.

    Returns:
        (H, W), in memory of its own.

    Raises:
        UnknownLabelError: It has numbers that no class has.
        MaskKindError: As in `read_mask`.
        UnreadableImageError: As in `read_mask`.
    """
    numbers = read_mask(path)
    labels = rule.to_labels(numbers, num_classes)
    if labels is None:
        unknown = rule.unknown(count_numbers(numbers), num_classes)
        raise UnknownLabelError(os.fspath(path), rule.unknown_text(unknown, num_classes))
    return labels


def count_numbers(numbers: Numbers) -> dict[int, int]:
    """Pixels of each number that is there.

    Args:
        numbers: (H, W).
    """
    counts = np.bincount(numbers.ravel())
    found = np.flatnonzero(counts)
    return dict(zip(found.tolist(), counts[found].tolist(), strict=True))


@contextmanager
def _opened(path: str | Path) -> Iterator[ImageFile.ImageFile]:
    """A mask that may be decoded inside; damage found there is an `UnreadableImageError`."""
    name = os.fspath(path)
    try:
        with open_regular_file(path) as stream:
            with pillow_warnings_ignored():
                image = Image.open(stream, formats=IMAGE_FORMATS)
            with image:
                _check_kind(image, name)
                yield image
    except (UnreadableImageError, MaskError):
        raise
    except Exception as error:
        # Whatever damaged files make the decoder raise, as in `images`.
        raise UnreadableImageError(name, why_unreadable(error)) from error


def _check_kind(image: Image.Image, path: str) -> None:
    expected = "expected a PNG of one channel whose pixels are numbers of classes"
    if image.format != "PNG":
        raise MaskKindError(path, f"{expected}, got a {image.format} file")
    if image.mode not in _KINDS:
        raise MaskKindError(
            path,
            f"{expected} (grey or with a palette), got {image.mode} colours; write the number of "
            "each colour's class instead",
        )
    if image.width * image.height > MAX_IMAGE_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        raise UnreadableImageError(path, f"{size}, over the limit of {MAX_IMAGE_PIXELS:,} pixels")
