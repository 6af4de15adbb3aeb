"""Telling how images and their masks lie on disk, and their splits."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wavevit.data.csv_file import VAL_NAMES
from wavevit.data.images import is_image_name, walk_files
from wavevit.data.layouts import subfolders
from wavevit.data.segmentation.class_list import CLASS_LIST

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "leftImg8bit", "JPEGImages")
MASK_FOLDERS = (
    *("annotations", "labels", "masks", "annotation", "label", "mask", "ann_dir", "gtFine"),
    "SegmentationClass",
)

EXPECTED = (
    "images and masks in folders such as images/train and annotations/train (or masks/train, "
    "labels/train), or train/images and train/masks, or images and masks, with masks as PNG files"
)

NO_SPLIT = "all"
"""The name of the only split where there are none."""

_SPLIT_OF_FOLDER = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_ORDER = ("train", "val", "test")
_MASK_SUFFIX = ".png"
# Of the folders of Cityscapes, which have several pictures for each image.
_IMAGE_SUFFIX_OF_FOLDER = {"leftImg8bit": "_leftImg8bit.png"}
_MASK_SUFFIX_OF_FOLDER = {"gtFine": "_gtFine_labelTrainIds.png"}


class UnclearLayoutError(ValueError):
    """Images and masks of which it is not clear which belong together."""


@dataclass(frozen=True)
class PairPattern:
    """Where images and masks are and how their names belong together; None for what is usual.

    A mask has its image's place in the tree and its name, up to the two endings.

    Attributes:
        image_folder: Folder of images, relative to the data or to the folder of a split.
        mask_folder: Folder of masks, likewise.
        image_suffix: How the names of images end, such as "_rgb.jpg".
        mask_suffix: How the names of masks end, such as "_labels.png".

    Raises:
        ValueError: A folder outside of the data, or an ending that is none.
    """

    image_folder: str | None = None
    mask_folder: str | None = None
    image_suffix: str | None = None
    mask_suffix: str | None = None

    def __post_init__(self) -> None:
        for name, folder in (
            ("image_folder", self.image_folder),
            ("mask_folder", self.mask_folder),
        ):
            if folder is not None and (
                not folder or os.path.isabs(folder) or ".." in Path(folder).parts
            ):
                raise ValueError(f"{name} is a path inside of the data, got {folder!r}")
        for name, suffix in (
            ("image_suffix", self.image_suffix),
            ("mask_suffix", self.mask_suffix),
        ):
            if suffix is not None and (not suffix or "/" in suffix):
                raise ValueError(f"{name} is the end of a file's name, got {suffix!r}")


@dataclass(frozen=True)
class SegmentationSplit:
    """A folder of images and a folder of masks."""

    images: Path
    """Folder of images, at any depth."""
    masks: Path
    """Folder of masks."""
    image_suffix: str | None
    """How the images' names end; None for any image."""
    mask_suffix: str
    """How the masks' names end."""


@dataclass(frozen=True)
class SegmentationLayout:
    """A data set of images with masks."""

    root: Path
    """Absolute path of its folder."""
    splits: dict[str, SegmentationSplit]
    """Under "train", "val" (also where it is called otherwise), "test", and others as they are
    called; "all" where there are no splits."""
    without_masks: tuple[Path, ...]
    """Folders of splits that have images, but no folder of masks."""
    class_list: Path | None
    """The file with the names of classes, if there is one."""
    description: str
    """One line for the log, which says what was taken for what."""

    def split(self, name: str) -> SegmentationSplit:
        """A split by name.

        Args:
            name: Of the split.

        Raises:
            ValueError: If there is no such split.
        """
        if name not in self.splits:
            have = ", ".join(repr(other) for other in self.splits)
            raise ValueError(f"no split {name!r} in {str(self.root)!r}; has {have}")
        return self.splits[name]


