"""The picture that annotations were made on, where EXIF turns it."""

import os
from pathlib import Path

from PIL import Image

from wavevit.data.image_header import read_header
from wavevit.data.images import (
    IMAGE_FORMATS,
    UnreadableImageError,
    exif_orientation,
    load_image,
    pillow_warnings_ignored,
)


class ImageSizeError(UnreadableImageError):
    """An image of another size than its annotations are for."""


# What undoes the orientations that swap rows and columns.
_STORED_BY_ORIENTATION = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def load_sized(path: Path, size: tuple[int, int], partner: str) -> Image.Image:
    """The picture of a size: the upright one, as viewers show it, or else the one as stored.

    Some annotation tools know nothing of the EXIF orientation, by which rows and columns may be
    swapped.

    Args:
        path: Of the image.
        size: Rows and columns that its annotations are for.
        partner: What is of that size, for the message, such as "its annotations are for".

    Raises:
        ImageSizeError: If it has another size.
        UnreadableImageError: If it cannot be decoded.
    """
    picture = load_image(path)
    height, width = size
    if picture.size == (width, height):
        return picture
    if picture.size == (height, width) and read_header(path).is_sideways:
        with pillow_warnings_ignored(), Image.open(path, formats=IMAGE_FORMATS) as header:
            return picture.transpose(_STORED_BY_ORIENTATION[exif_orientation(header)])
    raise ImageSizeError(
        os.fspath(path),
        f"it has {picture.width} x {picture.height} pixels, {partner} {width} x {height}",
    )
