"""Classification data sets: class folders, CSV files, tar shards and the built-in shapes.

Shape legend: N images.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wavevit.data.csv_file import VAL_NAMES, CsvRow, read_csv, sort_labels
from wavevit.data.holdout import choose_val
from wavevit.data.image_files import ImageFileDataset, PathTable
from wavevit.data.images import IMAGE_EXTENSIONS, is_image_name, walk_files
from wavevit.data.layouts import (
    EXPECTED,
    CsvLayout,
    FolderLayout,
    ShardLayout,
    find_layout,
    subfolders,
)
from wavevit.data.shapes import ShapesDataset
from wavevit.data.shards.dataset import ShardDataset, open_shards, refuse_wrong_shards

Split = Literal["train", "val", "all"]


class ClassificationDataset(Protocol):
    """Images with one class each, addressed by index."""

    class_names: list[str]
    """Name of every label, in the order of the labels."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) index into `class_names`, per image."""
        ...

    def __len__(self) -> int:
        """Number of images N."""
        ...

    def sample_id(self, index: int) -> str:
        """Unique name of an image, a posix path that is the same on every machine."""
        ...

    def sample_ids(self) -> Iterator[str]:
        """The names of all images in order."""
        ...

    def load(self, index: int, *, min_size: int | None = None) -> Image.Image:
        """The image in mode RGB; raises `UnreadableImageError` (see `images.load_image`)."""
        ...

    def subset(self, indices: NDArray[np.int64]) -> "ClassificationDataset":
        """The data set of the images at `indices`, in that order, with the same class names."""
        ...


@dataclass(frozen=True)
class ClassificationSplits:
    """The splits of a data set, all with the same class names."""

    class_names: list[str]
    """Name of every label."""
    description: str
    """One line for the log, which says where the splits come from."""
    parts: dict[str, ClassificationDataset]
    """"train", "val", or both, and "all" where the data is more than one part."""
    held_out: bool = False
    """Whether we drew the val split, rather than the user."""

    @property
    def train(self) -> ClassificationDataset:
        """Images to train on; ValueError if the data set has none."""
        return self.get("train")

    @property
    def val(self) -> ClassificationDataset:
        """Images to validate on; ValueError if the data set has none."""
        return self.get("val")

    def get(self, split: Split) -> ClassificationDataset:
        """A split by name, or all images.

        Args:
            split: "train", "val" or "all".

        Returns:
            The data set; "all" has the training images first.

        Raises:
            ValueError: If the data set has no such split.
        """
        if split == "all" and len(self.parts) == 1:
            return next(iter(self.parts.values()))
        if split not in self.parts:
            have = ", ".join(repr(name) for name in self.parts)
            raise ValueError(
                f"no split {split!r} in this data set ({self.description}); has {have}"
            )
        return self.parts[split]

    def keep_validation(self, kept: NDArray[np.int64]) -> "ClassificationSplits":
        """The splits with some of the validation images only; "all" keeps the others.

        Args:
            kept: Their indices.
        """
        return replace(self, parts={**self.parts, "val": self.val.subset(kept)})


def open_classification(
    path: Path | str,
    *,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    image_size: int = 64,
    class_names: Sequence[str] | None = None,
) -> ClassificationSplits:
    """The train and val splits of a data set of any supported layout.

    * A folder with `train/` and `val/` (or `valid/`, `validation/`, `test/`: the first that exists)
      of class folders. Only one of them is fine: a lone `train/` is split, a lone `val/` is for
      evaluation.
    * One folder of class folders, split. Images in subfolders of a class folder belong to the
      class.
    * A CSV file with the columns `path,label` and perhaps `split`, or a folder with one such file
      and no class folders. Labels that are all whole numbers are ordered as numbers.
    * Tar shards that `wavevit shard` has written: a folder, or any URL that fsspec reads, such as
      "s3://bucket/set" or "simplecache::https://host/set".
    * "shapes", the generated set.

    A split takes the fraction of each class by a hash of the seed and the path, so a file's side
    does not depend on the other classes, on the order of the files or on the machine. A class of
    two or more images has at least one on each side; a single image is for training.

    Args:
        path: Folder, CSV file, "shapes" (a folder of that name is "./shapes"), or, as a string,
            a URL: it has "://" or "::" in it.
        val_fraction: Part of each class to hold out where the data set has no split of its own, in
            [0, 1); 0 makes no val split.
        split_seed: Seed of that choice.
        image_size: Side in pixels of the generated images; files keep their own size.
        class_names: The classes of a trained model, to label the images by; a data set with fewer
            classes is then fine. None (the default) takes the classes of the data set, sorted.

    Returns:
        The splits.

    Raises:
        FileNotFoundError: If `path` does not exist, or no file that a CSV lists.
        OSError: If a URL cannot be read.
        ValueError: If it is no data set: an archive, an image, no or empty class folders, fewer
            than two classes, a class that training does not know, a faulty CSV, missing shards, a
            URL that needs a package which is not installed.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction is a part in [0, 1), got {val_fraction}")
    if os.fspath(path) == "shapes":
        return _open_shapes(image_size, class_names)
    layout = find_layout(path)
    if isinstance(layout, CsvLayout):
        return _open_csv(layout, val_fraction, split_seed, class_names)
    if isinstance(layout, ShardLayout):
        return _open_shards(layout, val_fraction, split_seed, class_names)
    return _open_folder(layout, val_fraction, split_seed, class_names)


def list_class_folder(folder: Path, root: Path) -> Iterator[str]:
    """Image files under a class folder as posix paths relative to the data set's root, sorted."""
    prefix = len(os.path.join(os.fspath(root), ""))
    for path in walk_files(os.fspath(folder)):
        if is_image_name(path):
            yield path[prefix:].replace(os.sep, "/")


