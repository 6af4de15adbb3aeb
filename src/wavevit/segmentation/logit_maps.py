"""Logits of resized pictures to labels in the picture's own pixels, in bounded memory.

The logits of 150 classes for a photo of 24 megapixels would take 14 GB. So nothing here is ever
whole: logits are enlarged a stripe of rows at a time, and a stripe is done with when its labels are
known. Where the logits themselves are made as they are asked for, that happens in bands of columns,
whose width keeps what must be held within a budget.

Legend: K classes, H W rows and columns of the picture, h w those of the logits, n m those of a
part of the picture.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from wavevit.segmentation.resize import in_full_precision

Size = tuple[int, int]

# Logits that sliding windows hold, and probabilities that views of a picture are averaged in.
HELD_BYTES = 768 * 2**20
_STRIPE_BYTES = 32 * 2**20
_NUMBER_BYTES = 4
_MIN_BAND = 256  # columns of the picture


class ColumnLogits(Protocol):
    """Logits of some columns, asked for row by row."""

    def rows(self, first: int, last: int) -> Tensor:
        """Logits ``(K, last - first, columns)`` in float32 or float64.

        Args:
            first: First row; none is before that of the call before.
            last: Row to stop before.
        """
        ...


class LogitMap(Protocol):
    """Logits of a picture, whether they are there already or made when they are asked for.

    Attributes:
        num_classes: K.
        size: h and w.
        held_rows: Rows of logits that are held for the columns asked for; 0 if asking for few
            columns saves nothing.
    """

    num_classes: int
    size: Size
    held_rows: int

    def columns(self, first: int, last: int, most_rows: int) -> ColumnLogits:
        """Logits of a band of columns.

        Args:
            first: First column.
            last: Column to stop before.
            most_rows: Rows that are asked for at once, at most.
        """
        ...


class WholeLogits:
    """The logits of one pass over the whole picture.

    Args:
        logits: ``(K, h, w)`` float32 or float64.
    """

    def __init__(self, logits: Tensor) -> None:
        self.num_classes = logits.shape[0]
        self.size = (logits.shape[1], logits.shape[2])
        self.held_rows = 0
        self._logits = logits

    def columns(self, first: int, last: int, most_rows: int) -> "WholeLogits":
        """Logits of a band of columns.

        Args:
            first: First column.
            last: Column to stop before.
            most_rows: Not needed here.
        """
        del most_rows
        return WholeLogits(self._logits[:, :, first:last])

    def rows(self, first: int, last: int) -> Tensor:
        """Logits ``(K, last - first, w)``.

        Args:
            first: First row.
            last: Row to stop before.
        """
        return self._logits[:, first:last]


class MirroredLogits:
    """Logits of a picture from those of its mirror image, left and right exchanged.

    Args:
        mirrored: Of the mirror image.
    """

    def __init__(self, mirrored: LogitMap) -> None:
        self.num_classes = mirrored.num_classes
        self.size = mirrored.size
        self.held_rows = mirrored.held_rows
        self._mirrored = mirrored

    def columns(self, first: int, last: int, most_rows: int) -> "_MirroredColumns":
        """Logits of a band of columns.

        Args:
            first: First column.
            last: Column to stop before.
            most_rows: Rows that are asked for at once, at most.
        """
        w = self.size[1]
        return _MirroredColumns(self._mirrored.columns(w - last, w - first, most_rows))


@dataclass(frozen=True)
class _MirroredColumns:
    mirrored: ColumnLogits

    def rows(self, first: int, last: int) -> Tensor:
        return self.mirrored.rows(first, last).flip(-1)


class LabelMap(NamedTuple):
    """Labels of a picture; on the CPU.

    Attributes:
        labels: uint8 ``(H, W)`` in 0..K-1.
        confidence: float32 ``(H, W)`` probability of the label, in [0, 1], if it was asked for.
    """

    labels: Tensor
    confidence: Tensor | None


class Part(NamedTuple):
    """A rectangle of the picture, in pixels.

    Attributes:
        rows: n rows.
        columns: m columns.
    """

    rows: slice
    columns: slice


def labels_from_logits(logits: Tensor, size: Size, *, with_confidence: bool = False) -> LabelMap:
    """The most likely class of each pixel of a picture, from the logits of the resized one.

    As enlarging the logits (bilinear, align_corners False) and taking the first maximum.

    Args:
        logits: ``(K, h, w)`` of any float dtype, on any device; K up to 255.
        size: H and W of the picture.
        with_confidence: Whether probabilities are wanted too.
    """
    return labels_of(WholeLogits(in_full_precision(logits)), size, with_confidence=with_confidence)


def labels_of(logits: LogitMap, size: Size, *, with_confidence: bool = False) -> LabelMap:
    """The most likely class of each pixel of a picture.

    Args:
        logits: Of the picture, at any size.
        size: H and W of the picture.
        with_confidence: Whether probabilities are wanted too.
    """
    found = empty_label_map(size, with_confidence)
    for part, (block,) in parts([logits], size):
        best, labels = block.max(dim=0)
        found.labels[part] = labels.to(torch.uint8).cpu()
        if found.confidence is not None:
            # The softmax of the greatest: its own exponential is 1.
            found.confidence[part] = (block - best).exp_().sum(dim=0).reciprocal_().float().cpu()
    return found


def empty_label_map(size: Size, with_confidence: bool) -> LabelMap:
    """A map to be filled.

    Args:
        size: H and W.
        with_confidence: Whether it has probabilities.
    """
    confidence = torch.empty(size, dtype=torch.float32) if with_confidence else None
    return LabelMap(torch.empty(size, dtype=torch.uint8), confidence)


def parts(maps: Sequence[LogitMap], size: Size) -> Iterator[tuple[Part, list[Tensor]]]:
    """Logits of all parts of a picture, enlarged to its size (bilinear, align_corners False).

    What a pixel gets does not depend on the part that it lies in.

    Args:
        maps: At least one, each of any size.
        size: H and W of the picture.

    Yields:
        A part and its logits ``(K, n, m)`` by each map.
    """
    H, W = size
    band = _band_width(maps, W)
    row_bytes = _NUMBER_BYTES * maps[0].num_classes * band * len(maps)
    num_rows = max(_STRIPE_BYTES // row_bytes, 1)
    for left, right in _ranges(W, band):
        readers = [_Reader(logits, size, left, right, num_rows) for logits in maps]
        for top in range(0, H, num_rows):
            bottom = min(top + num_rows, H)
            blocks = [reader.rows(top, bottom) for reader in readers]
            yield Part(slice(top, bottom), slice(left, right)), blocks


def _band_width(maps: Sequence[LogitMap], width: int) -> int:
    """Columns of the picture, of `width` in all, that are worked on at a time."""
    held = sum(logits.held_rows * logits.size[1] / width for logits in maps)
    if held == 0:
        return width
    # Windows over the border of two bands are computed for both: narrow ones would cost much time.
    affordable = int(HELD_BYTES / (_NUMBER_BYTES * maps[0].num_classes * held))
    return min(width, max(affordable, _MIN_BAND))


def _ranges(length: int, longest: int) -> Iterator[tuple[int, int]]:
    """As few ranges of about the same length as cover 0..length."""
    count = math.ceil(length / longest)
    for number in range(count):
        yield number * length // count, (number + 1) * length // count


class _Reader:
    """Logits of a band of the picture's columns, at the picture's size.

    Args:
        logits: Of any size.
        size: H and W.
        left: First column of the picture.
        right: Column to stop before.
        num_rows: Rows of the picture that are asked for at once, at most.
    """

    def __init__(self, logits: LogitMap, size: Size, left: int, right: int, num_rows: int) -> None:
        (h, w), (H, W) = logits.size, size
        self._vertical = _Neighbours.of(h, H)
        self._horizontal = _Neighbours.of(w, W).part(left, right)
        # Positions are rounded, and n rows of the picture touch this many of the logits or fewer.
        most_rows = min(math.ceil(num_rows * h / H) + 3, h)
        self._logits = logits.columns(*self._horizontal.span, most_rows)

    def rows(self, top: int, bottom: int) -> Tensor:
        """Logits ``(K, bottom - top, right - left)``."""
        vertical = self._vertical.part(top, bottom)
        rows = self._logits.rows(*vertical.span)
        return vertical.apply_to_rows(self._horizontal.apply_to_columns(rows))


@dataclass(frozen=True)
class _Neighbours:
    """The two cells that each pixel of one side lies between.

    Attributes:
        first: int64 cells.
        second: int64 cells.
        weight: float64 share of the second in [0, 1]; 0 of all where nothing is resized.
        is_same: Whether the side has as many cells as pixels.
    """

    first: Tensor
    second: Tensor
    weight: Tensor
    is_same: bool

    @classmethod
    def of(cls, cells: int, pixels: int) -> "_Neighbours":
        position = (torch.arange(pixels, dtype=torch.float64) + 0.5) * (cells / pixels) - 0.5
        position.clamp_(min=0)
        first = position.long().clamp_(max=cells - 1)
        second = (first + 1).clamp_(max=cells - 1)
        return cls(first, second, position - first, cells == pixels)

    def part(self, start: int, stop: int) -> "_Neighbours":
        window = slice(start, stop)
        return _Neighbours(
            self.first[window], self.second[window], self.weight[window], self.is_same
        )

    @property
    def span(self) -> tuple[int, int]:
        """First cell, and the one to stop before."""
        last = self.first if self.is_same else self.second
        return int(self.first[0]), int(last[-1]) + 1

    def apply_to_columns(self, logits: Tensor) -> Tensor:
        """``(K, n, m)`` from the ``(K, n, cells)`` of the span."""
        if self.is_same:
            return logits
        start = int(self.first[0])
        shape = (*logits.shape[:2], len(self.first))
        # Four times as quick as indexing.
        one, other = (
            logits.gather(2, (cells - start).to(logits.device).expand(shape))
            for cells in (self.first, self.second)
        )
        return one.lerp_(other, self.weight.to(logits))

    def apply_to_rows(self, logits: Tensor) -> Tensor:
        """``(K, n, m)`` from the ``(K, cells, m)`` of the span."""
        if self.is_same:
            return logits
        enlarged = logits.new_empty(logits.shape[0], len(self.first), logits.shape[2])
        weight = self.weight.to(logits)[:, None]
        above, counts = self.first.unique_consecutive(return_counts=True)
        start, row = int(self.first[0]), 0
        for cell, count in zip(above.tolist(), counts.tolist(), strict=True):
            group = slice(row, row + count)  # pixels between the same two cells
            below = int(self.second[row])
            torch.lerp(
                logits[:, cell - start, None],
                logits[:, below - start, None],
                weight[group],
                out=enlarged[:, group],
            )
            row += count
        return enlarged
