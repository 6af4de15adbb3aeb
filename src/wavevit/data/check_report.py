"""What checking a data set has found, and how it is told."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

TINY_SIDE = 32
HUGE_PIXELS = 50_000_000

PROBLEM_KINDS = {
    "unreadable": "cannot be decoded: training skips them, evaluation stops",
    "not_image": "other files among the images: they are not used",
    "extension": "the file name's extension contradicts the content",
    "shard": "tar shards that are missing or of a wrong size: training does not start",
    "misplaced": "images outside of the class folders: they are not used",
    "empty_class": "class folders without images",
    "unknown_class": "classes of the validation split that training does not have",
    "conflict": "the same picture with different labels",
    "leakage": "the same picture in training and in validation",
    "duplicate": "the same picture more than once in one class and split",
    "tiny": f"a side shorter than {TINY_SIDE} pixels",
    "huge": f"more than {HUGE_PIXELS // 10**6} million pixels: slow to read, or refused",
}
"""What each kind of problem means, in the order of the report."""

_MAX_CLASSES_SHOWN = 20


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    kind: str
    """A key of `PROBLEM_KINDS`."""
    paths: tuple[str, ...]
    """The files, folders or shards concerned, relative to the data set's root, or absolute."""
    detail: str
    """What was found, in one line."""


@dataclass
class CheckReport:
    """What reading every file has shown."""

    data: str
    """The path checked."""
    description: str
    """How the data set was read: layout and splits."""
    class_counts: dict[str, dict[str, int]]
    """Images, readable or not, per split ("all" where there are no splits) and class."""
    num_other_files: int = 0
    """Files in class folders that are not images by their names."""
    format_counts: dict[str, int] = field(default_factory=dict)
    """Readable images per format of the content, the most frequent first."""
    size_statistics: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of "width", "height" (pixels, as shown) and "megapixels": min, p5, median, p95, max."""
    problems: list[Problem] = field(default_factory=list)
    """Everything found, in the order of `PROBLEM_KINDS`, then of the paths."""

    @property
    def num_images(self) -> int:
        """Files with an image's name, or lines of the CSV."""
        return sum(sum(counts.values()) for counts in self.class_counts.values())

    @property
    def problem_counts(self) -> dict[str, int]:
        """Number of problems of each kind that was found."""
        counts = {
            kind: sum(problem.kind == kind for problem in self.problems) for kind in PROBLEM_KINDS
        }
        return {kind: count for kind, count in counts.items() if count}

    def imbalance(self, split: str) -> float:
        """Images of the largest class per image of the smallest that has any; 1 is balanced."""
        counts = [count for count in self.class_counts[split].values() if count]
        return max(counts) / min(counts) if counts else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        return {
            **asdict(self),
            "num_images": self.num_images,
            "imbalance": {split: self.imbalance(split) for split in self.class_counts},
            "problem_counts": self.problem_counts,
        }


def report_lines(report: CheckReport) -> Iterator[str]:
    """The report as text, line by line without line ends, every problem with its paths.

    Args:
        report: What was found.

    Yields:
        Lines that any terminal can show.
    """
    yield f"check-data {printable(report.data)}"
    yield f"  layout   {printable(report.description)}"
    others = f", {report.num_other_files:,} other files" if report.num_other_files else ""
    yield f"  files    {report.num_images:,} images{others}"
    for split, counts in report.class_counts.items():
        yield from _split_lines(split, counts, report.imbalance(split))
    for name, values in report.size_statistics.items():
        digits = 2 if name == "megapixels" else 0
        shown = " / ".join(f"{value:,.{digits}f}" for value in values.values())
        yield f"  {name:<10} {shown}  (min / 5 % / median / 95 % / max)"
    if report.format_counts:
        formats = ", ".join(f"{name} {count:,}" for name, count in report.format_counts.items())
        yield f"  formats  {formats}"
    yield ""
    if not report.problems:
        yield "no problems found"
        return
    for kind, count in report.problem_counts.items():
        yield f"{kind}: {count:,} ({PROBLEM_KINDS[kind]})"
        for problem in report.problems:
            if problem.kind == kind:
                paths = " = ".join(printable(path) for path in problem.paths)
                yield f"  {paths}: {printable(problem.detail)}"
        yield ""
    summary = ", ".join(f"{count:,} {kind}" for kind, count in report.problem_counts.items())
    yield f"{len(report.problems):,} problems found: {summary}"


def printable(text: str) -> str:
    """The text with line breaks, control characters and undecodable bytes of file names escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def _split_lines(split: str, counts: dict[str, int], imbalance: float) -> Iterator[str]:
    total, used = sum(counts.values()), [count for count in counts.values() if count]
    if not used:
        yield f"  {split:<8} no images"
        return
    yield (
        f"  {split:<8} {total:,} images in {len(used):,} classes, {min(used):,} to {max(used):,} "
        f"per class (imbalance {imbalance:.2g})"
    )
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ordered
    if len(ordered) > _MAX_CLASSES_SHOWN:
        half = _MAX_CLASSES_SHOWN // 2
        shown = ordered[:half] + ordered[-half:]
    for number, (name, count) in enumerate(shown):
        if len(shown) < len(ordered) and number == len(shown) // 2:
            yield f"           ... {len(ordered) - len(shown):,} classes between ..."
        yield f"           {count:>9,}  {printable(name)}"
