"""Images and the masks that belong to them, by their names.

Shape legend: N images.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wavevit.data.image_files import PathTable
from wavevit.data.images import is_image_name, walk_files
from wavevit.data.segmentation.layouts import SegmentationSplit, files_ending_in
from wavevit.data.segmentation.problems import SegmentationProblem


@dataclass(frozen=True)
class FilePairs:
    """Image files and their masks, in arrays that worker processes share."""

    root: Path
    """Folder that the paths are relative to."""
    images: PathTable
    """N posix paths."""
    masks: PathTable
    """N posix paths, of the mask of each image."""

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: NDArray[np.int64]) -> "FilePairs":
        """The pairs at `indices`, in that order."""
        return FilePairs(self.root, self.images.take(indices), self.masks.take(indices))

    def image_path(self, index: int) -> Path:
        """Path of an image."""
        return self.root / self.images[index]

    def mask_path(self, index: int) -> Path:
        """Path of an image's mask."""
        return self.root / self.masks[index]


def find_pairs(root: Path, split: SegmentationSplit) -> tuple[FilePairs, list[SegmentationProblem]]:
    """The images of a split that have a mask, in the order of `images.walk_files`.

    Args:
        root: Folder of the data set.
        split: Where its files are.

    Returns:
        The pairs, and what is wrong: images without mask, masks without image, equal names.

    Raises:
        OSError: If a folder cannot be listed.
    """
    problems: list[SegmentationProblem] = []
    masks = _by_name(root, _mask_files(split), problems)
    images = _by_name(root, _image_files(split), problems)
    paired = [name for name in images if name in masks]
    for name, path in images.items():
        if name not in masks:
            expected = _posix(root, f"{split.masks}{os.sep}{name}{split.mask_suffix}")
            problems.append(SegmentationProblem("missing_mask", path, f"no mask {expected}"))
    for name, path in masks.items():
        if name not in images:
            ending = split.image_suffix or ".jpg or another image"
            expected = _posix(root, f"{split.images}{os.sep}{name}{ending}")
            problems.append(SegmentationProblem("orphan_mask", path, f"no image {expected}"))
    pairs = FilePairs(
        root,
        PathTable(images[name] for name in paired),
        PathTable(masks[name] for name in paired),
    )
    return pairs, problems


def _image_files(split: SegmentationSplit) -> Iterator[tuple[str, str]]:
    """Name without folder and ending, and path, of each image."""
    if split.image_suffix is not None:
        paths = files_ending_in(split.image_suffix, split.images)
    else:
        paths = filter(is_image_name, walk_files(os.fspath(split.images)))
    mask_ending = split.mask_suffix.lower() if split.images == split.masks else None
    for path in paths:
        if mask_ending is None or not path.lower().endswith(mask_ending):
            ending = split.image_suffix or os.path.splitext(path)[1]
            yield _inside(split.images, path)[: -len(ending)], path


def _mask_files(split: SegmentationSplit) -> Iterator[tuple[str, str]]:
    for path in files_ending_in(split.mask_suffix, split.masks):
        yield _inside(split.masks, path)[: -len(split.mask_suffix)], path


def _inside(folder: Path, path: str) -> str:
    # os.path.relpath takes ten times as long.
    return path[len(os.path.join(folder, "")) :]


def _by_name(
    root: Path, files: Iterator[tuple[str, str]], problems: list[SegmentationProblem]
) -> dict[str, str]:
    """Posix paths relative to the root, by name; a second file of a name is a problem."""
    found: dict[str, str] = {}
    for name, path in files:
        relative = _posix(root, path)
        if name in found:
            detail = f"the same name as {found[name]}, up to the ending"
            problems.append(SegmentationProblem("duplicate_name", relative, detail))
        else:
            found[name] = relative
    return found


def _posix(root: Path, path: str) -> str:
    return _inside(root, path).replace(os.sep, "/")
