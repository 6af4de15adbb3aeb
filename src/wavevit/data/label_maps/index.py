"""The index that makes a folder of packed token-label maps complete.

Shape legend: K classes per cell, H W rows and columns of the grid.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wavevit.data.label_maps.packed import FORMAT, LabelMapError, Shard, shard_path
from wavevit.files import write_text

INDEX_NAME = "label-maps.json"
_VERSION = 1


@dataclass(frozen=True)
class PackedIndex:
    """What the index file of a packed folder says."""

    num_classes: int
    """Classes of the teacher."""
    class_names: list[str] | None
    """Their names in order; None where they are not known."""
    source: str
    """Where the maps come from, for people."""
    top_k: int
    """Classes per cell K."""
    map_size: tuple[int, int]
    """Rows and columns H, W of the grid."""
    counts: list[int]
    """Number of maps of each shard."""


def write_index(
    folder: Path,
    *,
    num_classes: int,
    class_names: Sequence[str] | None,
    source: str,
    num_shards: int,
) -> Path:
    """Writes the index over the shards of a folder, which completes it; replaces an older one.

    Args:
        folder: Of the packed maps.
        num_classes: Classes of the teacher.
        class_names: Their names in order; None where they are not known.
        source: Where the maps come from, for people.
        num_shards: Shards 0 to `num_shards` - 1 are listed.

    Returns:
        Path of the file.

    Raises:
        ValueError: No shards, a damaged one, maps of different sizes, or another number of names
            than classes.
        OSError: A shard cannot be read, or the index not written.
    """
    if num_shards < 1:
        raise ValueError(f"a set of label maps has at least 1 shard, got {num_shards}")
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(f"got {len(class_names)} class names for {num_classes} classes")
    shards = [Shard(shard_path(folder, number)) for number in range(num_shards)]
    K, H, W = shards[0].map_shape
    for shard in shards:
        if shard.map_shape != (K, H, W):
            raise ValueError(
                f"all label maps must have one size: {shards[0].path} has {(K, H, W)} (classes per "
                f"cell, rows, columns), {shard.path} has {shard.map_shape}"
            )
    content = {
        "format": FORMAT,
        "version": _VERSION,
        "num_classes": num_classes,
        "class_names": None if class_names is None else list(class_names),
        "source": source,
        "top_k": K,
        "map_size": [H, W],
        "shards": [{"file": shard.path.name, "count": len(shard)} for shard in shards],
    }
    path = folder / INDEX_NAME
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def read_index(folder: Path) -> PackedIndex:
    """The index of a packed folder.

    Args:
        folder: Of the packed maps.

    Returns:
        What the index says.

    Raises:
        LabelMapError: It is no such index, is damaged, or of a newer version.
        OSError: It cannot be read.
    """
    path = folder / INDEX_NAME
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, expected {FORMAT!r}")
        if content["version"] > _VERSION:
            raise LabelMapError(
                f"{path} was written by a newer version of wavevit (format {content['version']}, "
                f"this one knows {_VERSION}); update wavevit"
            )
        return _parse_index(folder, content)
    except LabelMapError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LabelMapError(f"{path} is damaged ({error}); copy or make the maps again") from error


def open_shard(folder: Path, number: int, index: PackedIndex) -> Shard:
    """A shard that is what the index says.

    Args:
        folder: Of the packed maps.
        number: Of the shard.
        index: Of the folder.

    Raises:
        LabelMapError: It is missing, damaged, or not the one that the index was written for.
    """
    path = shard_path(folder, number)
    try:
        shard = Shard(path)
    except OSError as error:
        raise LabelMapError(
            f"cannot read {path}, which {INDEX_NAME} lists ({error.strerror}); copy or make the "
            "maps again"
        ) from error
    expected = (index.counts[number], index.top_k, *index.map_size)
    if (len(shard), *shard.map_shape) != expected:
        raise LabelMapError(
            f"{path} holds maps of the shape {(len(shard), *shard.map_shape)}, {INDEX_NAME} says "
            f"{expected}; files of two sets are mixed: copy or make the maps again"
        )
    return shard


def _parse_index(folder: Path, content: dict[str, Any]) -> PackedIndex:
    index = PackedIndex(
        num_classes=content["num_classes"],
        class_names=content["class_names"],
        source=content["source"],
        top_k=content["top_k"],
        map_size=tuple(content["map_size"]),
        counts=[shard["count"] for shard in content["shards"]],
    )
    numbers = [index.num_classes, index.top_k, *index.map_size, *index.counts]
    if len(index.map_size) != 2 or any(type(n) is not int or n < 1 for n in numbers):
        raise ValueError(f"expected positive whole numbers, got {asdict(index)}"[:200])
    names = index.class_names
    if names is not None and not (
        len(names) == index.num_classes and all(isinstance(name, str) for name in names)
    ):
        raise ValueError(f"expected {index.num_classes} class names")
    files = [shard["file"] for shard in content["shards"]]
    if not files or files != [shard_path(folder, n).name for n in range(len(files))]:
        raise ValueError("expected the shards maps-00000.safetensors and so on")
    return index