def is_segmentation(path: str | Path) -> bool:
    """Whether a folder looks like images with masks, from the names in it.

    Args:
        path: Of the folder.
    """
    try:
        return bool(find_segmentation_layout(path).splits)
    except UnclearLayoutError:
        return True  # whoever opens or checks it says what is to be chosen
    except (ValueError, OSError):
        return False


def find_segmentation_layout(
    path: str | Path, pattern: PairPattern | None = None
) -> SegmentationLayout:
    """How the images and masks in a folder are laid out.

    * ADE20K and its like: ``images/<split>`` and ``annotations/<split>``, or ``labels``, ``masks``.
    * Splits first: ``<split>/images`` and ``<split>/masks``.
    * Cityscapes: ``leftImg8bit/<split>`` and ``gtFine/<split>`` with ``_labelTrainIds`` masks.
    * No splits: ``images`` and ``masks``; all are the split "all".

    Splits are called train or training; val, valid or validation; test or testing. Folders of a
    split may have folders in them. Where there is but "test" beside "train", it is "val".

    Args:
        path: The folder.
        pattern: Folders and endings where they are called otherwise; None for the usual ones.

    Returns:
        The layout.

    Raises:
        FileNotFoundError: If nothing is at `path`.
        UnclearLayoutError: If more than one folder may be meant, or has no masks of the ending.
        ValueError: If it is none of them.
    """
    pattern = pattern or PairPattern()
    root = Path(os.path.abspath(path))
    if not root.exists():
        raise FileNotFoundError(f"no such folder: {str(path)!r}; expected {EXPECTED}")
    if not root.is_dir():
        raise ValueError(f"expected {EXPECTED}; {str(path)!r} is a file: name the folder")
    splits: dict[str, SegmentationSplit] = {}
    lacking: list[Path] = []
    for name, images, masks in _candidates(root, pattern):
        if masks is None:
            lacking.append(images)
        elif name in splits:
            raise ValueError(
                f"{str(splits[name].images)!r} and {str(images)!r} are both the split {name!r}; "
                "keep one of them"
            )
        else:
            splits[name] = SegmentationSplit(images, masks, *_suffixes(images, masks, pattern))
    if not splits:
        raise ValueError(f"no images with masks in {str(path)!r}; expected {EXPECTED}")
    return _layout(root, splits, lacking)


def _candidates(root: Path, pattern: PairPattern) -> Iterator[tuple[str, Path, Path | None]]:
    """Name, folder of images and, if there is one, folder of masks of each split."""
    images = _one_folder(root, pattern.image_folder, IMAGE_FOLDERS)
    if images is None:
        for folder in _split_folders(root):
            inside = _one_folder(root / folder, pattern.image_folder, IMAGE_FOLDERS)
            if inside is not None:
                yield _SPLIT_OF_FOLDER[folder.lower()], inside, _masks(root / folder, pattern)
        return
    masks = _masks(root, pattern)
    if not _split_folders(images):
        if masks is not None:
            yield NO_SPLIT, images, masks
        return
    mask_folders = {} if masks is None else {_split_name(n): masks / n for n in subfolders(masks)}
    for folder in subfolders(images):
        name = _split_name(folder)
        yield name, images / folder, mask_folders.get(name)


def _one_folder(base: Path, chosen: str | None, usual: tuple[str, ...]) -> Path | None:
    """The folder of images."""
    if chosen is not None:
        return base / chosen if (base / chosen).is_dir() else None
    found = [name for name in usual if (base / name).is_dir()]
    if len(found) > 1:
        raise UnclearLayoutError(
            f"images may be in {found[0]!r} or {found[1]!r} of {str(base)!r}; choose by "
            "image_folder"
        )
    return base / found[0] if found else None


