"""The classes of a data set: names and colours from classes.txt, or as many as there are labels.

Shape legend: K classes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wavevit.data.image_listing import text_lines
from wavevit.data.segmentation.masks import LabelRule
from wavevit.data.segmentation.palette import class_palette
from wavevit.data.segmentation.problems import SegmentationProblem
from wavevit.data.segmentation.sample import MAX_CLASSES

CLASS_LIST = "classes.txt"

_NUMBER = re.compile(r"(\d+)[\s,:]+(?=\S)")
_COLOUR = re.compile(r"[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})$")
# What some lists call the pixels that belong to no class.
_NO_CLASS = ("unlabelled", "unlabeled", "void", "ignore", "ignored")


@dataclass(frozen=True)
class SegmentationClasses:
    """What labels stand for."""

    names: list[str]
    """Name of every label."""
    palette: list[list[int]]
    """Red, green, blue in [0, 255] of every label."""
    description: str
    """Where they are from."""
    is_coloured: bool = False
    """Whether the colours are the data set's own, and not generated."""
    gap: SegmentationProblem | None = None
    """The warning that masks, by which they were counted, lack some of their labels."""

    def suspect(self, rule: LabelRule) -> str | None:
        """What to say of a class whose name says that it is none, if there is one.

        Args:
            rule: How numbers in mask files are labels.
        """
        for label, name in enumerate(self.names):
            number = label + rule.first
            if name.lower() in _NO_CLASS and not rule.is_ignored(number):
                remedy = "" if rule.ignore_index is not None else f"; see ignore_index={number}"
                return f"the class {number} is called {name!r}, but is not ignored{remedy}"
        return None


@dataclass(frozen=True)
class ClassList:
    """What a classes.txt says."""

    names: list[str]
    """In its order."""
    colours: list[list[int]] | None
    """Red, green, blue of each; None if it has none."""
    first: int | None
    """Number of the first one; None if they are not numbered."""


def read_class_list(path: Path) -> ClassList:
    """The content of a classes.txt.

    A line is ``name``, and all lines may have the class's number before it and its colour behind
    it, set apart by blanks, tabs or commas: ``7 traffic light 250 170 30``.

    Args:
        path: Of the file.

    Raises:
        ValueError: A name more than once, numbers that do not count up, a colour out of range, or
            no text in UTF-8.
        OSError: If it cannot be read.
    """
    lines = text_lines(path)
    if not lines:
        raise ValueError(f"{path}: expected a name of a class per line, got none")
    numbers = [_NUMBER.match(line) for line in lines]
    first = None
    if all(numbers):
        found = [int(match[1]) for match in numbers if match]
        first = found[0]
        if found != list(range(first, first + len(found))) or first > 1:
            raise ValueError(f"{path}: expected numbers from 0 or 1 that count up, got {found[:9]}")
        lines = [line[match.end() :] for line, match in zip(lines, numbers, strict=True) if match]
    endings = [_COLOUR.search(line) for line in lines]
    colours = None
    if all(endings):
        colours = [[int(level) for level in match.groups()] for match in endings if match]
        lines = [line[: match.start()] for line, match in zip(lines, endings, strict=True) if match]
        if max(map(max, colours)) > 255:
            raise ValueError(f"{path}: expected red, green and blue in [0, 255] behind each name")
    twice = sorted({name for name in lines if lines.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: the name {twice[0]!r} is there more than once")
    return ClassList(lines, colours, first)


def listed_classes(path: Path, rule: LabelRule) -> SegmentationClasses:
    """The classes of a classes.txt.

    Numbers in it are those of the mask files. Lines without numbers are of the first class on. A
    last line whose number is ignored is no class.

    Args:
        path: Of the file.
        rule: How numbers in mask files are labels.

    Returns:
        The classes; with generated colours where it has none.

    Raises:
        ValueError: As in `read_class_list`; or its numbers do not fit the rule.
        OSError: If it cannot be read.
    """
    found = read_class_list(path)
    names, colours, first = found.names, found.colours, found.first
    start = 0
    if first is not None and first < rule.first:  # the line of 0, which is ignored
        start = 1
    elif first is not None and first > rule.first:
        raise ValueError(
            f"{path}: the classes are numbered from {first}; number them from 0 as in the mask "
            "files, or set reduce_zero_label if 0 is to be ignored there"
        )
    stop = len(names)
    if rule.ignore_index is not None and rule.ignore_index == rule.first + stop - start - 1:
        stop -= 1
    names, colours = names[start:stop], None if colours is None else colours[start:stop]
    check_count(len(names), str(path))
    return SegmentationClasses(
        names,
        colours or class_palette(names),
        f"{len(names)} classes of {path.name}",
        is_coloured=colours is not None,
    )


def numbered_classes(num_classes: int, why: str) -> SegmentationClasses:
    """Classes that have no names.

    Args:
        num_classes: K.
        why: Where that number is from.

    Raises:
        ValueError: A number out of range.
    """
    check_count(num_classes, why)
    names = [f"class_{number}" for number in range(num_classes)]
    return SegmentationClasses(names, class_palette(names), f"{num_classes} classes {why}")


def check_count(num_classes: int, place: str) -> None:
    """Raises a ValueError for a number of classes that cannot be trained.

    Args:
        num_classes: K.
        place: Where it is from.

    Raises:
        ValueError: As said.
    """
    if not 2 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"{place}: expected 2 to {MAX_CLASSES} classes, got {num_classes}")


def check_same(classes: SegmentationClasses, expected: Sequence[str], data: str) -> None:
    """Raises a ValueError unless the classes are those of a model, in the same order.

    Args:
        classes: Of the data.
        expected: Names of the model's classes.
        data: What the user named.

    Raises:
        ValueError: As said; with the first difference.
    """
    if len(classes.names) != len(expected):
        raise ValueError(
            f"{data} has {classes.description}, but the model has {len(expected)}; ignore_index "
            "and reduce_zero_label have to be as in training"
        )
    for label, (name, other) in enumerate(zip(classes.names, expected, strict=True)):
        if name != other:
            raise ValueError(
                f"{data}: the class {label} is {name!r}, but {other!r} for the model; the classes "
                "must be the same, in the same order"
            )
