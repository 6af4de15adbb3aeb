"""Image files with labels, in arrays that forked and spawned workers share cheaply.

Shape legend: N files.
"""

import itertools
import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wavevit.data.images import UnreadableImageError, load_image
from wavevit.data.shared_array import SharedArray


class PathTable:
    """Paths as one byte buffer and offsets into it.

    A Python list of a million strings is a million objects whose reference counts are written to
    whenever they are looked at, so every forked loader worker ends up with its own copy of all of
    them. Two arrays stay shared, also with spawned workers.

    Args:
        paths: Strings; file names that are not valid UTF-8 survive (surrogate escapes).
    """

    def __init__(self, paths: Iterable[str]) -> None:
        buffer = bytearray()
        ends = array("q", [0])
        for path in paths:
            buffer += os.fsencode(path)
            ends.append(len(buffer))
        self._buffer = SharedArray(np.frombuffer(buffer, np.uint8))
        self._offsets = SharedArray(np.frombuffer(ends, np.int64))

    @classmethod
    def from_arrays(cls, buffer: NDArray[np.uint8], offsets: NDArray[np.int64]) -> "PathTable":
        """The table that has these `arrays`.

        Args:
            buffer: (M,) the paths' bytes, one after the other.
            offsets: (N + 1,) where each path starts; the last one is M.
        """
        table = cls(())
        table._buffer = SharedArray(buffer)
        table._offsets = SharedArray(offsets)
        return table

    @property
    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """(M,) bytes of the paths, and (N + 1,) where each starts."""
        return self._buffer.array, self._offsets.array

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} out of range for {len(self)} paths")
        start, end = self._offsets.array[index : index + 2]
        return os.fsdecode(self._buffer.array[start:end].tobytes())

    def __iter__(self) -> Iterator[str]:
        buffer, offsets = self._buffer.array.data, self._offsets.array.data
        for start, end in itertools.pairwise(offsets):
            yield os.fsdecode(bytes(buffer[start:end]))

    def take(self, indices: NDArray[np.int64]) -> "PathTable":
        """A new table of the paths at `indices`, in that order."""
        offsets, buffer = self._offsets.array, self._buffer.array.data
        taken = bytearray()
        starts, stops = offsets[indices].tolist(), offsets[indices + 1].tolist()
        for start, stop in zip(starts, stops, strict=True):
            taken += buffer[start:stop]
        ends = np.concatenate([[0], np.cumsum(np.diff(offsets)[indices])]).astype(np.int64)
        return PathTable.from_arrays(np.frombuffer(taken, np.uint8), ends)


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
        self._labels = SharedArray(labels)
        self._paths = paths

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) index into `class_names` per path."""
        return self._labels.array

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

    def read_bytes(self, index: int) -> bytes:
        """The content of a file; raises `UnreadableImageError` where there is none."""
        path = self.path(index)
        try:
            # As in `load_image`: a named pipe would keep its reader waiting for ever.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise UnreadableImageError(str(path), "it is not a regular file")
            content = path.read_bytes()
        except OSError as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
            raise UnreadableImageError(str(path), reason or str(error)) from error
        if not content:
            raise UnreadableImageError(str(path), "the file is empty (zero bytes)")
        return content

    def subset(self, indices: NDArray[np.int64]) -> "ImageFileDataset":
        """The data set of the files at `indices`, in that order, with the same class names."""
        paths = self._paths.take(indices)
        return ImageFileDataset(self.root, paths, self.labels[indices], self.class_names)
