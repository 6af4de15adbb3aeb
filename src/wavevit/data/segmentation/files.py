"""Images and masks on disk, opened as data sets without faults.

Shape legend: K classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from wavevit.data.file_inspection import run_in_order
from wavevit.data.images import UnreadableImageError
from wavevit.data.problems import refuse_first_error
from wavevit.data.segmentation.class_list import (
    SegmentationClasses,
    check_same,
    listed_classes,
    numbered_classes,
)
from wavevit.data.segmentation.counted_classes import classes_in_masks
from wavevit.data.segmentation.dataset import SegmentationDataset
from wavevit.data.segmentation.layouts import (
    PairPattern,
    SegmentationLayout,
    files_ending_in,
    find_segmentation_layout,
)
from wavevit.data.segmentation.masks import LabelRule, MaskError, read_palette
from wavevit.data.segmentation.pairs import find_pairs
from wavevit.data.segmentation.palette import is_colourful
from wavevit.data.segmentation.problems import SegmentationProblem, counted

_READ_WHOLE = 2_000
"""Masks that are all read on opening: a few seconds of work."""

_PAIRS_READ = 64
"""Of more masks: enough to find what is wrong with many of them."""

_NUM_THREADS = 4


@dataclass(frozen=True)
class SegmentationFiles:
    """Images with masks in a folder; `dataset` opens a split."""

    layout: SegmentationLayout
    """Where they are."""
    rule: LabelRule
    """How numbers in mask files are labels."""
    classes: SegmentationClasses
    """What labels stand for, in all splits."""

    @property
    def splits(self) -> list[str]:
        """Names: "train", "val", "test" and others; "all" where there are no splits."""
        return list(self.layout.splits)

    @property
    def description(self) -> str:
        """One line for the log: what was taken for what."""
        ignored = "255" if self.rule.ignore_index is None else f"{self.rule.ignore_index} and 255"
        zero = ", 0 ignored and classes from 1 on" if self.rule.reduce_zero_label else ""
        text = f"{self.layout.description}; {self.classes.description}, ignored: {ignored}{zero}"
        doubts = (self.classes.suspect(self.rule), self.classes.gap)
        return "; ".join([text, *(str(doubt) for doubt in doubts if doubt is not None)])

    def dataset(self, split: str) -> SegmentationDataset:
        """The images of a split, each with a mask.

        Up to 2,000 masks are all read to find what is wrong; of more, 64, spread over the split.
        The others are checked when they are loaded.

        Args:
            split: One of `splits`.

        Returns:
            The data set.

        Raises:
            ValueError: No such split, no images in it, or anything is wrong: the message has the
                first error and how many there are.
            OSError: If a folder cannot be listed.
        """
        pairs, problems = find_pairs(self.layout.root, self.layout.split(split))
        advice = f"`{self._check_command()}` lists all"
        refuse_first_error(problems, advice)
        if not len(pairs):
            raise ValueError(f"no images in the split {split!r} ({self.layout.description})")
        dataset = SegmentationDataset(pairs, self.classes, self.rule, self.description)
        picked = _picked(len(dataset))
        tasks = (partial(_fault, dataset, index) for index in picked)
        faults = [fault for fault in run_in_order(tasks, _NUM_THREADS) if fault is not None]
        count = f"{len(picked):,} of {counted(len(dataset), 'mask')} read"
        refuse_first_error(faults, f"{count}; {advice}")
        return dataset

    def _check_command(self) -> str:
        options = ["--task segmentation"]
        if self.rule.ignore_index is not None:
            options.append(f"--ignore-index {self.rule.ignore_index}")
        if self.rule.reduce_zero_label:
            options.append("--reduce-zero-label")
        return f"wavevit check-data {self.layout.root} {' '.join(options)}"


def open_segmentation(
    path: str | Path,
    *,
    pattern: PairPattern | None = None,
    rule: LabelRule | None = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    num_workers: int = 2,
) -> SegmentationFiles:
    """Images and masks in a folder, with their classes.

    Names of classes are those of classes.txt in the folder. Without it there are as many as
    `class_names` or `num_classes` say, or as the largest label of all masks needs, which are then
    all read. Colours are those of classes.txt, or of the first mask's palette, or generated.

    Args:
        path: The folder, as in `find_segmentation_layout`.
        pattern: Names of folders and endings of files; None for the usual ones.
        rule: How numbers in mask files are labels; None ignores 255 only.
        class_names: The classes of a trained model, which those of a classes.txt have to equal.
        num_classes: K, where there is no classes.txt.
        num_workers: Threads that read masks where the largest label is looked for.

    Returns:
        The files.

    Raises:
        FileNotFoundError: If nothing is at `path`.
        ValueError: If it is no such data set, or its classes are wrong or others.
        OSError: If a file cannot be read.
    """
    layout = find_segmentation_layout(path, pattern)
    rule = rule or LabelRule()
    classes = find_classes(
        layout, rule, class_names=class_names, num_classes=num_classes, num_workers=num_workers
    )
    return SegmentationFiles(layout, rule, classes)


def find_classes(
    layout: SegmentationLayout,
    rule: LabelRule,
    *,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    num_workers: int = 2,
) -> SegmentationClasses:
    """The classes of a data set; arguments, result and errors are those of `open_segmentation`.

    Args:
        layout: Of the data set.
        rule: As there.
        class_names: As there.
        num_classes: As there.
        num_workers: As there.

    Returns:
        Names and colours.

    Raises:
        LabelCountError: Neither is given, and the masks have fewer than two labels, or one that is
            too large.
        ValueError: As there.
        OSError: If a file cannot be read.
    """
    if layout.class_list is not None:
        classes = listed_classes(layout.class_list, rule)
        if num_classes not in (None, len(classes.names)):
            raise ValueError(f"num_classes is {num_classes}, but there are {classes.description}")
    elif class_names is not None:
        classes = numbered_classes(len(class_names), "of the model")
        classes = replace(classes, names=list(class_names))
    elif num_classes is not None:
        classes = numbered_classes(num_classes, "by num_classes")
    else:
        classes = classes_in_masks(layout.root, _mask_paths(layout), rule, num_workers)
    if class_names is not None:
        check_same(classes, class_names, str(layout.root))
    if not classes.is_coloured:
        palette = _palette_of_masks(layout, rule, len(classes.names))
        if palette is not None:
            classes = replace(classes, palette=palette, is_coloured=True)
    return classes


def _mask_paths(layout: SegmentationLayout) -> Iterator[str]:
    for split in layout.splits.values():
        yield from files_ending_in(split.mask_suffix, split.masks)


def _palette_of_masks(
    layout: SegmentationLayout, rule: LabelRule, num_classes: int
) -> list[list[int]] | None:
    """The colours of a mask with a palette, if they tell the classes apart."""
    for path in _mask_paths(layout):
        try:
            colours = read_palette(path)[rule.first :][:num_classes]
        except (UnreadableImageError, MaskError):
            continue
        return colours if len(colours) == num_classes and is_colourful(colours) else None
    return None


def _picked(num_images: int) -> list[int]:
    """The images whose masks are read on opening."""
    if num_images <= _READ_WHOLE:
        return list(range(num_images))
    return np.unique(np.linspace(0, num_images - 1, _PAIRS_READ).astype(int)).tolist()


def _fault(dataset: SegmentationDataset, index: int) -> SegmentationProblem | None:
    try:
        dataset.check_mask(index)
    except MaskError as error:
        return SegmentationProblem(error.kind, error.path, error.reason)
    except UnreadableImageError:
        pass  # a damaged file is replaced in training, and stops an evaluation
    return None
