"""Token-label maps: a teacher's best classes per cell, read by the training images' indices.

Two forms are read: the official one, a file per image, and ours, some large files with an index.
Which map belongs to which image is settled for all of them before training starts.

Shape legend: N training images.
"""

import bisect
import itertools
import logging
import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wavevit.data.csv_file import SPLIT_NAMES
from wavevit.data.label_maps.index import (
    INDEX_NAME,
    PackedIndex,
    open_shard,
    read_index,
    write_index,
)
from wavevit.data.label_maps.keys import KeyLookup, KeyTable
from wavevit.data.label_maps.official import check_num_classes, list_official, read_official
from wavevit.data.label_maps.packed import (
    LabelMap,
    LabelMapError,
    Shard,
    read_shard_keys,
    shard_path,
    write_shard,
)
from wavevit.data.shared_array import SharedArray

__all__ = [
    "LabelMap",
    "LabelMapError",
    "LabelMaps",
    "OfficialLabelMaps",
    "PackedLabelMaps",
    "map_key",
    "open_label_maps",
    "read_shard_keys",
    "shard_path",
    "write_index",
    "write_shard",
]

logger = logging.getLogger(__name__)

_EXPECTED = (
    f"expected a folder with {INDEX_NAME} (from `wavevit label-maps create` or `pack`), or one "
    "with the official files <class>/<image>.pt"
)
_NAMES_SHOWN = 3
UNREADABLE_NAME = "unreadable.txt"
"""List of the images that `wavevit label-maps create` could not read, in its folder."""


class LabelMaps(Protocol):
    """The label maps of a training set."""

    num_classes: int
    """Classes of the teacher, those of the data set."""

    def load(self, index: int) -> LabelMap:
        """The map of a training image; raises `LabelMapError` if it is damaged."""
        ...

    def checksums(self) -> bytes:
        """What tells these maps from others."""
        ...


def map_key(sample_id: str) -> str:
    """Name of an image's label map: its path without a leading split folder and the extension.

    Args:
        sample_id: Posix path of the image, as data sets name it: "train/cat/7.jpg" gives "cat/7".
    """
    first, slash, rest = sample_id.partition("/")
    name = rest if slash and first in SPLIT_NAMES else sample_id
    return posixpath.splitext(name)[0]


