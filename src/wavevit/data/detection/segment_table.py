"""Outlines, run lengths or mask numbers of many objects in flat arrays.

Shape legend: M objects, R rings of polygons, V coordinates (two per point), P points of a ring.
"""

import itertools
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wavevit.data.shared_array import SharedArray

Polygons = list[NDArray[np.float64]]
"""Rings of (P, 2) points x, y in pixels; the object is their union."""

Segment = Polygons | bytes | int
"""What outlines an object: polygons, the text of a COCO run-length code, or its number in a picture
of numbered pixels."""


@dataclass(frozen=True)
class SegmentTable:
    """The segments of M objects; an object has one of the three kinds, or none.

    Millions of lists of floats would be copied into every forked loader worker as their reference
    counts are touched; a few flat arrays stay shared.
    """

    coordinates: SharedArray[np.float64]
    """(V,) x, y, x, y, ... of all rings, pixels."""
    ring_starts: SharedArray[np.int64]
    """(R + 1,) where each ring starts in `coordinates`; the last one is V."""
    first_rings: SharedArray[np.int64]
    """(M + 1,) the first ring of each object; the last one is R."""
    codes: SharedArray[np.uint8]
    """Run-length codes, one after the other."""
    code_starts: SharedArray[np.int64]
    """(M + 1,) where each object's code starts in `codes`."""
    numbers: SharedArray[np.int32]
    """(M,) number in the picture of numbered pixels, from 1; 0 for objects that have none."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> Segment | None:
        """The segment of an object; None where it has none."""
        first, last = self.first_rings.array[row : row + 2].tolist()
        if last > first:
            starts = self.ring_starts.array[first : last + 1].tolist()
            return [
                self.coordinates.array[start:end].reshape(-1, 2)
                for start, end in itertools.pairwise(starts)
            ]
        start, end = self.code_starts.array[row : row + 2].tolist()
        if end > start:
            return self.codes.array[start:end].tobytes()
        return int(self.numbers.array[row]) or None

    @property
    def exists(self) -> NDArray[np.bool_]:
        """(M,) whether an object has a segment."""
        has_rings = np.diff(self.first_rings.array) > 0
        has_code = np.diff(self.code_starts.array) > 0
        return has_rings | has_code | (self.numbers.array > 0)

    def rings_of(self) -> NDArray[np.int64]:
        """(R,) the object that each ring belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.first_rings.array))

    def polygon_areas(self) -> NDArray[np.float64]:
        """(M,) sums of the areas of each object's rings, pixels; 0 for objects without rings."""
        starts = self.ring_starts.array
        areas = np.zeros(len(self))
        if len(starts) == 1:
            return areas
        points = self.coordinates.array.reshape(-1, 2)
        firsts, lasts = starts[:-1] // 2, starts[1:] // 2 - 1
        following = np.arange(1, len(points) + 1)
        following[lasts] = firsts
        # Green's theorem, about each ring's first point to keep the products small.
        origin = np.repeat(points[firsts], lasts - firsts + 1, axis=0)
        here, there = points - origin, points[following] - origin
        doubled = np.add.reduceat(here[:, 0] * there[:, 1] - here[:, 1] * there[:, 0], firsts)
        np.add.at(areas, self.rings_of(), np.abs(doubled) / 2)
        return areas

    def take(self, rows: NDArray[np.int64]) -> "SegmentTable":
        """The table of the objects at `rows`, in that order."""
        rings, first_rings = _gather(self.first_rings.array, rows)
        values, ring_starts = _gather(self.ring_starts.array, rings)
        characters, code_starts = _gather(self.code_starts.array, rows)
        return SegmentTable(
            coordinates=SharedArray(self.coordinates.array[values]),
            ring_starts=SharedArray(ring_starts),
            first_rings=SharedArray(first_rings),
            codes=SharedArray(self.codes.array[characters]),
            code_starts=SharedArray(code_starts),
            numbers=SharedArray(self.numbers.array[rows]),
        )


class SegmentTableBuilder:
    """Collects segments one after the other."""

    def __init__(self) -> None:
        self._coordinates = array("d")
        self._ring_starts = array("q", [0])
        self._first_rings = array("q", [0])
        self._codes = bytearray()
        self._code_starts = array("q", [0])
        self._numbers = array("i")

    def append(self, segment: Segment | Sequence[Sequence[float]] | None) -> None:
        """Adds the next object.

        Args:
            segment: As in `Segment`; rings may also be flat sequences x, y, x, y, ...; None for an
                object without one.

        Raises:
            TypeError: If a coordinate is no number. The object is then left out.
        """
        number = 0
        if isinstance(segment, bytes):
            self._codes += segment
        elif isinstance(segment, int):
            number = segment
        elif segment is not None:
            flat = [
                array("d", ring.ravel().tolist() if isinstance(ring, np.ndarray) else ring)
                for ring in segment
            ]
            for ring in flat:
                self._coordinates += ring
                self._ring_starts.append(len(self._coordinates))
        self._first_rings.append(len(self._ring_starts) - 1)
        self._code_starts.append(len(self._codes))
        self._numbers.append(number)

    def build(self) -> SegmentTable:
        """The table of what was added; nothing can be added afterwards."""
        return SegmentTable(
            coordinates=SharedArray(np.array(self._coordinates, np.float64)),
            ring_starts=SharedArray(np.array(self._ring_starts, np.int64)),
            first_rings=SharedArray(np.array(self._first_rings, np.int64)),
            codes=SharedArray(np.frombuffer(bytes(self._codes), np.uint8)),
            code_starts=SharedArray(np.array(self._code_starts, np.int64)),
            numbers=SharedArray(np.array(self._numbers, np.int32)),
        )


def _gather(
    starts: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the items of some rows lie, given (M + 1,) starts of all; and the new starts."""
    counts = np.diff(starts)[rows]
    new_starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    items = np.arange(new_starts[-1]) + np.repeat(starts[rows] - new_starts[:-1], counts)
    return items, new_starts