def _masks(base: Path, pattern: PairPattern) -> Path | None:
    """The folder that has files like masks."""
    names = MASK_FOLDERS if pattern.mask_folder is None else (pattern.mask_folder,)
    folders = [base / name for name in names if (base / name).is_dir()]
    found = [folder for folder in folders if _holds_masks(folder, pattern)]
    if len(found) > 1:
        raise UnclearLayoutError(
            f"masks may be in {found[0].name!r} or {found[1].name!r} of {str(base)!r}; choose by "
            "mask_folder"
        )
    if folders and not found and (pattern.mask_folder or folders[0].name in _MASK_SUFFIX_OF_FOLDER):
        raise UnclearLayoutError(
            f"no file in {str(folders[0])!r} ends in {_mask_suffix(folders[0], pattern)!r}; choose "
            "another ending by mask_suffix, or make these masks (Cityscapes' are made by "
            "createTrainIdLabelImgs of cityscapesscripts)"
        )
    return found[0] if found else None


def _holds_masks(folder: Path, pattern: PairPattern) -> bool:
    return any(True for _ in files_ending_in(_mask_suffix(folder, pattern), folder))


def _mask_suffix(folder: Path, pattern: PairPattern) -> str:
    if pattern.mask_suffix is not None:
        return pattern.mask_suffix
    names = (folder.name, folder.parent.name)  # of the split's parent, where there are splits
    return next((s for f, s in _MASK_SUFFIX_OF_FOLDER.items() if f in names), _MASK_SUFFIX)


def _suffixes(images: Path, masks: Path, pattern: PairPattern) -> tuple[str | None, str]:
    image_suffix = pattern.image_suffix
    if image_suffix is None:
        names = (images.name, images.parent.name)
        usual = (s for f, s in _IMAGE_SUFFIX_OF_FOLDER.items() if f in names)
        image_suffix = next(usual, None)
    return image_suffix, _mask_suffix(masks, pattern)


def _split_folders(folder: Path) -> list[str]:
    return [name for name in subfolders(folder) if name.lower() in _SPLIT_OF_FOLDER]


def _split_name(folder: str) -> str:
    return _SPLIT_OF_FOLDER.get(folder.lower(), folder)


def _layout(
    root: Path, splits: dict[str, SegmentationSplit], lacking: list[Path]
) -> SegmentationLayout:
    if "val" not in splits and "train" in splits:
        others = [name for name in VAL_NAMES if name in splits]
        splits = {("val" if name in others[:1] else name): s for name, s in splits.items()}
    rank = {name: number for number, name in enumerate(_ORDER)}
    ordered = dict(sorted(splits.items(), key=lambda item: rank.get(item[0], len(rank))))
    parts = []
    for name, split in ordered.items():
        images, masks = (f.relative_to(root).as_posix() for f in (split.images, split.masks))
        parts.append(f"{name}: {images} with {masks}")
    for folder in lacking:
        parts.append(f"without masks: {folder.relative_to(root).as_posix()}")
    class_list = root / CLASS_LIST
    return SegmentationLayout(
        root=root,
        splits=ordered,
        without_masks=tuple(lacking),
        class_list=class_list if class_list.is_file() else None,
        description=f"images and masks in {root} ({', '.join(parts)})",
    )


def files_ending_in(suffix: str, folder: Path) -> Iterator[str]:
    """Paths of the files at any depth of a folder whose names end so, in either case.

    Args:
        suffix: End of the names.
        folder: Where to look.

    Returns:
        Paths that start with `folder`, in the order of `images.walk_files`.
    """
    ending = suffix.lower()
    return (path for path in walk_files(os.fspath(folder)) if path.lower().endswith(ending))


def files_beside_splits(layout: SegmentationLayout) -> list[Path]:
    """Images that lie beside the folders of splits, and so are in none.

    Args:
        layout: Of the data set.
    """
    parents = {split.images.parent for name, split in layout.splits.items() if name != NO_SPLIT}
    return sorted(
        entry
        for parent in parents
        for entry in parent.iterdir()
        if is_image_name(entry.name) and not entry.name.startswith(".") and entry.is_file()
    )
