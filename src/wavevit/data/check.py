"""Reading every file of a data set once, and finding what is wrong with it.

Shape legend: N files.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wavevit.data.check_listing import Listing, list_dataset
from wavevit.data.check_report import HUGE_PIXELS, PROBLEM_KINDS, TINY_SIDE, CheckReport, Problem
from wavevit.data.file_inspection import (
    FileFacts,
    Inspection,
    digest_of_pixels,
    equal_rows,
    extension_fault,
    inspect_files,
    run_in_order,
)
from wavevit.data.images import ImageTooLargeError, UnreadableImageError
from wavevit.data.shards.dataset import ShardDataset


def check_dataset(
    path: Path | str,
    *,
    num_workers: int = 2,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> CheckReport:
    """Everything that is wrong with a data set of files, from reading each of them once.

    Two pictures are the same if all their decoded pixels are. Some 60 bytes and the path are held
    per file, and a few decoded images per worker.

    Args:
        path: Folder, CSV file or tar shards, as for `open_classification`.
        num_workers: Threads that decode; 0 decodes in the calling thread.
        on_progress: Called after each file with the number of files done, of all files, and of
            problems so far. The same pictures are found after the last file.

    Returns:
        The report.

    Raises:
        FileNotFoundError: If `path` does not exist.
        OSError: If a URL cannot be read.
        ValueError: If it is no data set of a known layout, or `num_workers` is negative.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers is not negative, got {num_workers}")
    if os.fspath(path) == "shapes":
        raise ValueError("'shapes' is generated and has no files to check; name a folder or a CSV")
    problems: list[Problem] = []
    listing = list_dataset(path, problems)
    total = len(listing.paths)
    if total == 0:
        raise ValueError(f"no files to check in {str(path)!r} ({listing.description})")
    sizes = np.zeros((total, 2), np.int32)
    file_digests = np.zeros((total, 2), np.uint64)
    pixel_digests = np.zeros((total, 2), np.uint64)
    formats: Counter[str] = Counter()
    for index, result in enumerate(_inspect_all(listing, num_workers)):
        is_image = bool(listing.is_image[index])
        problems += _problems_of_file(listing.paths[index], result, is_image)
        if isinstance(result, FileFacts) and is_image:
            sizes[index] = result.width, result.height
            file_digests[index] = np.frombuffer(result.file_digest, np.uint64)
            pixel_digests[index] = np.frombuffer(result.pixel_digest, np.uint64)
            formats[result.format] += 1
        if on_progress is not None:
            on_progress(index + 1, total, len(problems))
    readable = np.flatnonzero(sizes[:, 0])
    for group in equal_rows(pixel_digests, readable):
        problems += _problems_of_group(listing, group, file_digests)
    rank = {kind: number for number, kind in enumerate(PROBLEM_KINDS)}
    problems.sort(key=lambda problem: (rank[problem.kind], problem.paths))
    return CheckReport(
        data=os.fspath(path),
        description=listing.description,
        class_counts=_class_counts(listing),
        num_other_files=int(np.sum(~listing.is_image)),
        format_counts=dict(formats.most_common()),
        size_statistics=_size_statistics(sizes[readable]),
        problems=problems,
    )


def _inspect_all(listing: Listing, num_workers: int) -> Iterator[Inspection]:
    """Results in file order, with a bounded number of files being worked on."""
    if listing.shards is None:
        return inspect_files((listing.root / path for path in listing.paths), num_workers)
    shards = listing.shards
    tasks = (partial(_inspect_in_shard, shards, index) for index in range(len(shards)))
    return run_in_order(tasks, num_workers)


def _inspect_in_shard(shards: ShardDataset, index: int) -> Inspection:
    place = shards.place(index)
    try:
        image, image_format = shards.decode(index)
    except UnreadableImageError as error:
        return type(error)(error.path, f"{error.reason} (in {place.shard.file})")
    # Two files are compared by it only where their pixels are equal.
    content = place.size.to_bytes(8, "little") + place.crc32.to_bytes(8, "little")
    digest = digest_of_pixels(image)
    return FileFacts(image.width, image.height, image_format, content, digest)


def _problems_of_file(path: str, result: Inspection, is_image: bool) -> Iterator[Problem]:
    extension = os.path.splitext(path)[1].lower()
    if isinstance(result, UnreadableImageError):
        if not is_image:
            yield Problem("not_image", (path,), f"extension {extension or 'none'}, not an image")
        elif isinstance(result, ImageTooLargeError):
            yield Problem("huge", (path,), result.reason)
        else:
            yield Problem("unreadable", (path,), result.reason)
        return
    if not is_image:
        detail = f"a {result.format} image, not used under this name"
        yield Problem("extension", (path,), detail)
        return
    fault = extension_fault(path, result.format)
    if fault is not None:
        yield Problem("extension", (path,), fault)
    if min(result.width, result.height) < TINY_SIDE:
        yield Problem("tiny", (path,), f"{result.width} x {result.height} pixels")
    if result.width * result.height > HUGE_PIXELS:
        yield Problem("huge", (path,), f"{result.width} x {result.height} pixels")


def _problems_of_group(
    listing: Listing, group: NDArray[np.int64], file_digests: NDArray[np.uint64]
) -> Iterator[Problem]:
    labels, splits = listing.labels[group], listing.splits[group]
    if len(np.unique(labels)) > 1:
        named = ", ".join(listing.class_names[label] for label in labels)
        yield _problem("conflict", listing, group, f"labelled {named}")
    if len(np.unique(splits)) > 1:
        sides = ", ".join(listing.split_names[split] for split in splits)
        yield _problem("leakage", listing, group, f"in {sides}")
    for label, split in sorted(set(zip(labels.tolist(), splits.tolist(), strict=True))):
        alike = group[(labels == label) & (splits == split)]
        if len(alike) > 1:
            is_same_file = bool((file_digests[alike] == file_digests[alike[0]]).all())
            detail = "same file content" if is_same_file else "same pixels in different files"
            yield _problem("duplicate", listing, alike, detail)


def _problem(kind: str, listing: Listing, group: NDArray[np.int64], detail: str) -> Problem:
    return Problem(kind, tuple(listing.paths[int(index)] for index in group), detail)


def _class_counts(listing: Listing) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for number, split in enumerate(listing.split_names):
        of_split = listing.labels[listing.is_image & (listing.splits == number)]
        per_class = np.bincount(of_split, minlength=len(listing.class_names)).tolist()
        counts[split] = dict(zip(listing.class_names, per_class, strict=True))
    return counts


def _size_statistics(sizes: NDArray[np.int32]) -> dict[str, dict[str, float]]:
    """Statistics of (M, 2) widths and heights."""
    if len(sizes) == 0:
        return {}
    names = ("min", "p5", "median", "p95", "max")
    columns = {
        "width": sizes[:, 0],
        "height": sizes[:, 1],
        "megapixels": sizes.astype(np.float64).prod(1) / 1e6,
    }
    return {
        name: dict(zip(names, np.percentile(values, [0, 5, 50, 95, 100]).tolist(), strict=True))
        for name, values in columns.items()
    }
