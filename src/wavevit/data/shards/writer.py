"""Writing a data set as tar shards.

Shape legend: N images.
"""

import os
import secrets
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from wavevit.data.image_files import PathTable
from wavevit.data.images import IMAGE_EXTENSIONS
from wavevit.data.shards.index import (
    MANIFEST_NAME,
    Manifest,
    Shard,
    ShardIndex,
    ShardSplit,
    parse_manifest,
)
from wavevit.data.shared_array import SharedArray
from wavevit.files import sync_file, sync_folder, write_file

_BLOCK = 512
_RECORD = 20 * _BLOCK


class StoredImages(Protocol):
    """Images with labels whose files can be read as they are."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) class of each image."""
        ...

    def sample_id(self, index: int) -> str:
        """Unique name of an image, a posix path."""
        ...

    def sample_ids(self) -> Iterator[str]:
        """The names of all images in order."""
        ...

    def read_bytes(self, index: int) -> bytes:
        """An image file's content; raises `UnreadableImageError` where there is none."""
        ...


def prepare_folder(out: str | Path, *, overwrite: bool = False) -> Path:
    """The folder to write shards to, checked; it may not be there yet.

    Args:
        out: Folder that does not exist or is empty.
        overwrite: Whether it may hold shards, which are to be replaced.

    Returns:
        The folder without links in its path.

    Raises:
        FileExistsError: If it holds shards, and `overwrite` is not given; or other things.
        ValueError: If it is not to be replaced as a whole.
    """
    folder = Path(os.path.realpath(out))
    if not folder.exists():
        return folder
    if not folder.is_dir():
        raise FileExistsError(f"{str(out)!r} is a file; name a folder for the shards")
    if os.path.ismount(folder):
        raise ValueError(f"{str(out)!r} is a mounted file system; name a folder in it")
    names = sorted(os.listdir(folder))
    if not names:
        return folder
    manifest = _manifest_of(folder)
    if manifest is None or manifest.tars_are_foreign or set(names) - _files_of(manifest):
        raise FileExistsError(
            f"{str(out)!r} is not empty, and not all in it was written by `wavevit shard`; name "
            "another folder"
        )
    if not overwrite:
        raise FileExistsError(f"{str(out)!r} holds shards already; pass --overwrite to replace it")
    return folder


