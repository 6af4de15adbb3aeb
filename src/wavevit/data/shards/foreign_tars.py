"""An index for tar files in the WebDataset layout that others have made.

In that layout the files of a sample follow each other in a tar and share a key: the path up to the
first dot of its last part.

Shape legend: N images of a split.
"""

import json
import re
import tarfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wavevit.data.csv_file import VAL_NAMES, sort_labels
from wavevit.data.image_files import PathTable
from wavevit.data.images import IMAGE_EXTENSIONS
from wavevit.data.shards.index import MANIFEST_NAME, Manifest, Shard, ShardIndex, parse_manifest
from wavevit.data.shards.writer import write_index
from wavevit.data.shared_array import SharedArray
from wavevit.files import write_file

_KEY = re.compile(r"(?:\./)?((?:.*/|)[^./][^./]*)\.([^/]*)", re.DOTALL)
# Such as train-000.tar or imagenet1k-validation-00.tar: the word begins the name or a part of it.
_SPLIT_WORD = re.compile(r"(?:^|[-_.])(train|validation|valid|val|test)")
_COMPRESSED_NAME = re.compile(r"\.(tgz|tbz2?|txz|tzst|tar\.\w+)$", re.IGNORECASE)
_COMPRESSED_START = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True)
class TarSample:
    """An image in a tar file, and its label."""

    name: str
    """Key and extension."""
    offset: int
    """First byte of the image in the tar file."""
    content: bytes
    """The image's bytes."""
    label: str
    """Number or name of the class."""


