"""Reading every file of a data set once, and finding what is wrong with it.

Shape legend: N files.
"""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wavevit.data.check_listing import Listing, list_dataset
from wavevit.data.check_report import HUGE_PIXELS, PROBLEM_KINDS, TINY_SIDE, CheckReport, Problem
from wavevit.data.images import (
    FORMAT_OF_EXTENSION,
    ImageTooLargeError,
    UnreadableImageError,
    decode_image,
)
from wavevit.data.shards import ShardDataset

# What a user would not call another format.
_SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}
_FILES_IN_FLIGHT_PER_WORKER = 4
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class _FileFacts:
    width: int
    height: int
    format: str
    file_digest: bytes
    pixel_digest: bytes


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
        if isinstance(result, _FileFacts) and is_image:
            sizes[index] = result.width, result.height
            file_digests[index] = np.frombuffer(result.file_digest, np.uint64)
            pixel_digests[index] = np.frombuffer(result.pixel_digest, np.uint64)
            formats[result.format] += 1
        if on_progress is not None:
            on_progress(index + 1, total, len(problems))
    readable = np.flatnonzero(sizes[:, 0])
    for group in _equal_rows(pixel_digests, readable):
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


def _inspect_all(listing: Listing, num_workers: int) -> Iterator[_FileFacts | UnreadableImageError]:
    """Results in file order, with a bounded number of files being worked on."""
    tasks: Iterator[Callable[[], _FileFacts | UnreadableImageError]]
    if listing.shards is not None:
        shards = listing.shards
        tasks = (partial(_inspect_in_shard, shards, index) for index in range(len(shards)))
    else:
        tasks = (partial(_inspect, listing.root / path) for path in listing.paths)
    if num_workers == 0:
        yield from (task() for task in tasks)
        return
    # Decoders and hashes release the interpreter lock, so threads share the work.
    pending: deque[Future[_FileFacts | UnreadableImageError]] = deque()
    with ThreadPoolExecutor(num_workers, "check-data") as pool:
        try:
            for task in islice(tasks, num_workers * _FILES_IN_FLIGHT_PER_WORKER):
                pending.append(pool.submit(task))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(task) for task in islice(tasks, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()


def _inspect(path: Path) -> _FileFacts | UnreadableImageError:
    try:
        image, image_format = decode_image(path)
    except UnreadableImageError as error:
        # Without the traceback, whose frames would keep the half decoded image alive.
        return error.with_traceback(None)
    try:
        file_digest = _digest_of_file(path)
    except OSError as error:
        return UnreadableImageError(str(path), str(error))
    digest = _digest_of_pixels(image)
    return _FileFacts(image.width, image.height, image_format, file_digest, digest)


def _inspect_in_shard(shards: ShardDataset, index: int) -> _FileFacts | UnreadableImageError:
    place = shards.place(index)
    try:
        image, image_format = shards.decode(index)
    except UnreadableImageError as error:
        return type(error)(error.path, f"{error.reason} (in {place.shard.file})")
    # Two files are compared by it only where their pixels are equal.
    content = place.size.to_bytes(8, "little") + place.crc32.to_bytes(8, "little")
    digest = _digest_of_pixels(image)
    return _FileFacts(image.width, image.height, image_format, content, digest)


def _digest_of_pixels(image: Image.Image) -> bytes:
    digest = hashlib.blake2b(f"{image.width} x {image.height}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def _digest_of_file(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.digest()


def _problems_of_file(
    path: str, result: _FileFacts | UnreadableImageError, is_image: bool
) -> Iterator[Problem]:
    extension = os.path.splitext(path)[1].lower()
    if isinstance(result, UnreadableImageError):
        if not is_image:
            yield Problem("not_image", (path,), f"extension {extension or 'none'}, not an image")
        elif isinstance(result, ImageTooLargeError):
            yield Problem("huge", (path,), result.reason)
        else:
            yield Problem("unreadable", (path,), result.reason)
        return
    image_format = _SAME_FORMAT.get(result.format, result.format)
    expected = FORMAT_OF_EXTENSION.get(extension)
    if not is_image:
        yield Problem("extension", (path,), f"a {image_format} image, not used under this name")
        return
    if expected != image_format:
        named = f"named as {expected}" if expected else "without an image's extension"
        yield Problem("extension", (path,), f"a {image_format} image {named}")
    if min(result.width, result.height) < TINY_SIDE:
        yield Problem("tiny", (path,), f"{result.width} x {result.height} pixels")
    if result.width * result.height > HUGE_PIXELS:
        yield Problem("huge", (path,), f"{result.width} x {result.height} pixels")


def _equal_rows(
    digests: NDArray[np.uint64], candidates: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """Yields the indices of each group of two or more candidates with equal digests, in order."""
    order = candidates[np.lexsort((digests[candidates, 0], digests[candidates, 1]))]
    is_same = (digests[order[1:]] == digests[order[:-1]]).all(1)
    starts = np.flatnonzero(np.concatenate([[True], ~is_same])) if len(order) else order
    sizes = np.diff(np.append(starts, len(order)))
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        yield np.sort(order[start : start + size])


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
