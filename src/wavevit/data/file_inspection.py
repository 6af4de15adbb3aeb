"""Decoding many image files once, to find those that cannot be read and those that are the same.

Shape legend: N files.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wavevit.data.images import FORMAT_OF_EXTENSION, UnreadableImageError, decode_image

# What a user would not call another format.
_SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}
_FILES_IN_FLIGHT_PER_WORKER = 4
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileFacts:
    """What decoding a file has shown."""

    width: int
    """Of the upright picture, pixels."""
    height: int
    """Of the upright picture, pixels."""
    format: str
    """Of the content, such as "JPEG"."""
    file_digest: bytes
    """16 bytes, the same for files with the same content."""
    pixel_digest: bytes
    """16 bytes, the same for pictures with the same pixels."""


Inspection = FileFacts | UnreadableImageError

T = TypeVar("T")


def inspect_files(paths: Iterable[Path], num_workers: int) -> Iterator[Inspection]:
    """What decoding each file has shown, in order; see `run_in_order`.

    Args:
        paths: Of the files.
        num_workers: Threads that decode; 0 decodes in the calling thread.

    Returns:
        Facts, or what kept a file from being decoded.
    """
    return run_in_order((partial(inspect_file, path) for path in paths), num_workers)


def run_in_order(tasks: Iterator[Callable[[], T]], num_workers: int) -> Iterator[T]:
    """Results in the order of the tasks, with a bounded number of them being worked on.

    Args:
        tasks: Each inspects a file.
        num_workers: Threads; 0 works in the calling thread.

    Yields:
        The results.
    """
    if num_workers == 0:
        yield from (task() for task in tasks)
        return
    # Decoders and hashes release the interpreter lock, so threads share the work.
    pending: deque[Future[T]] = deque()
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


def inspect_file(path: Path) -> Inspection:
    """What decoding a file has shown, or what kept it from being decoded.

    Args:
        path: Of the file.
    """
    try:
        image, image_format = decode_image(path)
    except UnreadableImageError as error:
        # Without the traceback, whose frames would keep the half decoded image alive.
        return error.with_traceback(None)
    try:
        file_digest = _digest_of_file(path)
    except OSError as error:
        return UnreadableImageError(str(path), str(error))
    return FileFacts(image.width, image.height, image_format, file_digest, digest_of_pixels(image))


def digest_of_pixels(image: Image.Image) -> bytes:
    """16 bytes that are the same for pictures of the same size with the same pixels.

    Args:
        image: Decoded.
    """
    digest = hashlib.blake2b(f"{image.width} x {image.height}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def extension_fault(path: str, content_format: str) -> str | None:
    """What is wrong with the extension of an image's name; None if nothing.

    Args:
        path: Of the image.
        content_format: Format of its content.
    """
    expected = FORMAT_OF_EXTENSION.get(os.path.splitext(path)[1].lower())
    image_format = _SAME_FORMAT.get(content_format, content_format)
    if expected == image_format:
        return None
    named = f"named as {expected}" if expected else "without an image's extension"
    return f"a {image_format} image {named}"


def equal_rows(
    digests: NDArray[np.uint64], candidates: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """The indices of each group of two or more candidates with equal digests, in order.

    Args:
        digests: (N, 2).
        candidates: Indices to look at.

    Yields:
        Indices, ascending.
    """
    order = candidates[np.lexsort((digests[candidates, 0], digests[candidates, 1]))]
    is_same = (digests[order[1:]] == digests[order[:-1]]).all(1)
    starts = np.flatnonzero(np.concatenate([[True], ~is_same])) if len(order) else order
    sizes = np.diff(np.append(starts, len(order)))
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        yield np.sort(order[start : start + size])


def _digest_of_file(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.digest()
