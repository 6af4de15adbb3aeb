"""Every file of a data set, also those that training would not look at; or the images of shards.

Shape legend: N files.
"""

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wavevit.data.check_report import Problem
from wavevit.data.csv_file import read_csv, sort_labels
from wavevit.data.image_files import PathTable
from wavevit.data.images import is_image_name, walk_files
from wavevit.data.layouts import (
    CsvLayout,
    FolderLayout,
    ShardLayout,
    find_layout,
    subfolders,
)
from wavevit.data.shards.dataset import ShardDataset, open_shards
from wavevit.data.shards.index import SPLITS

NO_SPLIT = "all"


@dataclass(frozen=True)
class Listing:
    """All files in flat arrays."""

    root: Path
    """Folder that the paths are relative to."""
    description: str
    """Layout and splits in one line."""
    class_names: list[str]
    """Name of every label."""
    split_names: list[str]
    """Name of every split number."""
    paths: PathTable
    """N posix paths."""
    labels: NDArray[np.int32]
    """(N,) index into `class_names`."""
    splits: NDArray[np.int32]
    """(N,) index into `split_names`."""
    is_image: NDArray[np.bool_]
    """(N,) False for files that a data set leaves aside because of their names."""
    shards: ShardDataset | None = None
    """The images, in the same order, where they lie in tar shards and `root` has no meaning."""


def list_dataset(path: Path | str, problems: list[Problem]) -> Listing:
    """The files of a data set of any layout.

    Args:
        path: Folder or CSV file, or folder or URL of tar shards.
        problems: Receives what is wrong with the folders themselves.

    Returns:
        The listing.

    Raises:
        FileNotFoundError: If `path` does not exist.
        OSError: If a URL cannot be read.
        ValueError: If it is no data set of a known layout, or the CSV or the shards' index is
            faulty.
    """
    layout = find_layout(path)
    if isinstance(layout, ShardLayout):
        return _list_shards(layout, problems)
    if isinstance(layout, CsvLayout):
        return _list_csv(layout)
    return _list_folders(layout, problems)


def _list_csv(layout: CsvLayout) -> Listing:
    label_of: dict[str, int] = {}
    split_of: dict[str, int] = {}
    labels, splits = array("i"), array("i")

    def listed() -> Iterator[str]:
        for row in read_csv(layout.csv_path):
            labels.append(label_of.setdefault(row.label, len(label_of)))
            splits.append(split_of.setdefault(row.split or NO_SPLIT, len(split_of)))
            yield row.path

    paths = PathTable(listed())
    names = sort_labels(label_of)
    rank = np.empty(len(names), np.int32)  # from order of appearance to sorted order
    for label, name in enumerate(names):
        rank[label_of[name]] = label
    return Listing(
        root=layout.csv_path.parent,
        description=layout.description,
        class_names=names,
        split_names=list(split_of),
        paths=paths,
        labels=rank[np.array(labels, np.int32)],
        splits=np.array(splits, np.int32),
        is_image=np.ones(len(paths), np.bool_),
    )


def _list_shards(layout: ShardLayout, problems: list[Problem]) -> Listing:
    opened = open_shards(layout.location)
    for name, what in opened.wrong_shards.items():
        problems.append(Problem("shard", (name,), what))
    splits = [name for name in SPLITS if name in opened.parts]
    whole = opened.parts["all" if len(splits) > 1 else splits[0]]
    counts = [len(opened.parts[name]) for name in splits]
    return Listing(
        root=Path(),
        description=opened.description,
        class_names=opened.class_names,
        split_names=splits,
        paths=PathTable(whole.sample_ids()),
        labels=whole.labels.astype(np.int32),
        splits=np.repeat(np.arange(len(splits), dtype=np.int32), counts),
        is_image=np.ones(len(whole), np.bool_),
        shards=whole,
    )


def _list_folders(layout: FolderLayout, problems: list[Problem]) -> Listing:
    parts = [(name, folder) for name, folder in _split_folders(layout) if folder is not None]
    class_names = sorted({name for _, folder in parts for name in subfolders(folder)})
    label_of = {name: label for label, name in enumerate(class_names)}
    labels, splits, is_image = array("i"), array("i"), array("b")

    def listed() -> Iterator[str]:
        for split, (_, folder) in enumerate(parts):
            problems.extend(_misplaced(folder, layout.root))
            for name in subfolders(folder):
                num_images = 0
                for path in walk_files(os.fspath(folder / name)):
                    labels.append(label_of[name])
                    splits.append(split)
                    is_image.append(is_image_name(path))
                    num_images += is_image[-1]
                    yield _relative(path, layout.root)
                if num_images == 0:
                    empty = (_relative(os.fspath(folder / name), layout.root),)
                    problems.append(Problem("empty_class", empty, "no image files in it"))

    paths = PathTable(listed())
    if layout.train is not None and layout.val is not None:
        for name in sorted(set(subfolders(layout.val)) - set(subfolders(layout.train))):
            unknown = (_relative(os.fspath(layout.val / name), layout.root),)
            problems.append(Problem("unknown_class", unknown, f"no such folder in {layout.train}"))
    return Listing(
        root=layout.root,
        description=layout.description,
        class_names=class_names,
        split_names=[name for name, _ in parts],
        paths=paths,
        labels=np.array(labels, np.int32),
        splits=np.array(splits, np.int32),
        is_image=np.array(is_image, np.bool_),
    )


def _split_folders(layout: FolderLayout) -> list[tuple[str, Path | None]]:
    if layout.val is None:
        return [(NO_SPLIT, layout.train)]
    return [("train", layout.train), ("val", layout.val)]


def _misplaced(folder: Path, root: Path) -> Iterator[Problem]:
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and not e.is_dir()]
    for name in sorted(filter(is_image_name, names)):
        path = _relative(os.path.join(folder, name), root)
        yield Problem("misplaced", (path,), "move it to the folder of its class")


def _relative(path: str, root: Path) -> str:
    prefix = os.path.join(os.fspath(root), "")
    return path.removeprefix(prefix).replace(os.sep, "/")
