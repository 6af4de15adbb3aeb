"""Images in tar files with an index: read at random, by few large files instead of many small ones.

A sharded data set is a folder, or any URL that fsspec reads, with tar files in the WebDataset
layout, an index per split and a manifest (see `shard_index`). Images keep the order and the sample
ids of the data set that they were written from, so a run on it goes as on the original.

Shape legend: N images.
"""

import io
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wavevit.data.images import DecodedImage, UnreadableImageError, decode_image
from wavevit.data.shards.index import (
    MANIFEST_NAME,
    Manifest,
    Shard,
    ShardIndex,
    join_indices,
    parse_index,
    parse_manifest,
)
from wavevit.data.shards.store import ShardStore
from wavevit.data.shared_array import SharedArray


@dataclass(frozen=True)
class ShardPlace:
    """Where an image's bytes are."""

    shard: Shard
    """The tar file."""
    offset: int
    """First byte in it."""
    size: int
    """Number of bytes."""
    crc32: int
    """CRC-32 of the bytes."""


class ShardDataset:
    """Images in tar shards, with labels; what it holds per image lies in shared flat arrays.

    Args:
        store: Where the files are.
        shards: The tar files that the index counts.
        index: Where each image lies.
        rows: (N,) the images' places in the index; None takes all, in its order.
        class_names: Name of every label.
        label_of: (K,) label of every class of the index, -1 for those without images; None
            takes the index's own labels.
    """

    def __init__(
        self,
        store: ShardStore,
        shards: Sequence[Shard],
        index: ShardIndex,
        rows: NDArray[np.int64] | None,
        class_names: Sequence[str],
        label_of: NDArray[np.int64] | None = None,
    ) -> None:
        self.store = store
        self.class_names = list(class_names)
        self._shards = list(shards)
        self._index = index
        self._rows = None if rows is None else SharedArray(rows)
        self._label_of = label_of
        labels = index.labels.array if rows is None else index.labels.array[rows]
        mapped = labels.astype(np.int64) if label_of is None else label_of[labels]
        self._labels = SharedArray(mapped)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) index into `class_names` per image."""
        return self._labels.array

    def __len__(self) -> int:
        return len(self._labels)

    def sample_id(self, index: int) -> str:
        """Name of an image, as in the data set that the shards were written from."""
        return self._index.sample_ids[self._row(index)]

    def sample_ids(self) -> Iterator[str]:
        """The sample ids of all images in order."""
        names = self._index.sample_ids
        if self._rows is None:
            return iter(names)
        return (names[int(row)] for row in self._rows.array)

    def place(self, index: int) -> ShardPlace:
        """Where an image's bytes are."""
        row, places = self._row(index), self._index
        return ShardPlace(
            shard=self._shards[int(places.shards.array[row])],
            offset=int(places.offsets.array[row]),
            size=int(places.sizes.array[row]),
            crc32=int(places.crc32s.array[row]),
        )

    def read_bytes(self, index: int) -> bytes:
        """An image file's content, checked against its CRC-32.

        Args:
            index: Of the image.

        Returns:
            The bytes of the file that was written to the shard.

        Raises:
            UnreadableImageError: If they cannot be read, or are not the ones that were written.
        """
        place = self.place(index)
        try:
            content = self.store.read(
                place.shard.file, place.offset, place.size, place.shard.num_bytes
            )
        except (OSError, ValueError) as error:
            self.store.reopen()
            raise UnreadableImageError(self._where(index), _reason(error)) from error
        if len(content) == place.size and zlib.crc32(content) == place.crc32:
            return content
        self.store.reopen()
        if len(content) > place.size:
            reason = "the server does not serve parts of files; put simplecache:: before the URL"
        elif len(content) < place.size:
            reason = f"the shard is cut short: {len(content):,} of {place.size:,} bytes are there"
        else:
            reason = "the shard is damaged: the image's bytes do not have the CRC-32 of the index"
        if self.store.cache_folder is not None:
            reason += f"; the copy in {self.store.cache_folder} may be of an older data set"
        raise UnreadableImageError(self._where(index), reason)

    def decode(self, index: int, *, min_size: int | None = None) -> DecodedImage:
        """The image in mode RGB and its format; raises as `load`."""
        content = self.read_bytes(index)
        try:
            return decode_image(io.BytesIO(content), min_size=min_size)
        except UnreadableImageError as error:
            raise type(error)(self._where(index), error.reason) from error

    def load(self, index: int, *, min_size: int | None = None) -> Image.Image:
        """The image in mode RGB; raises `UnreadableImageError` (see `images.load_image`)."""
        return self.decode(index, min_size=min_size).image

    def subset(self, indices: NDArray[np.int64]) -> "ShardDataset":
        """The data set of the images at `indices`, in that order, with the same class names."""
        rows = indices if self._rows is None else self._rows.array[indices]
        return ShardDataset(
            self.store, self._shards, self._index, rows, self.class_names, self._label_of
        )

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} out of range for {len(self)} images")
        return index if self._rows is None else int(self._rows.array[index])

    def _where(self, index: int) -> str:
        return f"{self.sample_id(index)} in {self.store.where(self.place(index).shard.file)}"


