"""``wavevit label-maps pack``: turn the official token-label maps into a few large files."""

import itertools
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from jsonargparse import ArgumentParser, Namespace
    from numpy.typing import NDArray

    from wavevit.data.label_maps.keys import KeyTable
    from wavevit.data.label_maps.reader import LabelMapError

    _Map = tuple[str, NDArray[np.float32], NDArray[np.uint16]]

_NUM_THREADS = 4  # they mostly wait, for a disk or a network
_MAPS_AHEAD = 256


def pack(
    official: Path,
    output: Path,
    num_classes: int = 1000,
    maps_per_shard: int = 10_000,
    overwrite: bool = False,
) -> int:
    """Rewrites official label maps, one file per image, as large files that are memory mapped.

    Every map is checked; pickled code is never run. The output folder appears when it is complete.

    Args:
        official: Folder of the official files, <class>/<image>.pt.
        output: Folder to write; must not exist, or be empty.
        num_classes: Classes of the teacher that made the maps, at most 2048.
        maps_per_shard: Maps per file; those of ImageNet take 6.5 kB each.
        overwrite: Replace packed maps in the output folder.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No official folder, or no folder for the output.
        FileExistsError: The output folder is not empty, or another run is writing it.
        ValueError: There are no maps, or some are broken.
    """
    from wavevit.data.label_maps.official import check_num_classes, list_official

    if num_classes < 1 or maps_per_shard < 1:
        raise ValueError(
            "--num-classes and --maps-per-shard must be at least 1, got "
            f"{num_classes} and {maps_per_shard}"
        )
    check_num_classes(num_classes)
    _check_source(official)
    target = Path(os.path.realpath(output))
    _check_target(target, overwrite)
    keys = list_official(official)
    if len(keys) == 0:
        raise ValueError(
            f"no label maps in {str(official)!r}; expected the official files <class>/<image>.pt"
        )
    partial = _beside(target, "partial")
    partial.mkdir()  # so a place that cannot be written shows before the work
    try:
        num_shards, shape = _write(official, keys, partial, num_classes, maps_per_shard)
        num_bytes = sum(path.stat().st_size for path in partial.iterdir())
        _put_in_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    maps, files = _count(len(keys), "label map"), _count(num_shards, "file")
    sys.stdout.write(
        f"packed {maps} ({shape[0]} of {num_classes:,} classes on a grid of {shape[1]} x "
        f"{shape[2]}) into {files}, {num_bytes / 1e6:,.1f} MB\nwritten: {output}\n"
    )
    return 0


def add_arguments(parser: "ArgumentParser") -> None:
    """Adds the command's options to its parser.

    Args:
        parser: The command's parser.
    """
    parser.add_function_arguments(pack, as_positional=True)


def run(options: "Namespace") -> int:
    """Runs the command; returns the exit code.

    Args:
        options: Parsed options.
    """
    return pack(
        options.official,
        options.output,
        num_classes=options.num_classes,
        maps_per_shard=options.maps_per_shard,
        overwrite=options.overwrite,
    )


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'s' * (number != 1)}"


def _check_source(official: Path) -> None:
    from wavevit.data.label_maps.index import INDEX_NAME

    if not official.exists():
        raise FileNotFoundError(f"no such folder of official label maps: {str(official)!r}")
    if not official.is_dir():
        raise ValueError(f"expected the folder of the official label maps, got a file: {official}")
    if (official / INDEX_NAME).exists():
        raise ValueError(f"the label maps in {str(official)!r} are packed already")


def _check_target(target: Path, overwrite: bool) -> None:
    from wavevit.data.label_maps.index import INDEX_NAME

    if not target.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {str(target.parent)!r}; create it first")
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"the output is a folder, but {str(target)!r} is a file")
    if os.path.ismount(target):  # it could not be renamed into place after all the work
        raise ValueError(f"{str(target)!r} is the top of a drive; name a new folder in it")
    names = sorted(path.name for path in target.iterdir()) if target.exists() else []
    if names and not overwrite:
        raise FileExistsError(
            f"{str(target)!r} is not empty; name another folder, or pass --overwrite to replace "
            "packed label maps"
        )
    others = [n for n in names if n != INDEX_NAME and not re.fullmatch(r"maps-\d+\.safetensors", n)]
    if others:
        raise FileExistsError(
            f"{str(target)!r} holds more than packed label maps ({', '.join(others[:3])}); "
            "--overwrite would remove it: name another folder"
        )
    for left in (_beside(target, "partial"), _beside(target, "replaced")):
        if left.exists():
            raise FileExistsError(
                f"{str(left)!r} is there, of a run that is still going or was killed; if it was, "
                "remove it"
            )


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f"{target.name}.{ending}")


def _put_in_place(partial: Path, target: Path) -> None:
    old = _beside(target, "replaced")
    if target.exists():
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write(
    official: Path, keys: "KeyTable", folder: Path, num_classes: int, maps_per_shard: int
) -> tuple[int, tuple[int, ...]]:
    """Writes shards and index; returns the number of shards and the shape of every map."""
    import numpy as np

    from wavevit.cli.counter import counter
    from wavevit.data.label_maps.reader import write_index, write_shard

    num_shards = 0
    shape: tuple[int, ...] = ()
    with counter(len(keys), "packing", "label maps") as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of unusual files; what is broken is an error
        maps = _read(official, keys, num_classes, advance)
        while group := list(itertools.islice(maps, maps_per_shard)):
            names, scores, classes = zip(*group, strict=True)
            shape = scores[0].shape
            write_shard(
                folder, num_shards, keys=names, scores=np.stack(scores), classes=np.stack(classes)
            )
            num_shards += 1
    source = f"official label maps {official.resolve().name}"
    write_index(
        folder, num_classes=num_classes, class_names=None, source=source, num_shards=num_shards
    )
    return num_shards, shape


def _read(
    official: Path, keys: "KeyTable", num_classes: int, advance: "Callable[[int], None]"
) -> "Iterator[_Map]":
    """Yields key, scores and classes; after a broken map only counts what else is broken."""
    import numpy as np

    from wavevit.cli.read_ahead import ReadAhead
    from wavevit.data.label_maps.official import read_official
    from wavevit.data.label_maps.reader import LabelMapError

    def read(key: str) -> "_Map | LabelMapError":
        try:
            label_map = read_official(official, key, num_classes)
        except LabelMapError as error:
            return error
        return key, label_map.scores, label_map.classes.astype(np.uint16)

    first_key, first_shape = "", None
    first_fault, num_broken = "", 0
    with ReadAhead(keys, read, num_threads=_NUM_THREADS, depth=_MAPS_AHEAD) as results:
        for _ in range(len(keys)):
            result = results.get()
            advance(1)
            if isinstance(result, LabelMapError):
                fault = str(result)
            elif first_shape not in (None, result[1].shape):
                fault = (
                    f"{official / result[0]}.pt has the shape {result[1].shape} (classes per cell, "
                    f"rows, columns), {first_key}.pt has {first_shape}"
                )
            else:
                first_key, first_shape = first_key or result[0], result[1].shape
                if not num_broken:
                    yield result
                continue
            first_fault, num_broken = first_fault or fault, num_broken + 1
    if num_broken:
        raise ValueError(
            f"{num_broken:,} of {len(keys):,} label maps are broken, nothing was written; the "
            f"first: {first_fault}"
        )
