"""Files of packed token-label maps, written at once and read through memory mapping.

Shape legend: N maps of a shard, K classes per cell, H W rows and columns of the grid.
"""

import json
import math
import mmap
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from wavevit.data.label_maps.keys import KeyTable
from wavevit.files import write_file

FORMAT = "wavevit-label-maps"
_MAX_FLOAT16 = 65504.0

# What a shard holds: names and types as safetensors spells them, and dimensions.
_TENSORS = {
    "scores": (("F16",), 4),
    "classes": (("U16", "U32"), 4),
    "crc32": (("U32",), 1),
    "names": (("U8",), 1),
    "name_ends": (("I64",), 1),
}
_DTYPES = {"F16": "<f2", "U8": "u1", "U16": "<u2", "U32": "<u4", "I64": "<i8"}


class LabelMapError(ValueError):
    """A label map that is missing, damaged or of other classes; training stops on it."""


@dataclass(frozen=True)
class LabelMap:
    """A teacher's best classes on a grid over the whole image."""

    scores: NDArray[np.float32]
    """(K, H, W) logits, finite."""
    classes: NDArray[np.int64]
    """(K, H, W) class of each score."""


class Shard:
    """A shard of packed maps, memory mapped: reading a map touches that map's pages alone.

    Args:
        path: File to open.

    Raises:
        LabelMapError: The file is no shard, or is incomplete.
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            tensors = _map_tensors(path)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise LabelMapError(
                f"{path} is incomplete or damaged ({error}); copy or make it again"
            ) from error
        self._scores, self._classes = tensors["scores"], tensors["classes"]
        self._crc32 = tensors["crc32"]
        self._names, self._name_ends = tensors["names"], tensors["name_ends"]

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def keys(self) -> KeyTable:
        """Names of the maps; raises `LabelMapError` if they are damaged."""
        offsets = np.concatenate([np.zeros(1, np.int64), self._name_ends])
        if np.any(np.diff(offsets) < 1) or offsets[-1] != len(self._names):
            raise LabelMapError(
                f"the names of the maps in {self.path} are damaged; copy or make it again"
            )
        return KeyTable(self._names, offsets)

    @property
    def checksums(self) -> NDArray[np.uint32]:
        """(N,) CRC-32 of every map."""
        return self._crc32

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """K, H, W of every map."""
        _, K, H, W = self._scores.shape
        return K, H, W

    def read(self, row: int, num_classes: int) -> LabelMap:
        """A map, checked.

        Args:
            row: Of the shard, in [0, N).
            num_classes: Classes of the teacher.

        Raises:
            LabelMapError: It is damaged.
        """
        scores, classes = self._scores[row], self._classes[row]
        if zlib.crc32(classes, zlib.crc32(scores)) != self._crc32[row]:
            raise self._broken(row, "its checksum does not match")
        label_map = LabelMap(scores.astype(np.float32), classes.astype(np.int64))
        fault = find_fault(label_map, num_classes)
        if fault is not None:
            raise self._broken(row, fault)
        return label_map

    def _broken(self, row: int, fault: str) -> LabelMapError:
        return LabelMapError(
            f"the label map of image {self.keys[row]!r} in {self.path} is damaged: {fault}; "
            "copy or make the file again"
        )


def find_fault(label_map: LabelMap, num_classes: int) -> str | None:
    """What is wrong with the numbers of a map; None if nothing is.

    Args:
        label_map: The map.
        num_classes: Classes of the teacher.
    """
    if not np.isfinite(label_map.scores).all():
        return "a score is not a finite number"
    low, high = int(label_map.classes.min()), int(label_map.classes.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        return f"it names class {wrong}, expected 0 to {num_classes - 1} ({num_classes} classes)"
    return None


def shard_path(folder: Path, number: int) -> Path:
    """Path of a shard.

    Args:
        folder: Of the packed maps.
        number: Of the shard, from 0.
    """
    return folder / f"maps-{number:05d}.safetensors"


def write_shard(
    folder: Path,
    number: int,
    *,
    keys: Sequence[str],
    scores: NDArray[Any],
    classes: NDArray[Any],
) -> Path:
    """Writes the maps of some images as one file; an existing one is replaced at once.

    Args:
        folder: Of the packed maps; must exist.
        number: Of the shard, from 0.
        keys: N names of the images' maps, all different (see `label_maps.map_key`).
        scores: (N, K, H, W) logits of any float type; stored as float16.
        classes: (N, K, H, W) whole numbers from 0; stored in 2 bytes each, or in 4 if one of them
            needs it.

    Returns:
        Path of the file.

    Raises:
        ValueError: Wrong shapes or types, repeated keys, negative classes, or scores that are not
            finite or too large for float16.
        OSError: The file cannot be written.
    """
    scores, classes = np.asarray(scores), np.asarray(classes)
    _check_arrays(keys, scores, classes)
    small = np.ascontiguousarray(scores, np.float16)
    wide = int(classes.max()) > np.iinfo(np.uint16).max
    whole = np.ascontiguousarray(classes, np.uint32 if wide else np.uint16)
    table = KeyTable.of(keys)
    checksums = [zlib.crc32(c, zlib.crc32(s)) for s, c in zip(small, whole, strict=True)]
    content = save(
        {
            "scores": small,
            "classes": whole,
            "crc32": np.array(checksums, np.uint32),
            "names": table.buffer,
            "name_ends": table.offsets[1:].copy(),
        },
        {"format": FORMAT},
    )
    path = shard_path(folder, number)
    write_file(path, content)
    return path


def read_shard_keys(path: Path) -> list[str]:
    """The keys of a shard whose every map has been verified.

    Args:
        path: Of the shard.

    Returns:
        The keys in the order of the maps.

    Raises:
        LabelMapError: The file or one of its maps is damaged.
        OSError: The file cannot be read.
    """
    shard = Shard(path)
    for row in range(len(shard)):
        shard.read(row, 1 << 32)
    return list(shard.keys)


def _check_arrays(keys: Sequence[str], scores: NDArray[Any], classes: NDArray[Any]) -> None:
    if scores.ndim != 4 or scores.shape != classes.shape or scores.size == 0:
        raise ValueError(
            "scores and classes must both be (images, classes per cell, rows, columns), got "
            f"{scores.shape} and {classes.shape}"
        )
    if len(keys) != len(scores) or len(set(keys)) != len(keys):
        raise ValueError(
            f"expected a different key for each of {len(scores)} maps, got {len(keys)} keys, "
            f"{len(set(keys))} of them different"
        )
    if not all(keys):
        raise ValueError("a key is empty; expected the name of an image's map")
    if scores.dtype.kind != "f" or classes.dtype.kind not in "iu":
        raise ValueError(f"expected floats and integers, got {scores.dtype} and {classes.dtype}")
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high > np.iinfo(np.uint32).max:
        raise ValueError(f"classes must be in [0, {np.iinfo(np.uint32).max}], got {low} to {high}")
    fits = (np.abs(scores) <= _MAX_FLOAT16).all(axis=(1, 2, 3))  # False for NaN
    if not fits.all():
        raise ValueError(
            f"scores must be finite numbers of at most {_MAX_FLOAT16:.0f}, those of image "
            f"{keys[int(fits.argmin())]!r} are not"
        )


def _map_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a shard as views of the mapped file.

    safetensors' own reader can neither be kept open across a fork nor pickled, and takes longer to
    give a slice than all the rest of reading a map.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < 8:
            raise ValueError("it is shorter than its header")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(data[:8], "little")
    if start > len(data):
        raise ValueError("it is shorter than its header")
    header = json.loads(data[8:start])
    tensors: dict[str, NDArray[Any]] = {}
    end_of_data = 0
    for name, (types, num_dims) in _TENSORS.items():
        entry = header[name]
        shape = [int(size) for size in entry["shape"]]
        begin, end = (int(offset) for offset in entry["data_offsets"])
        if entry["dtype"] not in types or len(shape) != num_dims or min(shape) < 0 or begin < 0:
            raise ValueError(f"unexpected type or shape of {name}")
        dtype, count = np.dtype(_DTYPES[entry["dtype"]]), math.prod(shape)
        if end - begin != count * dtype.itemsize or start + end > len(data):
            raise ValueError(f"expected {start + end:,} bytes or more, got {len(data):,}")
        tensors[name] = np.frombuffer(data, dtype, count, start + begin).reshape(shape)
        end_of_data = max(end_of_data, end)
    if start + end_of_data != len(data):
        raise ValueError(f"expected {start + end_of_data:,} bytes, got {len(data):,}")
    if tensors["scores"].shape != tensors["classes"].shape or tensors["scores"].size == 0:
        raise ValueError("scores and classes differ in shape, or are empty")
    if len({len(tensors[name]) for name in ("scores", "crc32", "name_ends")}) > 1:
        raise ValueError("the numbers of names, checksums and maps differ")
    return tensors
