"""A heat map over the picture that it is about.

Legend: H W rows and columns of a picture, h w those of a heat map.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from matplotlib import colormaps
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from wavevit.pictures.annotate import annotate, font_size
from wavevit.pictures.style import INK, MUTED, PAPER, fitting, font_for

Box = tuple[float, float, float, float]

_MIN_LONG_SIDE = 220  # as of annotated pictures, but heat is drawn after the enlargement
_GAP = 4
_COLOURS = "inferno"  # as many steps to the eye as in the numbers, and legible without colours
_OPACITY = 0.8  # of the hottest place
_DIMMED = 0.8


def heat_overlay(image: Image.Image, heat: ArrayLike, box: Box | None = None) -> Image.Image:
    """The picture in pale grey, with a heat map over it: from dark, where it is 0, to yellow.

    Args:
        image: Any mode that Pillow converts to RGB.
        heat: ``(h, w)`` finite numbers, not negative; brightest where it is greatest.
        box: Left, top, right and bottom of what the heat map covers, pixels; None: all.

    Raises:
        ValueError: Not such a heat map, or a box without an area inside the picture.
    """
    values = _relative(heat)
    image = image.convert("RGB")
    left, top, right, bottom = (0, 0, *image.size) if box is None else box
    left, top = max(round(left), 0), max(round(top), 0)
    right, bottom = min(round(right), image.width), min(round(bottom), image.height)
    if left >= right or top >= bottom:
        raise ValueError(f"the box {box} has no area inside {image.width} x {image.height} pixels")
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    ground = _DIMMED * (0.7 * grey + 0.3 * np.asarray(image, np.float32))
    smooth = Image.fromarray(values).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    amount = np.clip(np.asarray(smooth), 0, 1)
    colours = _table()[np.rint(amount * 255).astype(np.int64)]
    alpha = _OPACITY * np.sqrt(amount)[..., None]
    seen = ground[top:bottom, left:right]
    ground[top:bottom, left:right] = seen * (1 - alpha) + colours * alpha
    return Image.fromarray(np.rint(ground).astype(np.uint8))


def explained_picture(
    image: Image.Image,
    heat: ArrayLike,
    caption: str,
    predictions: Sequence[tuple[str, float]],
    box: Box | None = None,
) -> Image.Image:
    """A picture beside itself with a heat map, and what was seen in it below.

    A picture under 220 pixels is enlarged a whole number of times; a wide one stands above its heat
    map.

    Args:
        image: Any mode that Pillow converts to RGB.
        heat: As of `heat_overlay`.
        caption: What the heat map is.
        predictions: Class names and probabilities in [0, 1], best first.
        box: As of `heat_overlay`, pixels of the picture.

    Raises:
        ValueError: As of `heat_overlay`.
    """
    image = image.convert("RGB")
    factor = max(1, _MIN_LONG_SIDE // max(image.size))
    width, height = image.width * factor, image.height * factor
    image = image.resize((width, height), Image.Resampling.NEAREST) if factor > 1 else image
    left, top, right, bottom = (0, 0, width, height) if box is None else (factor * x for x in box)
    hot = heat_overlay(image, heat, (left, top, right, bottom))
    is_wide = width > 2 * height
    place = (0, height + _GAP) if is_wide else (width + _GAP, 0)
    size = font_size(place[0] + width, place[1] + height)
    strip = round(size * 2.2)
    canvas = Image.new("RGB", (place[0] + width, place[1] + height + strip), PAPER)
    canvas.paste(image, (0, 0))
    canvas.paste(hot, place)
    _draw_key(canvas, caption, size, strip)
    return annotate(canvas, predictions)


def _draw_key(canvas: Image.Image, caption: str, size: int, strip: int) -> None:
    """The caption, and the colours from the least to the most, in the lowest rows of a picture."""
    draw = ImageDraw.Draw(canvas)
    middle, padding = canvas.height - strip / 2, round(size * 0.6)
    bar_width, half = 6 * size, round(size * 0.35)
    font = font_for("most", size)
    right = canvas.width - padding
    for text in ("most", "", "0"):
        if text:
            draw.text((right, middle), text, MUTED, font, anchor="rm")
            right -= math.ceil(font.getlength(text)) + padding // 2
            continue
        steps = np.linspace(0, 255, bar_width).astype(np.int64)
        bar = np.broadcast_to(_table()[steps], (2 * half, bar_width, 3)).astype(np.uint8)
        canvas.paste(Image.fromarray(bar), (right - bar_width, round(middle) - half))
        right -= bar_width + padding // 2
    shown = fitting(caption, size, right - 2 * padding)
    draw.text((padding, middle), shown, INK, font_for(shown, size), anchor="lm")


def _relative(heat: ArrayLike) -> NDArray[np.float32]:
    values = np.asarray(heat, np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"expected a heat map (h, w), got the shape {values.shape}")
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("expected a heat map of finite numbers that are not negative")
    most = values.max()
    return (values / most if most > 0 else values).astype(np.float32)


@lru_cache(maxsize=1)
def _table() -> NDArray[np.float32]:
    """(256, 3) colours in 0..255."""
    colours: NDArray[np.float32] = 255 * colormaps[_COLOURS](np.arange(256))[:, :3].astype(
        np.float32
    )
    return colours
