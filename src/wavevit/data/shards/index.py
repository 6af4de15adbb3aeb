"""The manifest and the index of a sharded data set: which image lies where in which tar file.

`shards.json`, the manifest, names the classes, the tar files and an index file per split. An index
holds flat arrays, one entry per image in the data set's own order, which is not the order of the
tar files.

Shape legend: N images of a split, M bytes of all their names.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from wavevit.data.image_files import PathTable
from wavevit.data.shared_array import SharedArray

MANIFEST_NAME = "shards.json"
FORMAT = "wavevit-shards"
VERSION = 1
SPLITS = ("train", "val")

_ARRAY_TYPES = {
    "shard": np.int32,
    "offset": np.int64,
    "size": np.int64,
    "crc32": np.uint32,
    "label": np.int32,
    "sample_id_ends": np.int64,
    "sample_id_bytes": np.uint8,
}


@dataclass(frozen=True)
class Shard:
    """A tar file."""

    file: str
    """Its name, in the manifest's folder."""
    num_bytes: int
    """Its size."""
    num_samples: int
    """Images in it."""


@dataclass(frozen=True)
class ShardSplit:
    """The files of a split."""

    num_samples: int
    """Images in all shards."""
    index_file: str
    """Name of the index file, in the manifest's folder."""
    index_bytes: int
    """Its size."""
    index_crc32: int
    """CRC-32 of its content."""
    shards: list[Shard]
    """The tar files; the index counts them from 0."""


@dataclass(frozen=True)
class Manifest:
    """What `shards.json` says."""

    class_names: list[str]
    """Name of every label."""
    splits: dict[str, ShardSplit]
    """"train", "val", or both in this order."""
    tars_are_foreign: bool = False
    """Whether the tar files were there before, and only the index was made."""

    def to_json(self) -> bytes:
        """The content of the file."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(content, indent=1).encode() + b"\n"


@dataclass(frozen=True)
class ShardIndex:
    """Where the images of a split lie, in arrays that worker processes share."""

    shards: SharedArray[np.int32]
    """(N,) number of the tar file."""
    offsets: SharedArray[np.int64]
    """(N,) where in the tar file the image's bytes start."""
    sizes: SharedArray[np.int64]
    """(N,) number of the bytes."""
    crc32s: SharedArray[np.uint32]
    """(N,) CRC-32 of the bytes."""
    labels: SharedArray[np.int32]
    """(N,) index into the manifest's class names."""
    sample_ids: PathTable
    """N names."""

    def __len__(self) -> int:
        return len(self.shards)

    def to_bytes(self) -> bytes:
        """The content of the index file, in the safetensors format."""
        names, offsets = self.sample_ids.arrays
        arrays = {
            "shard": self.shards.array,
            "offset": self.offsets.array,
            "size": self.sizes.array,
            "crc32": self.crc32s.array,
            "label": self.labels.array,
            "sample_id_ends": offsets[1:],
            "sample_id_bytes": names,
        }
        # Slices of arrays would be written as if they were whole.
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        # One entry: safetensors writes several in an order of its own, different every time.
        return save(whole, {"format": f"{FORMAT} {VERSION}"})


