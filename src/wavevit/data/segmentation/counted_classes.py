"""The classes of masks that no list names: as many as their largest label needs.

Shape legend: K classes. A number is what stands in a file; a label is counted from the first class.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from wavevit.data.file_inspection import run_in_order
from wavevit.data.images import UnreadableImageError
from wavevit.data.segmentation.class_list import SegmentationClasses, numbered_classes
from wavevit.data.segmentation.masks import LabelRule, MaskError, count_numbers, read_mask
from wavevit.data.segmentation.problems import SegmentationProblem, counted
from wavevit.data.segmentation.sample import IGNORED, MAX_CLASSES

_OF_16_BITS = 2**16 - 1  # what many tools write where there is no class


class LabelCountError(ValueError):
    """Masks that do not tell how many classes there are.

    `classes` are those that can be told, at least two, for whoever lists what is wrong.

    Args:
        message: What is wrong.
        classes: As said.
    """

    def __init__(self, message: str, classes: SegmentationClasses) -> None:
        super().__init__(message)
        self.classes = classes


def classes_in_masks(
    root: Path, paths: Iterable[str], rule: LabelRule, num_workers: int
) -> SegmentationClasses:
    """As many classes as the largest label needs; masks that cannot be read are left out.

    Args:
        root: Folder of the data set.
        paths: Of all its masks.
        rule: How their numbers are labels.
        num_workers: Threads that read them.

    Returns:
        The classes; with a `gap` if no mask has some of their labels.

    Raises:
        LabelCountError: Fewer than two labels, or one for which there is no class.
    """
    tasks = (partial(_labels, path, rule) for path in paths)
    file_of: dict[int, str] = {}  # the first mask with each label
    num_masks, fault = 0, None
    for path, found in run_in_order(tasks, num_workers):
        num_masks += 1
        if isinstance(found, ValueError):  # whoever opens or checks the split names it
            fault = fault or found
            continue
        for label in found:
            file_of.setdefault(label, Path(path).relative_to(root).as_posix())
    masks = counted(num_masks, "mask")
    largest = max((label for label in file_of if label < MAX_CLASSES), default=-1)
    classes = _classes(largest, masks, file_of, rule)
    if len(file_of) and max(file_of) >= MAX_CLASSES:
        raise LabelCountError(f"{root}: {_too_large(file_of, rule)}", classes)
    if largest < 1:
        why = "; an object's pixels are 1, 2, ..., and 255 is ignored" if fault is None else ""
        first = "" if fault is None else f"; {fault}"
        raise LabelCountError(
            f"{root}: expected two or more labels in {masks}, got {largest + 1}{why}{first}",
            classes,
        )
    return classes


def _labels(path: str, rule: LabelRule) -> tuple[str, list[int] | ValueError]:
    """A mask's labels, or what keeps them from being read."""
    try:
        return path, list(rule.count_labels(count_numbers(read_mask(path))))
    except (UnreadableImageError, MaskError) as error:
        # Without the traceback, whose frames would keep the half decoded mask alive.
        return path, error.with_traceback(None)


def _classes(
    largest: int, masks: str, file_of: dict[int, str], rule: LabelRule
) -> SegmentationClasses:
    if largest < 1:
        return numbered_classes(2, "at least")
    what = f"by the largest label in {masks} (a classes.txt would name them)"
    classes = numbered_classes(largest + 1, what)
    missing = [label for label in range(largest) if label not in file_of]
    if not missing:
        return classes
    number = largest + rule.first
    ignore = "" if rule.ignore_index is not None else f" or ignore_index={number}"
    detail = (
        f"it has the largest label, {number}, but no mask has {len(missing):,} of those below it, "
        f"such as {missing[0] + rule.first}; if it is a mistake, set num_classes{ignore}"
    )
    gap = SegmentationProblem("unused_label", file_of[largest], detail)
    return replace(classes, gap=gap)


def _too_large(file_of: dict[int, str], rule: LabelRule) -> str:
    wide = sorted(label for label in file_of if label >= MAX_CLASSES)
    number = wide[-1] + rule.first
    text = f"{file_of[wide[-1]]} has the label {number}; those of classes are at most {IGNORED - 1}"
    if len(wide) > 1:
        return f"{text}; {len(wide):,} labels are larger: write numbers of classes into masks"
    if rule.ignore_index is not None:
        return f"{text}; write 255 for it if it is to be ignored, too"
    often = " (16-bit masks often have it where there is no class)" if number == _OF_16_BITS else ""
    return f"{text}; ignore_index={number} ignores it{often}"
