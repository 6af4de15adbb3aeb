"""What checking images and their masks has found, and how it is told."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from wavevit.data.check_report import printable
from wavevit.data.problems import count_kinds, problem_lines
from wavevit.data.segmentation.problems import (
    ERROR_KINDS,
    WARNING_KINDS,
    SegmentationProblem,
    counted,
)

_MAX_CLASSES_SHOWN = 20
_DIGITS = {"ignored part": 3}
"""Decimals shown of a statistic; none of all others."""
_INDENT = " " * 11


@dataclass(frozen=True)
class SegmentationSummary:
    """What is in a split. Pixels are those of masks that can be read."""

    num_images: int
    """Images with a mask."""
    num_pixels: int
    """Pixels of all masks."""
    num_ignored: int
    """Pixels among them that are ignored."""
    class_pixels: dict[str, int]
    """Pixels of each class."""
    class_images: dict[str, int]
    """Images with pixels of each class."""
    unknown_pixels: dict[int, int]
    """Pixels of each label that no class has."""
    unknown_images: dict[int, int]
    """Masks with each label that no class has."""
    statistics: dict[str, dict[str, float]]
    """Of images and masks: min, p5, median, p95, max."""


@dataclass
class SegmentationReport:
    """What reading all images and masks has shown."""

    data: str
    """The path checked."""
    description: str
    """How the data set was read: layout, splits and classes."""
    class_names: list[str] = field(default_factory=list)
    """Name of every label."""
    splits: dict[str, SegmentationSummary] = field(default_factory=dict)
    """By name."""
    format_counts: dict[str, int] = field(default_factory=dict)
    """Readable images per format of the content, the most frequent first."""
    problems: list[SegmentationProblem] = field(default_factory=list)
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


def report_lines(report: SegmentationReport) -> Iterator[str]:
    """The report as text, line by line without line ends, every problem with its file.

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
        yield "training does not start with missing masks or wrong labels; files that cannot be"
        yield "decoded are replaced by others in training, but evaluation does not skip them"


def _split_lines(name: str, split: SegmentationSummary) -> Iterator[str]:
    yield (
        f"  {printable(name):<8} {counted(split.num_images, 'image')} with masks, "
        f"{counted(split.num_pixels, 'pixel')}, "
        f"{_share(split.num_ignored, split.num_pixels)} of them ignored"
    )
    for what, values in split.statistics.items():
        digits = _DIGITS.get(what, 0)
        shown = " / ".join(f"{value:,.{digits}f}" for value in values.values())
        yield f"{_INDENT}{what:<18} {shown}  (min / 5 % / median / 95 % / max)"
    for label, count in split.unknown_pixels.items():
        masks = counted(split.unknown_images[label], "mask")
        yield f"{_INDENT}label {label} has no class: {counted(count, 'pixel')} in {masks}"
    yield from _class_lines(split)


def _class_lines(split: SegmentationSummary) -> Iterator[str]:
    ordered = sorted(split.class_pixels.items(), key=lambda item: (-item[1], item[0]))
    empty = [name for name, count in ordered if count == 0]
    ordered = ordered[: len(ordered) - len(empty)]
    total = sum(split.class_pixels.values())
    yield (
        f"{_INDENT}{len(ordered):,} of {len(split.class_pixels):,} classes have pixels (share of "
        "the pixels of classes, images, class)"
    )
    shown = ordered
    if len(ordered) > _MAX_CLASSES_SHOWN:
        half = _MAX_CLASSES_SHOWN // 2
        shown = ordered[:half] + ordered[-half:]
    for number, (name, count) in enumerate(shown):
        if len(shown) < len(ordered) and number == len(shown) // 2:
            yield f"{_INDENT}... {len(ordered) - len(shown):,} classes between ..."
        images = split.class_images[name]
        yield f"{_INDENT}{_share(count, total):>9} {images:>8,}  {printable(name)}"
    if empty:
        names = ", ".join(map(printable, empty[:_MAX_CLASSES_SHOWN]))
        more = ", ..." if len(empty) > _MAX_CLASSES_SHOWN else ""
        yield f"{_INDENT}without pixels: {names}{more}"


def _share(count: int, total: int) -> str:
    return f"{100 * count / max(total, 1):.2f} %"
