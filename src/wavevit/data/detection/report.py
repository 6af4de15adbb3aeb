"""What checking annotated images has found, and how it is told."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from wavevit.data.check_report import printable
from wavevit.data.detection.problems import ERROR_KINDS, WARNING_KINDS, DetectionProblem
from wavevit.data.problems import count_kinds, problem_lines

_MAX_CLASSES_SHOWN = 20
_DIGITS = {"objects per image": 0, "part of image": 4}
"""Decimals shown of a statistic; 1 of all others."""


@dataclass(frozen=True)
class SplitSummary:
    """What is sound in a split."""

    num_images: int
    """Images that are there and have sound entries."""
    num_without_objects: int
    """Images without any object."""
    num_objects: int
    """Objects, crowd and boxes without area included."""
    num_crowd: int
    """Objects that are crowd."""
    num_with_masks: int
    """Objects with an outline or a run-length code."""
    class_counts: dict[str, int]
    """Objects of each class that are not crowd."""
    class_images: dict[str, int]
    """Images with such objects of each class."""
    size_counts: dict[str, int]
    """Objects, by area, that COCO calls small (< 32 x 32 pixels), medium and large (> 96 x 96)."""
    statistics: dict[str, dict[str, float]]
    """Of boxes, images and objects per image: min, p5, median, p95, max."""


@dataclass
class DetectionReport:
    """What reading all annotations and images has shown."""

    data: str
    """The path checked."""
    format: str
    """ "coco", "yolo" or "voc"."""
    description: str
    """How the data set was read: layout and splits."""
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    """By name; splits whose annotation file cannot be used are not there."""
    format_counts: dict[str, int] = field(default_factory=dict)
    """Readable images per format of the content, the most frequent first."""
    problems: list[DetectionProblem] = field(default_factory=list)
    """Everything found, errors first, in the order of their kinds, then of the files."""

    @property
    def problem_counts(self) -> dict[str, int]:
        """Number of problems of each kind that was found."""
        return count_kinds(self.problems, (*ERROR_KINDS, *WARNING_KINDS))

    @property
    def num_errors(self) -> int:
        """Number of problems that keep training from starting."""
        return sum(problem.is_error for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        return {
            **asdict(self),
            "problem_counts": self.problem_counts,
            "num_errors": self.num_errors,
        }


def report_lines(report: DetectionReport) -> Iterator[str]:
    """The report as text, line by line without line ends, every problem with its place.

    Args:
        report: What was found.

    Yields:
        Lines that any terminal can show.
    """
    yield f"check-data {printable(report.data)}"
    yield f"  layout   {printable(report.description)}"
    if report.format_counts:
        formats = ", ".join(f"{name} {count:,}" for name, count in report.format_counts.items())
        yield f"  formats  {formats}"
    for name, split in report.splits.items():
        yield from _split_lines(name, split)
    yield ""
    if not report.problems:
        yield "no problems found"
        return
    yield from problem_lines(report.problems, ERROR_KINDS, WARNING_KINDS)
    if report.num_errors:
        yield "training does not start before the errors are gone; `wavevit convert-data --repair`"
        yield "writes a copy of the data without them"


def _split_lines(name: str, split: SplitSummary) -> Iterator[str]:
    yield (
        f"  {printable(name):<8} {split.num_images:,} images, {split.num_without_objects:,} "
        f"without objects; {split.num_objects:,} objects, {split.num_crowd:,} of them crowd, "
        f"{split.num_with_masks:,} with masks"
    )
    if split.num_objects:
        sizes = ", ".join(f"{count:,} {size}" for size, count in split.size_counts.items())
        yield f"           by COCO's sizes: {sizes}"
    for what, values in split.statistics.items():
        digits = _DIGITS.get(what, 1)
        shown = " / ".join(f"{value:,.{digits}f}" for value in values.values())
        yield f"           {what:<18} {shown}  (min / 5 % / median / 95 % / max)"
    yield from _class_lines(split)


def _class_lines(split: SplitSummary) -> Iterator[str]:
    ordered = sorted(split.class_counts.items(), key=lambda item: (-item[1], item[0]))
    empty = [name for name, count in ordered if count == 0]
    yield (
        f"           {len(ordered) - len(empty):,} of {len(ordered):,} classes have objects "
        "(objects, images, class)"
    )
    ordered = ordered[: len(ordered) - len(empty)]
    shown = ordered
    if len(ordered) > _MAX_CLASSES_SHOWN:
        half = _MAX_CLASSES_SHOWN // 2
        shown = ordered[:half] + ordered[-half:]
    for number, (name, count) in enumerate(shown):
        if len(shown) < len(ordered) and number == len(shown) // 2:
            yield f"           ... {len(ordered) - len(shown):,} classes between ..."
        yield f"           {count:>9,} {split.class_images[name]:>8,}  {printable(name)}"
    if empty:
        names = ", ".join(map(printable, empty[:_MAX_CLASSES_SHOWN]))
        more = ", ..." if len(empty) > _MAX_CLASSES_SHOWN else ""
        yield f"           without objects: {names}{more}"