def open_label_maps(
    path: Path, sample_ids: Iterable[str], class_names: Sequence[str]
) -> "PackedLabelMaps | OfficialLabelMaps":
    """The label maps of a training set, every one of them there.

    Takes time and memory in proportion to the number of images; afterwards 8 bytes per image stay
    (for official files their names), in arrays that worker processes share.

    Args:
        path: Folder of packed maps, or of official ones: `<class>/<image>.pt`.
        sample_ids: Of the training images, in the order of the indices.
        class_names: Of the data set, in the order of the labels.

    Returns:
        The maps by index; those of other images are ignored, with a note in the log.

    Raises:
        FileNotFoundError: Nothing is at `path`.
        ValueError: There are no maps, or some are missing; two images have the same key; the maps
            are of other classes; there are more classes than the official form can number.
        LabelMapError: A file is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such folder of label maps: {str(path)!r}; {_EXPECTED}")
    if not path.is_dir():
        raise ValueError(f"{str(path)!r} is a file; {_EXPECTED}")
    index = read_index(path) if (path / INDEX_NAME).exists() else None
    maps: PackedLabelMaps | OfficialLabelMaps
    if index is not None:
        _check_classes(path, index, class_names)
        tables = [open_shard(path, n, index).keys for n in range(len(index.counts))]
        rows = _find(path, _keys_of(sample_ids), KeyTable.joined(tables))
        maps = PackedLabelMaps(path, index, rows)
    else:
        there = list_official(path)
        _check_official(path, there, len(class_names))
        wanted = _keys_of(sample_ids)
        _find(path, wanted, there)
        maps = OfficialLabelMaps(path, len(class_names), wanted.table)
    if len(maps):
        maps.load(0)  # what is wrong with all of them shows before training
    return maps


class PackedLabelMaps:
    """Maps in shards of many, each memory mapped when a process first needs it.

    Args:
        folder: Of the packed maps.
        index: Of that folder.
        positions: (N,) number of each image's map, counted through all shards.
    """

    def __init__(self, folder: Path, index: PackedIndex, positions: NDArray[np.int64]) -> None:
        self.num_classes = index.num_classes
        self._folder = folder
        self._index = index
        self._positions = SharedArray(positions)
        self._starts = [0, *itertools.accumulate(index.counts)]
        self._shards: dict[int, Shard] = {}

    def __len__(self) -> int:
        return len(self._positions)

    def checksums(self) -> bytes:
        """Checksums of the maps, in the order of the images: other maps have others."""
        found = [
            open_shard(self._folder, number, self._index).checksums
            for number in range(len(self._index.counts))
        ]
        return np.concatenate(found)[self._positions.array].tobytes()

    def __getstate__(self) -> dict[str, Any]:
        # Mapped files cannot be pickled; a spawned worker maps them again.
        return self.__dict__ | {"_shards": {}}

    def load(self, index: int) -> LabelMap:
        """The map of a training image.

        Args:
            index: In the training set.

        Raises:
            LabelMapError: It is damaged, or its file has gone.
        """
        position = int(self._positions.array[_checked(index, len(self))])
        number = bisect.bisect_right(self._starts, position) - 1
        shard = self._shards.get(number)
        if shard is None:
            shard = self._shards[number] = open_shard(self._folder, number, self._index)
        return shard.read(position - self._starts[number], self.num_classes)


class OfficialLabelMaps:
    """Maps in one PyTorch file each.

    Args:
        folder: That holds `<class>/<image>.pt`.
        num_classes: Classes of the teacher.
        keys: N paths in the folder, without the extension.
    """

    def __init__(self, folder: Path, num_classes: int, keys: KeyTable) -> None:
        self.num_classes = num_classes
        self._folder = folder
        self._buffer = SharedArray(keys.buffer)
        self._offsets = SharedArray(keys.offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def checksums(self) -> bytes:
        """The names of the maps: to read a million small files only to compare takes too long."""
        return self._buffer.array.tobytes()

    def load(self, index: int) -> LabelMap:
        """The map of a training image.

        Args:
            index: In the training set.

        Raises:
            LabelMapError: It is damaged, or its file has gone.
        """
        keys = KeyTable(self._buffer.array, self._offsets.array)
        return read_official(self._folder, keys[_checked(index, len(self))], self.num_classes)


def _checked(index: int, length: int) -> int:
    if not 0 <= index < length:
        raise IndexError(f"index {index} out of range for {length} label maps")
    return index


def _keys_of(sample_ids: Iterable[str]) -> KeyLookup:
    ids = KeyTable.of(sample_ids)
    keys = KeyTable.of(map(map_key, ids))
    lookup = KeyLookup(keys)
    repeated = lookup.first_repeated()
    if repeated is not None:
        first, second = repeated
        raise ValueError(
            f"the images {ids[first]!r} and {ids[second]!r} would share the label map "
            f"{keys[first]!r}; rename one of them"
        )
    return lookup


def _find(path: Path, keys: KeyLookup, there: KeyTable) -> NDArray[np.int64]:
    """(N,) the row of each image's map; all must be there."""
    lookup, wanted = KeyLookup(there), keys.table
    repeated = lookup.first_repeated()
    if repeated is not None:
        raise LabelMapError(
            f"{path} has two label maps of the image {there[repeated[0]]!r}; make the maps again"
        )
    rows = lookup.rows_of(keys)
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        raise LabelMapError(_missing_message(path, wanted, there, missing))
    if len(there) > len(wanted):
        logger.info("%d label maps in %s are of other images", len(there) - len(wanted), path)
    return rows


def _missing_message(
    path: Path, wanted: KeyTable, there: KeyTable, missing: NDArray[np.int64]
) -> str:
    names = ", ".join(repr(wanted[int(row)]) for row in missing[:_NAMES_SHOWN])
    if len(missing) > _NAMES_SHOWN:
        names += ", ..."
    example = f" (it has maps such as {there[0]!r})" if len(missing) == len(wanted) else ""
    advice = (
        "name the folder of this data set's maps, or make them with `wavevit label-maps create`"
    )
    if (path / UNREADABLE_NAME).exists():
        advice = f"images that could not be read stand in its {UNREADABLE_NAME}: remove those"
    return (
        f"{len(missing):,} of {len(wanted):,} training images have no label map in {path}: {names}"
        f"{example}; {advice}"
    )


def _check_classes(path: Path, index: PackedIndex, class_names: Sequence[str]) -> None:
    if index.num_classes != len(class_names):
        raise LabelMapError(
            f"the label maps in {path} are of {index.num_classes:,} classes, the data set has "
            f"{len(class_names):,}; make maps with a teacher of the data set's own classes"
        )
    if index.class_names is None:
        return
    for number, (stored, own) in enumerate(zip(index.class_names, class_names, strict=True)):
        if stored != own:
            raise LabelMapError(
                f"the label maps in {path} are of other classes than the data set: class {number} "
                f"is {stored!r} there and {own!r} in the data; make maps for this data set"
            )


def _check_official(path: Path, there: KeyTable, num_classes: int) -> None:
    if shard_path(path, 0).exists():
        raise ValueError(
            f"the label maps in {path} are unfinished: {INDEX_NAME} is missing; run "
            "`wavevit label-maps create` again to complete them"
        )
    if len(there) == 0:
        raise ValueError(f"no label maps in {str(path)!r}; {_EXPECTED}")
    check_num_classes(num_classes)
