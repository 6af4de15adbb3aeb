"""Image files with labels, in arrays that forked and spawned workers share cheaply.

Shape legend: N files.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wavevit.data.images import load_image


class PathTable:
    """Paths as one byte buffer and offsets into it.

    A Python list of a million strings is a million objects whose reference counts are written to
    whenever they are looked at, so every forked loader worker ends up with its own copy of all of
    them. Two arrays stay shared, and are pickled to spawned workers as two blocks.

    Args:
        paths: Strings; file names that are not valid UTF-8 survive (surrogate escapes).
    """

    def __init__(self, paths: Iterable[str]) -> None:
        buffer = bytearray()
        ends = [0]
        for path in paths:
            buffer += os.fsencode(path)
            ends.append(len(buffer))
        self._buffer = np.frombuffer(bytes(buffer), np.uint8)
        self._offsets = np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} out of range for {len(self)} paths")
        start, end = self._offsets[index : index + 2]
        return os.fsdecode(self._buffer[start:end].tobytes())

    def __iter__(self) -> Iterator[str]:
        buffer, offsets = self._buffer.data, self._offsets.data
        for start, end in itertools.pairwise(offsets):
            yield os.fsdecode(bytes(buffer[start:end]))

    def take(self, indices: NDArray[np.int64]) -> "PathTable":
        """A new table of the paths at `indices`, in that order."""
        buffer = self._buffer.data
        taken = bytearray()
        starts, ends = self._offsets[indices].tolist(), self._offsets[indices + 1].tolist()
        for start, end in zip(starts, ends, strict=True):
            taken += buffer[start:end]
        table = PathTable(())
        lengths = np.diff(self._offsets)[indices]
        table._buffer = np.frombuffer(bytes(taken), np.uint8)
        table._offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return table


class ImageFileDataset:
    """Image files with labels; its memory is two flat arrays, shared between worker processes.

    Args:
        root: Folder that the paths are relative to.
        paths: Posix paths, relative to `root` or absolute; they are the sample ids.
        labels: (N,) index into `class_names` per path.
        class_names: Name of every label.
    """

    def __init__(
        self,
        root: Path,
        paths: PathTable,
        labels: NDArray[np.int64],
        class_names: Sequence[str],
    ) -> None:
        self.root = root
        self.class_names = list(class_names)
        self.labels = labels
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def sample_id(self, index: int) -> str:
        """Posix path of a file, relative to `root` where it was given so."""
        return self._paths[index]

    def sample_ids(self) -> Iterator[str]:
        """The sample ids of all files in order."""
        return iter(self._paths)

    def path(self, index: int) -> Path:
        """Path of a file."""
        return self.root / self._paths[index]

    def load(self, index: int, *, min_size: int | None = None) -> Image.Image:
        """The image in mode RGB; raises `UnreadableImageError` (see `images.load_image`)."""
        return load_image(self.path(index), min_size=min_size)

    def subset(self, indices: NDArray[np.int64]) -> "ImageFileDataset":
        """The data set of the files at `indices`, in that order, with the same class names."""
        paths = self._paths.take(indices)
        return ImageFileDataset(self.root, paths, self.labels[indices], self.class_names)
