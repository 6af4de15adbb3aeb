"""Names of label maps, millions of them, in flat arrays: held, compared and looked up.

Shape legend: N keys.
"""

import itertools
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 16  # keys compared at once, so that what it takes does not grow with their number


class KeyTable:
    """Keys as one byte buffer and offsets into it, as shards of packed maps hold them.

    Args:
        buffer: uint8, the keys one after the other, encoded as file names are.
        offsets: (N + 1,) where each key starts, and where the last one ends.
    """

    def __init__(self, buffer: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.buffer = buffer
        self.offsets = offsets

    @classmethod
    def of(cls, keys: Iterable[str]) -> "KeyTable":
        """A table of keys; those that are not valid UTF-8 survive (surrogate escapes)."""
        buffer = bytearray()
        offsets = array("q", [0])  # Python's own integers would take four times the memory
        for key in keys:
            buffer += os.fsencode(key)
            offsets.append(len(buffer))
        return cls(np.frombuffer(buffer, np.uint8), np.frombuffer(offsets, np.int64))

    @classmethod
    def joined(cls, tables: Sequence["KeyTable"]) -> "KeyTable":
        """One table of the keys of several, in order."""
        starts = np.cumsum([0, *(len(table.buffer) for table in tables)])
        ends = [table.offsets[1:] + start for table, start in zip(tables, starts, strict=False)]
        return cls(
            np.concatenate([np.zeros(0, np.uint8), *(table.buffer for table in tables)]),
            np.concatenate([np.zeros(1, np.int64), *ends]),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} out of range for {len(self)} keys")
        start, end = self.offsets[index : index + 2]
        return os.fsdecode(self.buffer[start:end].tobytes())

    def __iter__(self) -> Iterator[str]:
        return map(os.fsdecode, self.encoded())

    def encoded(self) -> Iterator[bytes]:
        """The keys as bytes, in order."""
        buffer = self.buffer.tobytes()
        for start, end in itertools.pairwise(self.offsets.data):
            yield buffer[start:end]


class KeyLookup:
    """Finds keys of a table by 64-bit hashes, which only choose what to compare byte by byte.

    Not to be kept or sent to another process: hashes differ there.

    Args:
        table: The keys.
    """

    def __init__(self, table: KeyTable) -> None:
        self.table = table
        # Python's own hash of bytes is different in every process, so no choice of names makes it
        # slow.
        hashes = np.fromiter(map(_hash, table.encoded()), np.int64, len(table))
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def rows_of(self, wanted: "KeyLookup") -> NDArray[np.int64]:
        """Where each wanted key stands in this table: the first place, -1 where it does not.

        Args:
            wanted: N keys, in any order.

        Returns:
            (N,) rows of this table.
        """
        rows = np.full(len(wanted.table), -1, np.int64)
        # Needles in order walk through memory instead of jumping: several times faster.
        left, hashes = wanted._order, wanted._hashes
        places = np.searchsorted(self._hashes, hashes)
        while len(left):  # more than once only where different keys have the same hash
            inside = places < len(self._hashes)
            inside[inside] = self._hashes[places[inside]] == hashes[inside]
            left, places, hashes = left[inside], places[inside], hashes[inside]
            candidates = self._order[places]
            equal = _equal(wanted.table, left, self.table, candidates)
            rows[left[equal]] = candidates[equal]
            left, places, hashes = left[~equal], places[~equal] + 1, hashes[~equal]
        return rows

    def first_repeated(self) -> tuple[int, int] | None:
        """Two rows that have the same key; None if all keys differ."""
        if not np.any(self._hashes[1:] == self._hashes[:-1]):
            return None
        rows = self.rows_of(self)
        repeated = np.flatnonzero(rows != np.arange(len(rows)))
        return (int(rows[repeated[0]]), int(repeated[0])) if len(repeated) else None


_hash = hash


def _equal(
    first: KeyTable,
    first_rows: NDArray[np.int64],
    second: KeyTable,
    second_rows: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether the keys of two tables at the given rows are the same, byte by byte."""
    result = np.zeros(len(first_rows), np.bool_)
    for chunk in range(0, len(first_rows), _CHUNK):
        here = slice(chunk, chunk + _CHUNK)
        starts, lengths = _spans(first, first_rows[here])
        other_starts, other_lengths = _spans(second, second_rows[here])
        same = lengths == other_lengths
        lengths = lengths * same
        ends = np.cumsum(lengths)
        # Every byte of every key in a row: its key's start plus its place within the key.
        within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        differs = (
            first.buffer[np.repeat(starts, lengths) + within]
            != second.buffer[np.repeat(other_starts, lengths) + within]
        )
        differences = np.concatenate([[0], np.cumsum(differs)])
        result[here] = same & (differences[ends] == differences[ends - lengths])
    return result


def _spans(table: KeyTable, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    starts = table.offsets[rows]
    return starts, table.offsets[rows + 1] - starts