@dataclass(frozen=True)
class OpenedShards:
    """A sharded data set."""

    class_names: list[str]
    """Name of every label."""
    description: str
    """One line for the log."""
    parts: dict[str, ShardDataset]
    """"train", "val", or both; and "all" where it is more than one part."""
    wrong_shards: dict[str, str]
    """Tar files that are not as the manifest says: name to what was expected and found."""


def open_shards(location: str, class_names: Sequence[str] | None = None) -> OpenedShards:
    """The splits of a sharded data set; every tar file's size is compared with the manifest.

    Args:
        location: Folder or URL with a `shards.json`.
        class_names: The classes of a trained model, to label the images by; None takes those of
            the data set.

    Returns:
        The splits. Tar files that are missing or of a wrong size are listed, not refused.

    Raises:
        FileNotFoundError: If there is no `shards.json`, or no index.
        OSError: If the location cannot be reached.
        ValueError: If manifest or index are damaged, or images have a class that is not in
            `class_names`.
    """
    store = ShardStore(location)
    try:
        content = store.read_whole(MANIFEST_NAME)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no data set of tar shards at {location!r}: expected {store.where(MANIFEST_NAME)}; "
            "`wavevit shard` writes one"
        ) from error
    manifest = parse_manifest(content, store.where(MANIFEST_NAME))
    splits = manifest.splits
    shards = [shard for split in splits.values() for shard in split.shards]
    index = join_indices(
        [
            parse_index(
                store.read_whole(split.index_file),
                split,
                len(manifest.class_names),
                store.where(split.index_file),
            )
            for split in splits.values()
        ],
        [len(split.shards) for split in splits.values()],
    )
    known = manifest.class_names if class_names is None else list(class_names)
    label_of = None if class_names is None else _match(manifest.class_names, known, index, location)
    rows = _rows_of_splits(manifest)
    parts = {
        name: ShardDataset(store, shards, index, taken, known, label_of)
        for name, taken in rows.items()
    }
    counts = ", ".join(f"{name} {split.num_samples:,}" for name, split in splits.items())
    return OpenedShards(
        class_names=known,
        description=f"{len(shards):,} tar shards in {location} (images: {counts})",
        parts=parts,
        wrong_shards=_wrong_shards(store, shards),
    )


def refuse_wrong_shards(opened: OpenedShards) -> None:
    """Raises one clear error if any tar file is not as the manifest says.

    Args:
        opened: The data set.

    Raises:
        ValueError: Naming the first such file, and how many more there are.
    """
    if not opened.wrong_shards:
        return
    what = next(iter(opened.wrong_shards.values()))
    others = len(opened.wrong_shards) - 1
    more = f" (and {others} more shards are wrong)" if others else ""
    raise ValueError(
        f"{what}{more}; copy it again, or write the shards anew with `wavevit shard`; "
        "`wavevit check-data` lists the images concerned"
    )


def _rows_of_splits(manifest: Manifest) -> dict[str, NDArray[np.int64] | None]:
    """Rows of the joined index; None for all of them."""
    if len(manifest.splits) == 1:
        return {next(iter(manifest.splits)): None}
    num_train = manifest.splits["train"].num_samples
    num_images = num_train + manifest.splits["val"].num_samples
    return {
        "train": np.arange(num_train),
        "val": np.arange(num_train, num_images),
        "all": None,
    }


def _match(own: list[str], known: list[str], index: ShardIndex, location: str) -> NDArray[np.int64]:
    """(K,) label among the known classes for each class of the manifest."""
    position = {name: label for label, name in enumerate(known)}
    label_of = np.array([position.get(name, -1) for name in own], np.int64)
    used = np.bincount(index.labels.array, minlength=len(own)) > 0
    unknown = [own[label] for label in np.flatnonzero(used & (label_of < 0))]
    if unknown:
        raise ValueError(
            f"{location} has images of classes that are not among the {len(known)} known classes "
            f"({_shortened(known)}): {_shortened(unknown)}; use the data set that the model was "
            "trained for"
        )
    return label_of


def _wrong_shards(store: ShardStore, shards: Sequence[Shard]) -> dict[str, str]:
    wrong: dict[str, str] = {}
    for shard, size in zip(shards, store.sizes([shard.file for shard in shards]), strict=True):
        if size == -1:
            what = f"is missing, expected {shard.num_bytes:,} bytes"
        elif size is not None and size != shard.num_bytes:
            what = f"has {size:,} bytes, expected {shard.num_bytes:,} as the manifest says"
        else:
            continue
        wrong[shard.file] = f"the shard {store.where(shard.file)} {what}"
    return wrong


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "the shard is gone"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the shard cannot be read: {os.strerror(error.errno)}"
    return " ".join(str(error).split()) or type(error).__name__


def _shortened(names: Sequence[str], limit: int = 5) -> str:
    text = ", ".join(names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"
