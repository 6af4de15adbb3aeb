"""Telling how a data set lies on disk: class folders with or without splits, a CSV file, shards."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

from wavevit.data.csv_file import SPLIT_NAMES
from wavevit.data.images import is_image_name, walk_files
from wavevit.data.shards.index import MANIFEST_NAME
from wavevit.data.shards.store import is_url

EXPECTED = (
    "a folder with train/ and val/ class folders, one folder of class folders, "
    "a CSV file with the columns path,label, tar shards, or 'shapes'"
)
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".xz", ".bz2", ".7z", ".rar")


@dataclass(frozen=True)
class FolderLayout:
    """Folders of class folders."""

    root: Path
    """What the user named; sample ids are relative to it."""
    train: Path | None
    """Folder of class folders for training; `root` itself where there are no split folders."""
    val: Path | None
    """Folder of class folders for validation; None means a part of `train` is to be held out."""
    description: str
    """One line for the log: what was taken for what."""


@dataclass(frozen=True)
class CsvLayout:
    """A CSV file that lists images."""

    csv_path: Path
    """Paths in the file are relative to its folder."""
    description: str
    """One line for the log."""


@dataclass(frozen=True)
class ShardLayout:
    """Tar files with a manifest."""

    location: str
    """Folder or URL."""


def find_layout(path: str | Path) -> FolderLayout | CsvLayout | ShardLayout:
    """How the data set at a path is laid out.

    Args:
        path: A folder or a CSV file, or, as a string, the URL of shards.

    Returns:
        The layout, with a description of what was chosen.

    Raises:
        FileNotFoundError: If nothing is at `path`.
        ValueError: If what is there is no known layout.
    """
    if is_url(path):
        return ShardLayout(str(path))
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"no such file or folder: {str(path)!r}; expected {EXPECTED}")
    if not root.is_dir():
        return _file_layout(root)
    if (root / MANIFEST_NAME).is_file():
        return ShardLayout(str(path))
    folders = subfolders(root)
    others = [n for n in folders if n not in SPLIT_NAMES and _holds_images(root / n)]
    splits = [n for n in SPLIT_NAMES if n in folders and _is_split(root / n, bool(others))]
    if splits:
        return _split_layout(root, splits)
    # Without class folders in it, a folder named like a split is a class of that name ("train"
    # beside "car"), unless there is nothing else or more than one such name.
    bare = [n for n in SPLIT_NAMES if n in folders and _holds_images(root / n)]
    csv_files = sorted(p for p in root.iterdir() if p.suffix.lower() == ".csv" and p.is_file())
    if len(csv_files) == 1 and (not others or len(others) + len(bare) < 2):
        return CsvLayout(csv_files[0], f"images listed in {csv_files[0]}")
    if bare and (not others or len(bare) > 1):
        raise ValueError(
            f"{str(root / bare[0])!r} holds images directly; expected class folders in it "
            f"({bare[0]}/<class>/<image>), or a CSV file with the columns path,label"
        )
    if others:
        return FolderLayout(root, root, None, f"class folders in {root}")
    raise ValueError(_no_classes_message(root, csv_files))


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder that are not hidden, sorted."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    return sorted(name for name in names if name != "__MACOSX")


def _file_layout(path: Path) -> CsvLayout:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return CsvLayout(path, f"images listed in {path}")
    if suffix in _ARCHIVES:
        kind, advice = "an archive", "unpack it and name the folder"
    elif path.name == MANIFEST_NAME:
        kind, advice = "the manifest of tar shards", "name its folder"
    elif is_image_name(path.name):
        kind, advice = "an image", "name the folder that holds the class folders"
    else:
        kind, advice = "a file", "name a folder or a .csv file"
    raise ValueError(f"expected {EXPECTED}; {str(path)!r} is {kind}: {advice}")


def _split_layout(root: Path, splits: list[str]) -> FolderLayout:
    train = root / "train" if "train" in splits else None
    val_names = [name for name in splits if name != "train"]
    val = root / val_names[0] if val_names else None
    parts = [f"train from {train}"] if train else []
    parts.append(f"val from {val}" if val else "val held out of it")
    if len(val_names) > 1:
        parts.append(f"not used: {', '.join(val_names[1:])}")
    return FolderLayout(root, train, val, "; ".join(parts))


def _holds_images(folder: Path) -> bool:
    return any(is_image_name(path) for path in walk_files(os.fspath(folder)))


def _is_split(folder: Path, has_other_classes: bool) -> bool:
    if not subfolders(folder):
        return False
    # A class may be called "train" and have folders in it; it then holds images directly as well.
    return not (has_other_classes and _count_images_in(folder, limit=1))


def _no_classes_message(root: Path, csv_files: list[Path]) -> str:
    if len(csv_files) > 1:
        names = ", ".join(p.name for p in csv_files[:5])
        return f"{str(root)!r} has {len(csv_files)} CSV files ({names}); name the one to use"
    images = _count_images_in(root, limit=1000)
    if images:
        count = "1000 or more" if images == 1000 else str(images)
        return (
            f"expected class folders in {str(root)!r}, got {count} images directly in it; "
            "sort them into one folder per class, or list them in a CSV file (path,label)"
        )
    tars = sorted(p.name for p in root.iterdir() if p.suffix == ".tar")
    if tars:
        return (
            f"{str(root)!r} has tar files ({tars[0]}) without a {MANIFEST_NAME}; make one with "
            f"`wavevit shard {root} --index-only`"
        )
    if not any(root.iterdir()):
        return f"{str(root)!r} is empty; expected {EXPECTED}"
    return f"no images found in the folders of {str(root)!r}; expected {EXPECTED}"


def _count_images_in(folder: Path, limit: int) -> int:
    """Number of images directly in a folder; counting stops at `limit`."""
    with os.scandir(folder) as entries:
        images = (
            entry
            for entry in entries
            if is_image_name(entry.name) and not entry.name.startswith(".") and entry.is_file()
        )
        return sum(1 for _ in itertools.islice(images, limit))
