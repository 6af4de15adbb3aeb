"""Reading all images and masks of a data set once, and finding what is wrong.

Shape legend: N images of all splits, K classes.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from wavevit.data.file_inspection import (
    FileFacts,
    Inspection,
    equal_rows,
    extension_fault,
    inspect_file,
    run_in_order,
)
from wavevit.data.image_header import read_header
from wavevit.data.images import UnreadableImageError
from wavevit.data.problems import sort_by_kind
from wavevit.data.same_pictures import same_pictures
from wavevit.data.segmentation.counted_classes import LabelCountError
from wavevit.data.segmentation.files import SegmentationFiles, find_classes
from wavevit.data.segmentation.layouts import (
    PairPattern,
    files_beside_splits,
    find_segmentation_layout,
)
from wavevit.data.segmentation.masks import LabelRule, MaskError, count_numbers, read_mask
from wavevit.data.segmentation.pairs import FilePairs, find_pairs
from wavevit.data.segmentation.problems import (
    ERROR_KINDS,
    WARNING_KINDS,
    SegmentationProblem,
    counted,
)
from wavevit.data.segmentation.report import SegmentationReport, SegmentationSummary
from wavevit.data.segmentation.sample import IGNORED

_PERCENTILES = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}


@dataclass(frozen=True)
class _MaskFacts:
    """What decoding a mask has shown."""

    size: tuple[int, int]
    counts: dict[int, int]


@dataclass(frozen=True)
class _PairFacts:
    """What decoding an image and its mask has shown, or what kept them from being decoded."""

    image: Inspection
    mask: _MaskFacts | UnreadableImageError | MaskError


@dataclass
class _Sums:
    """What is added up over a split."""

    num_images: int = 0
    num_pixels: int = 0
    pixels: Counter[int] = field(default_factory=Counter)
    """Of each number."""
    images: Counter[int] = field(default_factory=Counter)
    """With each number."""
    statistics: dict[str, list[float]] = field(default_factory=dict)

    def add(self, mask: _MaskFacts, rule: LabelRule) -> None:
        """Adds a mask."""
        height, width = mask.size
        self.num_pixels += height * width
        self.pixels.update(mask.counts)
        self.images.update(mask.counts.keys())
        labels = rule.count_labels(mask.counts)
        values = {
            "width": width,
            "height": height,
            "classes per image": len(labels),
            "ignored part": 1 - sum(labels.values()) / (height * width),
        }
        for name, value in values.items():
            self.statistics.setdefault(name, []).append(value)


def check_segmentation(
    path: str | Path,
    *,
    pattern: PairPattern | None = None,
    rule: LabelRule | None = None,
    num_classes: int | None = None,
    num_workers: int = 2,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> SegmentationReport:
    """Everything that is wrong with images and their masks, from reading each file once.

    Where neither classes.txt nor `num_classes` says how many classes there are, masks are read once
    more before.

    Args:
        path: The folder, as in `find_segmentation_layout`.
        pattern: Names of folders and endings of files; None for the usual ones.
        rule: How numbers in mask files are labels; None ignores 255 only.
        num_classes: K, where there is no classes.txt.
        num_workers: Threads that decode; 0 decodes in the calling thread.
        on_progress: Called after each image and its mask with the number of images done, of all
            images, and of problems so far.

    Returns:
        The report.

    Raises:
        FileNotFoundError: If nothing is at `path`.
        ValueError: If it is no such data set, its classes.txt is faulty, or `num_workers` is
            negative.
        OSError: If a folder or a file cannot be read.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers is not negative, got {num_workers}")
    layout = find_segmentation_layout(path, pattern)
    rule = rule or LabelRule()
    try:
        classes = find_classes(layout, rule, num_classes=num_classes, num_workers=num_workers)
    except LabelCountError as error:
        classes = error.classes  # what is wrong with the masks is to be listed
    files = SegmentationFiles(layout, rule, classes)
    problems = list(_folder_problems(files))
    parts: dict[str, FilePairs] = {}
    for name, split in layout.splits.items():
        parts[name], found = find_pairs(layout.root, split)
        problems += found
    sums, formats = _check_files(parts, files, problems, num_workers, on_progress)
    problems += _black_and_white(files, sums)
    sort_by_kind(problems, (*ERROR_KINDS, *WARNING_KINDS))
    return SegmentationReport(
        data=os.fspath(path),
        description=files.description,
        class_names=classes.names,
        splits={name: _summary(files, part) for name, part in sums.items()},
        format_counts=formats,
        problems=problems,
    )


def _folder_problems(files: SegmentationFiles) -> Iterator[SegmentationProblem]:
    layout = files.layout
    for folder in layout.without_masks:
        if not folder.name.startswith("test"):  # of which often no masks are published
            name = folder.relative_to(layout.root).as_posix()
            yield SegmentationProblem("missing_mask", name, "no folder of masks for these images")
    for path in files_beside_splits(layout):
        name = path.relative_to(layout.root).as_posix()
        yield SegmentationProblem("unused_file", name, "in the folder of no split")
    suspect = files.classes.suspect(files.rule)
    if suspect is not None:
        file = "classes" if layout.class_list is None else layout.class_list.name
        yield SegmentationProblem("no_class", file, suspect)
    if files.classes.gap is not None:
        yield files.classes.gap