def _open_shapes(image_size: int, class_names: Sequence[str] | None) -> ClassificationSplits:
    train = ShapesDataset("train", image_size=image_size)
    val = ShapesDataset("val", image_size=image_size)
    if class_names is not None and list(class_names) != train.class_names:
        raise ValueError(
            f"the built-in set 'shapes' has the classes {', '.join(train.class_names)}; "
            f"expected {_shortened(class_names)}; name the data the model was trained for"
        )
    description = f"generated shapes: {len(train)} train, {len(val)} val"
    return ClassificationSplits(train.class_names, description, {"train": train, "val": val})


def _open_folder(
    layout: FolderLayout, fraction: float, seed: int, class_names: Sequence[str] | None
) -> ClassificationSplits:
    source = layout.train or layout.val
    assert source is not None
    names = subfolders(source)
    known = _check_class_names(names if class_names is None else class_names, class_names is None)
    read = {
        split: _read_class_folders(folder, layout, known, empty_is_fine=folder != source)
        for split, folder in (("train", layout.train), ("val", layout.val))
        if folder is not None
    }
    if layout.val is None:
        return _held_out(read["train"], fraction, seed, layout.description)
    if layout.train is not None:
        both = [read["train"], read["val"]]
        paths = PathTable(path for part in both for path in part.sample_ids())
        labels = np.concatenate([part.labels for part in both])
        read["all"] = ImageFileDataset(layout.root, paths, labels, known)
    return ClassificationSplits(known, layout.description, dict(read))


def _read_class_folders(
    folder: Path, layout: FolderLayout, class_names: list[str], *, empty_is_fine: bool
) -> ImageFileDataset:
    labels: list[NDArray[np.int64]] = []
    empty: list[str] = []
    label_of = {name: label for label, name in enumerate(class_names)}
    names = subfolders(folder)
    unknown = [name for name in names if name not in label_of]
    if unknown:
        raise ValueError(
            f"{str(folder)!r} has class folders that are not among the {len(class_names)} known "
            f"classes ({_shortened(class_names)}): {_shortened(unknown)}; rename or remove them"
        )

    def listed() -> Iterator[str]:
        for name in names:
            count = 0
            for path in list_class_folder(folder / name, layout.root):
                count += 1
                yield path
            labels.append(np.full(count, label_of[name], np.int64))
            if count == 0:
                empty.append(name)

    paths = PathTable(listed())
    if len(paths) == 0:
        raise ValueError(f"no images in the class folders of {str(folder)!r}; {_extensions()}")
    if empty and not empty_is_fine:
        raise ValueError(
            f"class folders without images in {str(folder)!r}: {_shortened(empty)}; "
            f"add images or remove the folders ({_extensions()})"
        )
    return ImageFileDataset(layout.root, paths, np.concatenate(labels), class_names)


def _open_csv(
    layout: CsvLayout, fraction: float, seed: int, class_names: Sequence[str] | None
) -> ClassificationSplits:
    root = layout.csv_path.parent
    texts: list[str] = []
    splits: list[str | None] = []
    paths = PathTable(_checked_paths(read_csv(layout.csv_path), layout.csv_path, texts, splits))
    if len(paths) == 0:
        raise ValueError(f"{layout.csv_path} lists no images; expected lines under its header")
    _check_some_exist(root, paths, layout.csv_path)
    of_train = {t for t, s in zip(texts, splits, strict=True) if s in ("train", None)}
    names = sort_labels(of_train or set(texts)) if class_names is None else list(class_names)
    known = _check_class_names(names, class_names is None)
    label_of = {name: label for label, name in enumerate(known)}
    unknown = sorted(set(texts) - set(known))
    if unknown:
        raise ValueError(
            f"{layout.csv_path} has labels that are not among the {len(known)} known classes "
            f"({_shortened(known)}): {_shortened(unknown)}; correct them or add training images"
        )
    labels = np.fromiter((label_of[text] for text in texts), np.int64, len(texts))
    every = ImageFileDataset(root, paths, labels, known)
    if splits[0] is None:
        return _held_out(every, fraction, seed, layout.description)
    return _by_split_column(every, np.array(splits), fraction, seed, layout.description)


