"""Masks painted into a picture one by one, each known only where it is.

Shape legend: h rows and w columns of a part of the picture.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Color = tuple[int, int, int]

_OPACITY = 0.45


class PaintedMask(NamedTuple):
    """A mask and where it is.

    Attributes:
        top: First row.
        left: First column.
        pixels: (h, w) bool.
        color: RGB.
    """

    top: int
    left: int
    pixels: NDArray[np.bool_]
    color: Color


def paint_masks(image: Image.Image, masks: Iterable[PaintedMask], *, outline: int) -> Image.Image:
    """A copy of the picture with masks in it, later ones on top.

    Hundreds of masks over the whole of a picture of 10,000 pixels a side would be too much to hold.

    Args:
        image: Any mode that Pillow converts to RGB.
        masks: Made as they are asked for; inside the picture.
        outline: Width of the edge of full colour, pixels.

    Returns:
        An RGB picture of the same size.
    """
    canvas = image.convert("RGB").copy()
    for top, left, pixels, color in masks:
        height, width = pixels.shape
        if not pixels.any():
            continue
        place = (left, top, left + width, top + height)
        part = np.array(canvas.crop(place))
        mixed = part[pixels] * (1 - _OPACITY) + np.array(color, np.float64) * _OPACITY
        part[pixels] = np.rint(mixed).astype(np.uint8)
        part[pixels & ~_shrunk(pixels, outline)] = color
        canvas.paste(Image.fromarray(part), place[:2])
    return canvas


def frame_width(letters: int) -> int:
    """Width in pixels of the frames around objects with names in such letters.

    Args:
        letters: Their height, pixels.
    """
    return max(2, round(letters / 7))


def _shrunk(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """The mask without the pixels that are so near to its outside."""
    padded = Image.fromarray(np.pad(mask, by).astype(np.uint8) * 255)
    inner = np.asarray(padded.filter(ImageFilter.MinFilter(2 * by + 1)))
    shrunk: NDArray[np.bool_] = inner[by:-by, by:-by] > 0
    return shrunk
