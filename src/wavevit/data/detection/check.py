"""Reading all annotations and images of a detection data set once, and finding what is wrong.

Shape legend: I images of all splits, M objects of a split.
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wavevit.data.detection.annotations import DetectionAnnotations
from wavevit.data.detection.files import read_split, size_problem
from wavevit.data.detection.layouts import DetectionFormat, find_detection_layout
from wavevit.data.detection.object_masks import read_instance_map
from wavevit.data.detection.problems import ERROR_KINDS, WARNING_KINDS, DetectionProblem
from wavevit.data.detection.report import DetectionReport, SplitSummary
from wavevit.data.file_inspection import FileFacts, equal_rows, extension_fault, inspect_files
from wavevit.data.image_header import read_header
from wavevit.data.images import UnreadableImageError
from wavevit.data.problems import sort_by_kind
from wavevit.data.same_pictures import same_pictures

_SMALL_AREA, _LARGE_AREA = 32.0**2, 96.0**2
_PERCENTILES = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}


def check_detection(
    path: str | Path,
    *,
    format: DetectionFormat | None = None,
    num_workers: int = 2,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> DetectionReport:
    """Everything that is wrong with annotated images, from reading each file once.

    Args:
        path: Folder or file, as in `find_detection_layout`.
        format: As there.
        num_workers: Threads that decode images; 0 decodes in the calling thread.
        on_progress: Called after each image with the number of images done, of all images, and of
            problems so far.

    Returns:
        The report.

    Raises:
        FileNotFoundError: If nothing is at `path`.
        ValueError: If it is no such data set, or `num_workers` is negative.
        OSError: If a folder or a file cannot be read.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers is not negative, got {num_workers}")
    layout = find_detection_layout(path, format)
    report = DetectionReport(os.fspath(path), layout.format, layout.description)
    parts: dict[str, DetectionAnnotations] = {}
    class_names: list[str] | None = None
    for name in layout.splits:
        reading = read_split(layout, name, class_names=class_names)
        report.problems += reading.problems
        if reading.annotations is not None:
            parts[name] = reading.annotations
            report.splits[name] = summarise(reading.annotations)
            if name == "train":  # the others must have its classes
                class_names = reading.annotations.class_names
    report.format_counts = _check_images(parts, report.problems, num_workers, on_progress)
    sort_by_kind(report.problems, (*ERROR_KINDS, *WARNING_KINDS))
    return report


def summarise(annotations: DetectionAnnotations) -> SplitSummary:
    """Counts and statistics of a split.

    Args:
        annotations: Of the split.
    """
    K = len(annotations.class_names)
    labels, crowd = annotations.labels, annotations.crowd
    image_of = np.repeat(np.arange(len(annotations)), annotations.num_objects)
    in_image = np.unique(image_of[~crowd] * K + labels[~crowd]) % K
    counts = np.bincount(labels[~crowd], minlength=K).tolist()
    images = np.bincount(in_image, minlength=K).tolist()
    areas = annotations.areas
    names = annotations.class_names
    return SplitSummary(
        num_images=len(annotations),
        num_without_objects=int((annotations.num_objects == 0).sum()),
        num_objects=len(labels),
        num_crowd=int(crowd.sum()),
        num_with_masks=annotations.num_masks,
        class_counts=dict(zip(names, counts, strict=True)),
        class_images=dict(zip(names, images, strict=True)),
        size_counts={
            "small": int((areas < _SMALL_AREA).sum()),
            "medium": int(((areas >= _SMALL_AREA) & (areas <= _LARGE_AREA)).sum()),
            "large": int((areas > _LARGE_AREA).sum()),
        },
        statistics=_statistics(annotations, image_of),
    )


def _statistics(
    annotations: DetectionAnnotations, image_of: NDArray[np.int64]
) -> dict[str, dict[str, float]]:
    sizes, boxes = annotations.sizes, annotations.boxes_xywh
    columns: dict[str, NDArray[np.float64] | NDArray[np.int64]] = {
        "image width": sizes[:, 1],
        "image height": sizes[:, 0],
        "objects per image": annotations.num_objects,
        "box width": boxes[:, 2],
        "box height": boxes[:, 3],
        "part of image": boxes[:, 2] * boxes[:, 3] / sizes[image_of].prod(1),
    }
    return {
        what: dict(
            zip(
                _PERCENTILES,
                np.percentile(values, list(_PERCENTILES.values())).tolist(),
                strict=True,
            )
        )
        for what, values in columns.items()
        if len(values)
    }


def _check_images(
    parts: dict[str, DetectionAnnotations],
    problems: list[DetectionProblem],
    num_workers: int,
    on_progress: Callable[[int, int, int], None] | None,
) -> dict[str, int]:
    """Decodes all images and adds what is wrong with them; returns counts of their formats."""
    places = [(split, index) for split, part in parts.items() for index in range(len(part))]
    digests = np.zeros((len(places), 2), np.uint64)
    is_readable = np.zeros(len(places), np.bool_)
    formats: Counter[str] = Counter()
    paths = (parts[split].path(index) for split, index in places)
    for number, facts in enumerate(inspect_files(paths, num_workers)):
        split, index = places[number]
        part = parts[split]
        name = part.sample_id(index)
        if isinstance(facts, FileFacts):
            digests[number] = np.frombuffer(facts.pixel_digest, np.uint64)
            is_readable[number] = True
            formats[facts.format] += 1
            problems += _image_problems(part, index, facts)
        else:
            problems.append(DetectionProblem("unreadable_image", name, "", facts.reason))
        problems += _instance_map_problems(part, index)
        if on_progress is not None:
            on_progress(number + 1, len(places), len(problems))
    for group in equal_rows(digests, np.flatnonzero(is_readable)):
        alike = [places[int(number)] for number in group]
        named = [(split, parts[split].sample_id(index)) for split, index in alike]
        problems += (DetectionProblem(k, name, "", text) for k, name, text in same_pictures(named))
    return dict(formats.most_common())


def _image_problems(
    part: DetectionAnnotations, index: int, facts: FileFacts
) -> list[DetectionProblem]:
    name, size = part.sample_id(index), (facts.height, facts.width)
    found = []
    if size != part.size(index):
        problem = size_problem(part, index, read_header(part.path(index)))
        found += [] if problem is None else [problem]
    fault = extension_fault(name, facts.format)
    if fault is not None:
        found.append(DetectionProblem("extension", name, "", fault))
    return found


def _instance_map_problems(part: DetectionAnnotations, index: int) -> list[DetectionProblem]:
    path = part.instance_map(index)
    if path is None:
        return []
    name = path.relative_to(part.root).as_posix()
    try:
        picture = read_instance_map(path, part.size(index))
    except UnreadableImageError as error:
        return [DetectionProblem("mask", name, "", error.reason)]
    numbers = np.flatnonzero(np.bincount(picture.ravel(), minlength=256)[1:255]) + 1
    lacking = np.setdiff1d(part.mask_numbers(index), numbers)
    return [
        DetectionProblem("empty_mask", name, f"object {number}", "no pixel has its number")
        for number in lacking.tolist()
    ]