def _checked_paths(
    rows: Iterable[CsvRow], csv_path: Path, texts: list[str], splits: list[str | None]
) -> Iterator[str]:
    """Yields each row's path, refuses one that came before, and collects labels and splits."""
    lines: dict[str, int] = {}
    shared: dict[str, str] = {}  # one string object per class and split, not per row
    for row in rows:
        first = lines.setdefault(row.path, row.line)
        if first != row.line:
            raise ValueError(
                f"{csv_path}, line {row.line}: {row.path!r} is listed already, in line {first}; "
                "remove one of the two"
            )
        texts.append(shared.setdefault(row.label, row.label))
        splits.append(row.split and shared.setdefault(row.split, row.split))
        yield row.path


def _by_split_column(
    every: ImageFileDataset, splits: NDArray[np.str_], fraction: float, seed: int, description: str
) -> ClassificationSplits:
    val_names = [name for name in VAL_NAMES if np.any(splits == name)]
    train = every.subset(np.flatnonzero(splits == "train"))
    if not val_names:
        return _held_out(train, fraction, seed, description)
    val = every.subset(np.flatnonzero(splits == val_names[0]))
    description += f"; val from the rows marked {val_names[0]!r}"
    if len(val_names) > 1:
        description += f"; not used: {', '.join(val_names[1:])}"
    if len(train) == 0:
        return ClassificationSplits(every.class_names, description, {"val": val})
    used = np.flatnonzero((splits == "train") | (splits == val_names[0]))
    parts: dict[str, ClassificationDataset] = {"train": train, "val": val}
    parts["all"] = every.subset(used)
    return ClassificationSplits(every.class_names, description, parts)


def _open_shards(
    layout: ShardLayout, fraction: float, seed: int, class_names: Sequence[str] | None
) -> ClassificationSplits:
    opened = open_shards(layout.location, class_names)
    refuse_wrong_shards(opened)
    known = _check_class_names(opened.class_names, class_names is None)
    if opened.parts.keys() == {"train"}:
        return _held_out(opened.parts["train"], fraction, seed, opened.description)
    return ClassificationSplits(known, opened.description, dict(opened.parts))


def _held_out(
    every: ImageFileDataset | ShardDataset, fraction: float, seed: int, description: str
) -> ClassificationSplits:
    if fraction == 0:
        return ClassificationSplits(every.class_names, description, {"train": every})
    is_val = choose_val(every.sample_ids(), every.labels, fraction=fraction, seed=seed)
    train, val = every.subset(np.flatnonzero(~is_val)), every.subset(np.flatnonzero(is_val))
    description += f"; {fraction:g} of each class held out for val (seed {seed})"
    parts: dict[str, ClassificationDataset] = {"train": train, "val": val, "all": every}
    if len(val) == 0:
        raise ValueError(
            f"no class has the two images that holding out for val needs ({description}); "
            "add images, or pass val_fraction=0"
        )
    return ClassificationSplits(every.class_names, description, parts, held_out=True)


def _check_class_names(names: Sequence[str], found_in_data: bool) -> list[str]:
    if found_in_data and len(names) < 2:
        raise ValueError(
            f"a classifier needs at least 2 classes, found only {_shortened(names) or 'none'}; "
            f"expected {EXPECTED}"
        )
    if len(set(names)) != len(names):
        raise ValueError(f"class names must differ from each other, got {_shortened(names)}")
    return list(names)


def _check_some_exist(root: Path, paths: PathTable, csv_path: Path) -> None:
    # All of them would take minutes on a network drive; a wrong base folder shows in any few.
    picked = [paths[int(i)] for i in np.linspace(0, len(paths) - 1, 32).round()]
    if not any((root / path).exists() for path in picked):
        raise FileNotFoundError(
            f"no file that {csv_path} lists was found (tried {root / picked[0]}"
            " and others); paths are relative to the CSV's folder, or absolute"
        )


def _shortened(names: Sequence[str], limit: int = 5) -> str:
    text = ", ".join(names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def _extensions() -> str:
    return f"image files end in {', '.join(sorted(IMAGE_EXTENSIONS))}"