def _black_and_white(
    files: SegmentationFiles, sums: dict[str, _Sums]
) -> Iterator[SegmentationProblem]:
    for name, part in sums.items():
        if part.pixels.keys() == {0, IGNORED}:
            masks = files.layout.splits[name].masks.relative_to(files.layout.root).as_posix()
            detail = f"{counted(part.num_images, 'mask')} with nothing but 0 and 255"
            yield SegmentationProblem("black_and_white", masks, detail)


def _check_files(
    parts: dict[str, FilePairs],
    files: SegmentationFiles,
    problems: list[SegmentationProblem],
    num_workers: int,
    on_progress: Callable[[int, int, int], None] | None,
) -> tuple[dict[str, _Sums], dict[str, int]]:
    """Decodes all files and adds what is wrong with them; returns sums and counts of formats."""
    places = [(split, index) for split, part in parts.items() for index in range(len(part))]
    digests = np.zeros((len(places), 2), np.uint64)
    is_readable = np.zeros(len(places), np.bool_)
    formats: Counter[str] = Counter()
    sums = {split: _Sums(num_images=len(part)) for split, part in parts.items()}
    tasks = (partial(_inspect, parts[split], index) for split, index in places)
    for number, facts in enumerate(run_in_order(tasks, num_workers)):
        split, index = places[number]
        if isinstance(facts.image, FileFacts):
            digests[number] = np.frombuffer(facts.image.pixel_digest, np.uint64)
            is_readable[number] = True
            formats[facts.image.format] += 1
        if isinstance(facts.mask, _MaskFacts):
            sums[split].add(facts.mask, files.rule)
        problems += _image_problems(parts[split], index, facts)
        problems += _mask_problems(parts[split], index, facts, files)
        if on_progress is not None:
            on_progress(number + 1, len(places), len(problems))
    for group in equal_rows(digests, np.flatnonzero(is_readable)):
        alike = [places[int(number)] for number in group]
        named = [(split, parts[split].images[index]) for split, index in alike]
        problems += (SegmentationProblem(*found) for found in same_pictures(named))
    return sums, dict(formats.most_common())


def _inspect(pairs: FilePairs, index: int) -> _PairFacts:
    image = inspect_file(pairs.image_path(index))
    try:
        numbers = read_mask(pairs.mask_path(index))
    except (UnreadableImageError, MaskError) as error:
        # Without the traceback, whose frames would keep the half decoded mask alive.
        return _PairFacts(image, error.with_traceback(None))
    height, width = numbers.shape
    return _PairFacts(image, _MaskFacts((height, width), count_numbers(numbers)))


def _image_problems(
    pairs: FilePairs, index: int, facts: _PairFacts
) -> Iterator[SegmentationProblem]:
    name, image = pairs.images[index], facts.image
    if isinstance(image, UnreadableImageError):
        yield SegmentationProblem("unreadable_image", name, image.reason)
        return
    fault = extension_fault(name, image.format)
    if fault is not None:
        yield SegmentationProblem("extension", name, fault)


def _mask_problems(
    pairs: FilePairs, index: int, facts: _PairFacts, files: SegmentationFiles
) -> Iterator[SegmentationProblem]:
    name, mask, image = pairs.masks[index], facts.mask, facts.image
    if not isinstance(mask, _MaskFacts):
        kind = mask.kind if isinstance(mask, MaskError) else "unreadable_mask"
        yield SegmentationProblem(kind, name, mask.reason)
        return
    if isinstance(image, FileFacts) and mask.size != (image.height, image.width):
        height, width = mask.size
        detail = f"{width} x {height} pixels, its image has {image.width} x {image.height}"
        is_stored = mask.size == (image.width, image.height)
        is_turned = is_stored and read_header(pairs.image_path(index)).is_sideways
        yield SegmentationProblem("turned" if is_turned else "mask_size", name, detail)
    rule, num_classes = files.rule, len(files.classes.names)
    unknown = rule.unknown(mask.counts, num_classes)
    if unknown:
        yield SegmentationProblem("unknown_label", name, rule.unknown_text(unknown, num_classes))
    if not rule.count_labels(mask.counts):
        yield SegmentationProblem("nothing_labelled", name, "no pixel has a class")


def _summary(files: SegmentationFiles, sums: _Sums) -> SegmentationSummary:
    rule, names = files.rule, files.classes.names
    unknown = sorted(rule.unknown(sums.pixels, len(names)))
    numbers = {name: label + rule.first for label, name in enumerate(names)}
    ignored = {number for number in sums.pixels if rule.is_ignored(number)}
    return SegmentationSummary(
        num_images=sums.num_images,
        num_pixels=sums.num_pixels,
        num_ignored=sum(sums.pixels[number] for number in ignored),
        class_pixels={n: 0 if k in ignored else sums.pixels[k] for n, k in numbers.items()},
        class_images={n: 0 if k in ignored else sums.images[k] for n, k in numbers.items()},
        unknown_pixels={number: sums.pixels[number] for number in unknown},
        unknown_images={number: sums.images[number] for number in unknown},
        statistics={what: _percentiles(values) for what, values in sums.statistics.items()},
    )


def _percentiles(values: list[float]) -> dict[str, float]:
    found = np.percentile(values, list(_PERCENTILES.values())).tolist()
    return dict(zip(_PERCENTILES, found, strict=True))