def write_shards(
    parts: Mapping[str, StoredImages],
    class_names: Sequence[str],
    out: Path,
    *,
    samples_per_shard: int,
    bytes_per_shard: int,
    shuffle_seed: int | None,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Writes a folder of tar shards; it appears under its name only when all of it is on disk.

    Args:
        parts: The splits, "train", "val" or both.
        class_names: Name of every label.
        out: The folder.
        samples_per_shard: Images in a tar file at most.
        bytes_per_shard: Size of a tar file at most, unless a single image is larger.
        shuffle_seed: Seed of the order in which images go to the tar files; None keeps the data
            set's own. The index has the data set's own order in any case.
        overwrite: Whether shards that are there are replaced.
        on_progress: Called after each image with 1.

    Returns:
        What was written.

    Raises:
        FileExistsError: As in `prepare_folder`.
        UnreadableImageError: If an image file is missing or empty. Nothing is left behind.
        OSError: If the folder cannot be written.
    """
    folder = prepare_folder(out, overwrite=overwrite)
    splits: dict[str, ShardSplit] = {}
    with _replacing(folder) as new:
        for name, images in parts.items():
            with _TarWriter(new, name, samples_per_shard, bytes_per_shard) as writer:
                index = _write_split(images, writer, shuffle_seed, on_progress)
            splits[name] = write_index(new, name, index, writer.shards)
        manifest = Manifest(list(class_names), splits)
        write_file(new / MANIFEST_NAME, manifest.to_json())
    return manifest


def write_index(folder: Path, split: str, index: ShardIndex, shards: list[Shard]) -> ShardSplit:
    """Writes a split's index file.

    Args:
        folder: Of the tar files.
        split: Name of the split.
        index: Its images.
        shards: Its tar files.

    Returns:
        The split as the manifest describes it.
    """
    content = index.to_bytes()
    name = f"{split}-index.safetensors"
    write_file(folder / name, content)
    return ShardSplit(len(index), name, len(content), zlib.crc32(content), shards)


def _write_split(
    images: StoredImages,
    writer: "_TarWriter",
    shuffle_seed: int | None,
    on_progress: Callable[[int], None] | None,
) -> ShardIndex:
    labels = images.labels
    N = len(labels)
    shards, crc32s = np.empty(N, np.int32), np.empty(N, np.uint32)
    offsets, sizes = np.empty(N, np.int64), np.empty(N, np.int64)
    order = np.arange(N)
    if shuffle_seed is not None:
        order = np.random.default_rng(shuffle_seed).permutation(N)
    for number in order:
        index = int(number)
        content = images.read_bytes(index)
        # Numbered, because names of files may hold dots, which end a key, or differ only in what
        # follows the dot.
        extension = _extension(images.sample_id(index))
        shards[index], offsets[index] = writer.add(
            f"{index:09d}", extension, content, int(labels[index])
        )
        sizes[index], crc32s[index] = len(content), zlib.crc32(content)
        if on_progress is not None:
            on_progress(1)
    return ShardIndex(
        shards=SharedArray(shards),
        offsets=SharedArray(offsets),
        sizes=SharedArray(sizes),
        crc32s=SharedArray(crc32s),
        labels=SharedArray(labels.astype(np.int32)),
        sample_ids=PathTable(images.sample_ids()),
    )


class _TarWriter:
    """Writes samples to numbered tar files; a context that closes the last one."""

    def __init__(self, folder: Path, split: str, max_samples: int, max_bytes: int) -> None:
        self.shards: list[Shard] = []
        self._folder = folder
        self._split = split
        self._max_samples = max_samples
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self._num_samples = 0

    def __enter__(self) -> "_TarWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish()
        elif self._file is not None:
            self._file.close()

    def add(self, key: str, extension: str, content: bytes, label: int) -> tuple[int, int]:
        """Writes a sample; returns the number of its tar file and where in it `content` starts."""
        needed = 6 * _BLOCK + len(content) + _RECORD  # headers, label, padding and the end
        if self._file is not None and (
            self._num_samples >= self._max_samples or self._file.tell() + needed > self._max_bytes
        ):
            self._finish()
        if self._file is None:
            name = f"{self._split}-{len(self.shards):06d}.tar"
            self._file = open(self._folder / name, "wb")  # noqa: SIM115 - closed by _finish
        offset = _add_member(self._file, f"{key}.{extension}", content)
        _add_member(self._file, f"{key}.cls", str(label).encode())
        self._num_samples += 1
        return len(self.shards), offset

    def _finish(self) -> None:
        if self._file is None:
            return
        size = self._file.tell() + 2 * _BLOCK
        self._file.write(bytes(2 * _BLOCK + -size % _RECORD))
        sync_file(self._file)
        name = Path(self._file.name).name
        self.shards.append(Shard(name, self._file.tell(), self._num_samples))
        self._file.close()
        self._file, self._num_samples = None, 0


def _add_member(file: BinaryIO, name: str, content: bytes) -> int:
    """Writes a file into a tar; returns where its content starts."""
    # Without owner and date: the same images give the same tar files anywhere.
    info = tarfile.TarInfo(name)
    info.size = len(content)
    file.write(info.tobuf(tarfile.USTAR_FORMAT))
    start = file.tell()
    file.write(content)
    file.write(bytes(-len(content) % _BLOCK))
    return start


def _extension(sample_id: str) -> str:
    extension = os.path.splitext(sample_id)[1].lower()
    return extension[1:] if extension in IMAGE_EXTENSIONS else "img"


def _manifest_of(folder: Path) -> Manifest | None:
    path = folder / MANIFEST_NAME
    return parse_manifest(path.read_bytes(), str(path)) if path.is_file() else None


def _files_of(manifest: Manifest) -> set[str]:
    names = {MANIFEST_NAME}
    for split in manifest.splits.values():
        names |= {split.index_file, *(shard.file for shard in split.shards)}
    return names


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Gives an empty folder beside `folder` that takes its place, or vanishes on an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.part-{secrets.token_hex(4)}")
    old = new.with_name(f"{new.name}-old")
    new.mkdir()
    try:
        yield new
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