def index_tars(
    folder: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Writes index and manifest beside tar files that are there already; reads each of them once.

    A sample is an image with its label, a `.cls` file or "label" or "cls" in a `.json` file. Its
    sample id is the name of the tar file and its own in it.

    Args:
        folder: Of the tar files (see `find_tars`).
        class_names: Name of every label; labels in the tars are then numbers from 0, or these
            names. None takes the labels of the training tars as names, ordered as numbers if all
            of them are.
        overwrite: Whether an index that is there is replaced.
        on_progress: Called after each tar file with the number of its images.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: If there is no such folder, or there are no tar files in it.
        FileExistsError: If it has an index, and `overwrite` is not given.
        ValueError: If a tar file is compressed, damaged or not of this layout, or labels do not
            fit.
    """
    root = Path(folder)
    _check_manifest(root / MANIFEST_NAME, overwrite)
    numbers: dict[str, int] = {}
    found = {
        split: _read_split(paths, numbers, on_progress) for split, paths in find_tars(root).items()
    }
    first_index = next(iter(found.values()))[0]  # of training, where there is that
    texts = list(numbers)
    if class_names is None:
        class_names = sort_labels(texts[number] for number in np.unique(first_index.labels.array))
        label_of = {name: label for label, name in enumerate(class_names)}
    else:
        label_of = {name: label for label, name in enumerate(class_names)}
        if all(text.isdecimal() for text in texts):
            label_of = {str(label): label for label in range(len(class_names))}
    labels = _labels(texts, label_of, class_names)
    splits = {}
    for split, (index, shards) in found.items():
        index = replace(index, labels=SharedArray(labels[index.labels.array]))
        splits[split] = write_index(root, split, index, shards)
    manifest = Manifest(list(class_names), splits, tars_are_foreign=True)
    write_file(root / MANIFEST_NAME, manifest.to_json())
    return manifest


def find_tars(root: Path) -> dict[str, list[Path]]:
    """The tar files of a folder by split, "train" first, each in the order of their names.

    A file belongs to the split whose name (`train`, `val`, `valid`, `validation`, `test`) begins
    its own or a part of it. Of the names for validation the first that is there is used.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: If there is no such folder, or no such file in it.
        ValueError: If files are compressed.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {str(root)!r}; expected one with tar files")
    by_word: dict[str, list[Path]] = {}
    others = []
    for path in sorted(root.iterdir()):
        word = _SPLIT_WORD.search(path.name)
        if word and _COMPRESSED_NAME.search(path.name):
            raise ValueError(_compressed(path))
        if path.suffix == ".tar" and word:
            by_word.setdefault(word[1], []).append(path)
        else:
            others.append(path.name)
    val_names = [name for name in VAL_NAMES if name in by_word]
    found = {"train": by_word["train"]} if "train" in by_word else {}
    if val_names:
        found["val"] = by_word[val_names[0]]
    if not found:
        have = ", ".join(others[:3]) or "nothing"
        raise FileNotFoundError(
            f"no tar files named train*.tar, val*.tar, valid*.tar or test*.tar in {str(root)!r}; "
            f"found {have}"
        )
    return found


def read_tar(path: Path) -> Iterator[TarSample]:
    """The samples of a tar file, one after the other.

    Args:
        path: Of the file.

    Yields:
        Samples in their order in the file.

    Raises:
        ValueError: If the file is compressed, damaged or not in the WebDataset layout.
    """
    with open(path, "rb") as file:
        if file.read(8).startswith(_COMPRESSED_START):
            raise ValueError(_compressed(path))
        file.seek(0)
        keys: set[str] = set()
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for key, members in groupby(_members(tar), lambda member: member[0]):
                    if key in keys:
                        raise ValueError(f"{path}: the sample {key!r} is there twice")
                    keys.add(key)
                    yield _sample(tar, path, key, {name: info for _, name, info in members})
                end = tar.offset
        except tarfile.TarError as error:
            raise ValueError(f"{path} is no complete tar file ({error}); copy it again") from error
        # A damaged header counts as the end of the file for tarfile.
        file.seek(end)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise ValueError(f"{path} is damaged after {end:,} bytes; copy it again")
    if not keys:
        raise ValueError(f"{path} has no samples; expected KEY.jpg and KEY.cls for each")


def _check_manifest(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not parse_manifest(path.read_bytes(), str(path)).tars_are_foreign:
        raise FileExistsError(
            f"{path} is of `wavevit shard` itself and knows names that are not in the tar files; "
            "to lose them, remove it first"
        )
    if not overwrite:
        raise FileExistsError(f"{path} is there already; pass --overwrite to replace it")


def _read_split(
    paths: Sequence[Path], numbers: dict[str, int], on_progress: Callable[[int], None] | None
) -> tuple[ShardIndex, list[Shard]]:
    """The index, with a number for each text as label; new texts are added to `numbers`."""
    shards: list[Shard] = []
    columns = {name: array("q") for name in ("shard", "offset", "size", "crc32", "label")}

    def names() -> Iterator[str]:
        for path in paths:
            count = 0
            for sample in read_tar(path):
                count += 1
                columns["shard"].append(len(shards))
                columns["offset"].append(sample.offset)
                columns["size"].append(len(sample.content))
                columns["crc32"].append(zlib.crc32(sample.content))
                columns["label"].append(numbers.setdefault(sample.label, len(numbers)))
                yield f"{path.name}/{sample.name}"
            shards.append(Shard(path.name, path.stat().st_size, count))
            if on_progress is not None:
                on_progress(count)

    sample_ids = PathTable(names())
    index = ShardIndex(
        shards=SharedArray(np.array(columns["shard"], np.int32)),
        offsets=SharedArray(np.array(columns["offset"], np.int64)),
        sizes=SharedArray(np.array(columns["size"], np.int64)),
        crc32s=SharedArray(np.array(columns["crc32"], np.uint32)),
        labels=SharedArray(np.array(columns["label"], np.int32)),
        sample_ids=sample_ids,
    )
    return index, shards


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yields key, extension and header of each file that belongs to a sample."""
    for info in tar:
        match = _KEY.fullmatch(info.name)
        if not info.isreg() or match is None:
            continue
        key, extension = match[1], match[2].lower()
        last = key.rpartition("/")[2]
        if not (last.startswith("__") and last.endswith("__")):  # facts about the whole file
            yield key, extension, info


def _sample(
    tar: tarfile.TarFile, path: Path, key: str, members: dict[str, tarfile.TarInfo]
) -> TarSample:
    images = [name for name in members if f".{name}" in IMAGE_EXTENSIONS]
    if len(images) != 1 or members[images[0]].issparse():
        got = ", ".join(f".{name}" for name in members)
        raise ValueError(f"{path}: expected one image for the sample {key!r}, got files {got}")
    info = members[images[0]]
    label = _label(tar, members)
    if label is None:
        raise ValueError(
            f"{path}: the sample {key!r} has no label; expected {key}.cls, or {key}.json with "
            '"label" or "cls"'
        )
    return TarSample(f"{key}.{images[0]}", info.offset_data, _content(tar, info), label)


def _label(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> str | None:
    try:
        if "cls" in members:
            return _content(tar, members["cls"]).decode().strip() or None
        if "json" in members:
            fields = json.loads(_content(tar, members["json"]))
            for name in ("label", "cls"):
                if isinstance(fields, dict) and type(fields.get(name)) in (int, str):
                    return str(fields[name]).strip() or None
    except ValueError:  # neither text nor JSON
        return None
    return None


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    assert file is not None  # regular files have content
    content = file.read()
    if len(content) < info.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _labels(
    texts: Sequence[str], label_of: dict[str, int], class_names: Sequence[str]
) -> NDArray[np.int32]:
    """Label of each text."""
    unknown = sort_labels(text for text in texts if text not in label_of)
    if unknown:
        raise ValueError(
            f"labels in the tar files that are not among the {len(class_names)} classes "
            f"({', '.join(class_names[:3])}, ...): {', '.join(unknown[:5])}; expected a name or a "
            f"number from 0 to {len(class_names) - 1} from the list of class names, or labels that "
            "training has"
        )
    return np.array([label_of[text] for text in texts], np.int32)


def _compressed(path: Path) -> str:
    return (
        f"{path} is compressed: images in it cannot be read one by one; expected plain tar files, "
        "unpack it with gunzip, unxz, bunzip2 or unzstd"
    )
