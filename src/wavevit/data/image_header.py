"""Sizes of image files, without decoding them."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from wavevit.data.images import (
    IMAGE_FORMATS,
    UnreadableImageError,
    exif_orientation,
    open_regular_file,
    pillow_warnings_ignored,
    why_unreadable,
)

_NUM_THREADS = 8  # they mostly wait, for a disk or a network
_FILES_IN_FLIGHT = 256
_HEADER_BYTES = 1 << 16
_FIRST_SIDEWAYS_ORIENTATION = 5


class ImageHeader(NamedTuple):
    """What the beginning of an image file says."""

    size: tuple[int, int]
    """Height and width of the upright picture, pixels."""
    is_sideways: bool
    """Whether its EXIF orientation swaps rows and columns of the stored pixels."""


def read_header(path: str | Path) -> ImageHeader:
    """Size and orientation of an image, without decoding it.

    Args:
        path: Of the file.

    Raises:
        UnreadableImageError: If there is no such file, or it does not begin like an image.
    """
    try:
        with open_regular_file(path) as stream:
            # Pillow's warnings are off for one thread at a time, which should not wait for a disk.
            stream.read(_HEADER_BYTES)
            stream.seek(0)
            with pillow_warnings_ignored():
                image = Image.open(stream, formats=IMAGE_FORMATS)
            is_sideways = exif_orientation(image) >= _FIRST_SIDEWAYS_ORIENTATION
            width, height = image.size
    except UnreadableImageError:
        raise
    except Exception as error:
        # Whatever damaged files make the decoders raise, as in `images`.
        raise UnreadableImageError(os.fspath(path), why_unreadable(error)) from error
    return ImageHeader((width, height) if is_sideways else (height, width), is_sideways)


def read_headers(paths: Iterable[str | Path]) -> Iterator[ImageHeader | UnreadableImageError]:
    """The header of each image, in order, read by several threads.

    Args:
        paths: Of the files.

    Yields:
        Headers, or what kept one from being read.
    """
    remaining = iter(paths)
    pending: deque[Future[ImageHeader | UnreadableImageError]] = deque()
    with ThreadPoolExecutor(_NUM_THREADS, "image-headers") as pool:
        pending.extend(pool.submit(_attempt, p) for p in islice(remaining, _FILES_IN_FLIGHT))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(_attempt, path) for path in islice(remaining, 1))
            yield result


def _attempt(path: str | Path) -> ImageHeader | UnreadableImageError:
    try:
        return read_header(path)
    except UnreadableImageError as error:
        return error.with_traceback(None)
