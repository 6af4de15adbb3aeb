"""Predictions written under a picture."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from wavevit.pictures.style import BLUE, FAINT, INK, MUTED, PAPER, fitting, font_for

_MIN_WIDTH = 220  # pixels a caption needs to be read
_MIN_LONG_SIDE = 220  # smaller pictures are enlarged, so that there is something to look at
_MAX_LETTERS = 60  # a caption is no wider than this many letters are high
_BAR_COLORS = (BLUE, "#9db9d8")  # the first class, the others


def annotate(image: Image.Image, predictions: Sequence[tuple[str, float]]) -> Image.Image:
    """A copy of the picture with a strip below it: a line per class with name, bar and percentage.

    Nothing of the picture is covered. Letters grow with the picture; a picture under 220 pixels is
    enlarged a whole number of times, and a narrow one gets a margin to the right.

    Args:
        image: Any size, and any mode that Pillow converts to RGB.
        predictions: Class names and probabilities in [0, 1], best first.
    """
    image = image.convert("RGB")
    factor = max(1, _MIN_LONG_SIDE // max(image.size))
    if factor > 1:
        image = image.resize(
            (image.width * factor, image.height * factor), Image.Resampling.NEAREST
        )
    size = font_size(image.width, image.height)
    line, padding = round(size * 1.75), round(size * 0.6)
    width = max(image.width, _MIN_WIDTH)
    strip = line * len(predictions) + 2 * padding if predictions else 0
    canvas = Image.new("RGB", (width, image.height + strip), PAPER)
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for rank, (name, probability) in enumerate(predictions):
        top = image.height + padding + rank * line
        right = min(width - padding, padding + _MAX_LETTERS * size)
        _draw_line(draw, (padding, top, right, top + line), name, probability, size, rank)
    return canvas


def font_size(width: int, height: int) -> int:
    """Height in pixels of the letters under a picture: from 12, in proportion to its size.

    The geometric mean of the sides counts, so a long thin picture gets no huge letters.

    Args:
        width: Of the picture, pixels.
        height: Of the picture, pixels.
    """
    return max(12, round(0.032 * math.sqrt(width * height)))


def _draw_line(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    name: str,
    probability: float,
    size: int,
    rank: int,
) -> None:
    left, top, right, bottom = box
    middle = (top + bottom) / 2
    number = f"{probability:.1%}"
    number_font = font_for("0123456789.%", size)
    number_width = math.ceil(number_font.getlength("100.0%"))
    gap = round(size * 0.5)
    space = right - left - number_width - gap
    has_bar = space > 15 * size  # else the name needs all of it
    name_right = left + round(space * 0.52) if has_bar else left + space
    text = fitting(name, size, name_right - left)
    ink = INK if rank == 0 else MUTED
    draw.text((left, middle), text, fill=ink, font=font_for(text, size), anchor="lm")
    draw.text((right, middle), number, fill=ink, font=number_font, anchor="rm")
    if not has_bar:
        return
    bar_left, bar_right = name_right + gap, right - number_width - gap
    half = size * 0.3
    draw.rectangle((bar_left, middle - half, bar_right, middle + half), fill=FAINT)
    filled = bar_left + (bar_right - bar_left) * min(max(probability, 0.0), 1.0)
    draw.rectangle((bar_left, middle - half, filled, middle + half), fill=_BAR_COLORS[rank > 0])