def parse_manifest(content: bytes, where: str) -> Manifest:
    """The manifest in a file's content.

    Args:
        content: Of the file.
        where: Its path or URL, for messages.

    Returns:
        The manifest, checked.

    Raises:
        ValueError: If it is none, or of a later version.
    """
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{where} is damaged, expected JSON: {error}") from error
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise ValueError(
            f"{where} is no manifest of tar shards: expected the format {FORMAT!r}; "
            "`wavevit shard` writes one"
        )
    if fields.get("version") != VERSION:
        raise ValueError(
            f"{where} has version {fields.get('version')!r}, this wavevit reads version {VERSION}; "
            "update wavevit, or write the shards anew with `wavevit shard`"
        )
    try:
        found = fields["splits"]
        manifest = Manifest(
            class_names=[str(name) for name in fields["class_names"]],
            splits={name: _parse_split(found[name]) for name in SPLITS if name in found},
            tars_are_foreign=bool(fields["tars_are_foreign"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{where} is damaged ({type(error).__name__}: {error}); copy it again, or write the "
            "shards anew with `wavevit shard`"
        ) from error
    if not manifest.splits or len(manifest.splits) < len(found):
        got = ", ".join(map(repr, found)) or "none"
        raise ValueError(f"{where}: expected the splits 'train', 'val' or both, got {got}")
    return manifest


def parse_index(
    content: bytes, split: ShardSplit, num_classes: int, where: str
) -> dict[str, NDArray[Any]]:
    """The arrays of an index file, by their names in the file.

    Args:
        content: Of the file.
        split: What the manifest says of it.
        num_classes: Number of classes in the manifest.
        where: Path or URL of the file, for messages.

    Returns:
        The arrays, checked.

    Raises:
        ValueError: If the content is damaged, or not the one that the manifest belongs to.
    """
    remedy = "copy it again, or write the shards anew with `wavevit shard`"
    if len(content) != split.index_bytes:
        raise ValueError(
            f"{where}: expected {split.index_bytes:,} bytes as the manifest says, found "
            f"{len(content):,}; {remedy}"
        )
    if zlib.crc32(content) != split.index_crc32:
        raise ValueError(f"{where} is damaged, or does not belong to the manifest; {remedy}")
    try:
        arrays = load(content)
    except SafetensorError as error:
        raise ValueError(f"{where} is no index of tar shards ({error}); {remedy}") from error
    wrong = _what_is_wrong(arrays, split, num_classes)
    if wrong:
        raise ValueError(f"{where} is no sound index: {wrong}; {remedy}")
    return arrays


def join_indices(parts: Sequence[dict[str, NDArray[Any]]], num_shards: Sequence[int]) -> ShardIndex:
    """One index of several splits, one after the other.

    Args:
        parts: Arrays of each split, of `parse_index`.
        num_shards: Tar files of each split; they are counted on from one to the next.

    Returns:
        The index.
    """

    def joined(name: str, first: Sequence[int] | None = None) -> NDArray[Any]:
        whole = np.concatenate([part[name] for part in parts])
        starts = np.cumsum([0, *(len(part[name]) for part in parts)])
        for number, added in enumerate(first or ()):
            whole[starts[number] : starts[number + 1]] += added
        return whole

    first_shard = np.cumsum([0, *num_shards])[:-1].tolist()
    first_byte = np.cumsum([0, *(len(part["sample_id_bytes"]) for part in parts)])[:-1].tolist()
    ends = joined("sample_id_ends", first_byte)
    return ShardIndex(
        shards=SharedArray(joined("shard", first_shard)),
        offsets=SharedArray(joined("offset")),
        sizes=SharedArray(joined("size")),
        crc32s=SharedArray(joined("crc32")),
        labels=SharedArray(joined("label")),
        sample_ids=PathTable.from_arrays(joined("sample_id_bytes"), np.insert(ends, 0, 0)),
    )


def _parse_split(fields: dict[str, Any]) -> ShardSplit:
    split = ShardSplit(
        num_samples=int(fields["num_samples"]),
        index_file=_plain_name(fields["index_file"]),
        index_bytes=int(fields["index_bytes"]),
        index_crc32=int(fields["index_crc32"]),
        shards=[
            Shard(_plain_name(shard["file"]), int(shard["num_bytes"]), int(shard["num_samples"]))
            for shard in fields["shards"]
        ],
    )
    if split.num_samples < 1 or split.num_samples != sum(s.num_samples for s in split.shards):
        raise ValueError(f"{split.num_samples} images, but the shards hold another number")
    return split


def _plain_name(name: object) -> str:
    # A manifest may come from anywhere: it must not make us read files elsewhere.
    if not isinstance(name, str) or not name or name[0] == "." or set(name) & set("/\\:"):
        raise ValueError(f"expected the plain name of a file, got {name!r}")
    return name


def _what_is_wrong(arrays: dict[str, NDArray[Any]], split: ShardSplit, num_classes: int) -> str:
    for name, kind in _ARRAY_TYPES.items():
        if name not in arrays:
            return f"no array {name!r}"
        shape = arrays[name].shape
        expected = shape if name == "sample_id_bytes" else (split.num_samples,)
        if arrays[name].dtype != kind or shape != expected or len(shape) != 1:
            return f"{name!r} has type {arrays[name].dtype} and shape {shape}"
    shard, offset, size, label = (arrays[name] for name in ("shard", "offset", "size", "label"))
    ends = arrays["sample_id_ends"]
    if shard.min() < 0 or shard.max() >= len(split.shards):
        return f"it names shard {shard.max()} of {len(split.shards)}"
    shard_bytes = np.array([s.num_bytes for s in split.shards], np.int64)
    if offset.min() < 0 or size.min() < 0 or np.any(offset + size > shard_bytes[shard]):
        return "images lie outside of their shards"
    if label.min() < 0 or label.max() >= num_classes:
        return f"labels {label.min()} to {label.max()} for {num_classes} classes"
    if ends[0] < 0 or np.any(np.diff(ends) < 0) or ends[-1] != len(arrays["sample_id_bytes"]):
        return "the sample ids do not fit together"
    return ""
