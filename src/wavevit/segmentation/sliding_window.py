"""Logits of pictures of any size from overlapping windows, averaged where they overlap.

The windows and averages are mmsegmentation's (its "slide" mode), but the sums of the whole picture
never exist: windows are looked at row after row, and only rows that are still wanted or not yet
complete are held, of the band of columns that is worked on.

Legend: B windows at once, K classes, h w rows and columns of the picture as it is looked at.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wavevit.segmentation.segmenter import MIN_SIDE

# Logits (B, K, rows, columns) in float32 or float64 of B parts (B, 3, rows, columns) of a picture.
RunNetwork = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SlidingWindow:
    """How windows lie on a picture.

    Attributes:
        window: Side of a window, pixels; where a picture is smaller, the window is, too.
        stride: From one window to the next, pixels; None is two thirds of the window.
        resize: Whether the picture is first resized as for a network that sees all of it, as
            mmsegmentation does. Without, windows show it at its own resolution.
        taper: Whether a window counts less towards its borders, where the network sees little of
            what is around, so that one window fades into the next. Without, all of it counts the
            same, as in mmsegmentation.
    """

    window: int
    stride: int | None = None
    resize: bool = False
    taper: bool = False

    def __post_init__(self) -> None:
        if self.window < MIN_SIDE:
            raise ValueError(
                f"expected sliding windows of at least {MIN_SIDE} pixels, got {self.window}"
            )
        if self.stride is not None and not 1 <= self.stride <= self.window:
            raise ValueError(
                "expected a stride from 1 pixel to the window's side, for windows without gaps; "
                f"got {self.stride} for windows of {self.window}"
            )

    @property
    def step(self) -> int:
        """The stride, pixels."""
        return self.window * 2 // 3 if self.stride is None else self.stride


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one side; the last one is moved back inside.

    Args:
        length: Of the side, pixels.
        window: Pixels; of a shorter side all of it.
        stride: Pixels, at most those of the window.
    """
    count = max(length - window + stride - 1, 0) // stride + 1
    return [min(i * stride, max(length - window, 0)) for i in range(count)]


class SlidingLogits:
    """The averaged logits of all windows; windows are run when their rows are asked for.

    Args:
        picture: ``(3, h, w)`` of any dtype, on any device; kept as it is, windows are cut from it.
        run: The network.
        num_classes: K.
        window: Side of the windows, pixels.
        stride: Pixels.
        taper: Whether windows count less towards their borders.
        batch_size: Windows at once.
    """

    def __init__(
        self,
        picture: Tensor,
        run: RunNetwork,
        num_classes: int,
        *,
        window: int,
        stride: int,
        taper: bool = False,
        batch_size: int = 1,
    ) -> None:
        self.num_classes = num_classes
        self.size = (picture.shape[1], picture.shape[2])
        self.window_size = (min(window, self.size[0]), min(window, self.size[1]))
        self.held_rows = self.window_size[0]
        self.tops = window_starts(self.size[0], window, stride)
        self.lefts = window_starts(self.size[1], window, stride)
        overlap = window - stride if taper else 0
        self.weights = tuple(_weights(side, overlap) for side in self.window_size)
        self._picture = picture
        self._run = run
        self._batch_size = batch_size

    def columns(self, first: int, last: int, most_rows: int) -> "_WindowColumns":
        """Logits of a band of columns.

        Args:
            first: First column.
            last: Column to stop before.
            most_rows: Rows that are asked for at once, at most.
        """
        return _WindowColumns(self, first, last, most_rows)

    def logits_of(self, top: int, lefts: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """First column and logits ``(K, rows, columns)`` of some windows of a row, in order.

        Args:
            top: First row of the windows.
            lefts: First columns.

        Yields:
            One window after the other.
        """
        rows, columns = self.window_size
        for i in range(0, len(lefts), self._batch_size):
            batch = lefts[i : i + self._batch_size]
            cut = [self._picture[:, top : top + rows, x : x + columns] for x in batch]
            logits = self._run(torch.stack(cut))
            yield from zip(batch, logits, strict=True)
            del logits  # they take as much as the network does, and are not needed beside the next


class _WindowColumns:
    """Averaged logits of the columns first..last, top to bottom.

    Held are the sums of rows start..start + len(sums). Those above the next row of windows are
    complete.
    """

    def __init__(self, source: SlidingLogits, first: int, last: int, most_rows: int) -> None:
        self._source = source
        self._first, self._last = first, last
        (rows, columns), (h, w) = source.window_size, source.size
        self._lefts = [x for x in source.lefts if x < last and x + columns > first]
        vertical, horizontal = source.weights
        self._weight = vertical[:, None] * horizontal
        # Products of sums: of the weights of all windows that a pixel lies in.
        self._totals = (
            _totals(source.tops, vertical, h)[:, None],
            _totals(self._lefts, horizontal, w)[first:last],
        )
        # Rows asked for may begin above the windows that complete them.
        self._num_rows = min(rows + most_rows, h)
        self._sums: Tensor | None = None
        self._start = 0
        self._next = 0  # of the source's tops

    def rows(self, first: int, last: int) -> Tensor:
        tops = self._source.tops
        while self._next < len(tops) and tops[self._next] < last:
            self._add_windows(tops[self._next], first)
            self._next += 1
        assert self._sums is not None, "the first row of windows begins at the first row"
        sums = self._sums[:, first - self._start : last - self._start]
        vertical, horizontal = self._totals
        return sums / (vertical[first:last] * horizontal).to(sums)

    def _add_windows(self, top: int, wanted: int) -> None:
        """Adds a row of windows; rows before the first one wanted are forgotten."""
        self._forget(min(wanted, top))
        for left, logits in self._source.logits_of(top, self._lefts):
            if self._sums is None:
                size = (len(logits), self._num_rows, self._last - self._first)
                self._sums = logits.new_zeros(size)
            start, stop = max(left, self._first), min(left + logits.shape[2], self._last)
            rows = slice(top - self._start, top - self._start + logits.shape[1])
            columns = slice(start - self._first, stop - self._first)
            seen = slice(start - left, stop - left)
            weight = self._weight[:, seen].to(logits)
            self._sums[:, rows, columns].addcmul_(logits[:, :, seen], weight)
            del logits  # not beside those of the next window

    def _forget(self, start: int) -> None:
        done = start - self._start
        self._start = start
        if self._sums is None or done == 0:
            return
        for sums in self._sums:  # class by class: the copy that moving needs stays small
            kept = sums[done:].clone()
            sums[: len(kept)] = kept
            sums[len(kept) :] = 0


def _weights(window: int, overlap: int) -> Tensor:
    """float64 ``(window,)``, how much each pixel of a window's side counts.

    It rises over the overlap with the next window, where the weights of both come to 1.
    """
    if overlap == 0:
        return torch.ones(window, dtype=torch.float64)
    inside = torch.arange(window, dtype=torch.float64) + 0.5
    return torch.minimum(inside, inside.flip(0)).div_(overlap).clamp_(max=1)


def _totals(starts: Sequence[int], weights: Tensor, length: int) -> Tensor:
    """float64 ``(length,)``, the weights of all windows at each pixel of a side; 0 without any."""
    totals = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        totals[start : start + len(weights)] += weights
    return totals
