"""Label maps painted over their pictures, with a legend; legible at any size.

Shape legend: H rows, W columns of the picture, K classes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wavevit.pictures.annotate import font_size
from wavevit.pictures.style import FAINT, INK, MUTED, PAPER, fitting, font_for

Labels = NDArray[np.uint8]
Palette = Sequence[Sequence[int]]

IGNORED = 255
"""Label of pixels without a class."""

_MIN_LONG_SIDE = 220  # smaller pictures are enlarged, so that there is something to look at
_MIN_WIDTH = 220  # pixels that a legend needs to be read
_MOST_LISTED = 40  # classes of a legend
_LETTERS_ACROSS = 17  # of an entry's name, at most
_SHARE_LETTERS = "0123456789.%<"
_ROWS_AT_ONCE = 256
_HATCH = ((235, 238, 241), (150, 158, 166))  # light and dark stripes of what has no class


class LegendEntry(NamedTuple):
    """A line of a legend.

    Attributes:
        name: Of the class, or of what has none.
        share: Of the pixels, as text.
        color: Red, green and blue of its chip; None where several classes share a line.
        is_hatched: Whether the chip is hatched instead.
    """

    name: str
    share: str
    color: tuple[int, ...] | None = None
    is_hatched: bool = False


def draw_segmentation(
    image: Image.Image,
    labels: Labels,
    class_names: Sequence[str],
    palette: Palette,
    *,
    opacity: float = 0.55,
    edges: bool = True,
    legend: bool = True,
) -> Image.Image:
    """A copy of the picture with its classes painted over it, and a legend in a strip below.

    The legend names the classes of the picture with their shares of its pixels, largest first.
    A picture under 220 pixels is enlarged a whole number of times, and a narrow one gets a margin
    to the right. Without a legend the size stays the same.

    Args:
        image: Any mode that Pillow converts to RGB.
        labels: (H, W) of the picture, in 0..K-1, or 255 for no class, which is hatched.
        class_names: K names.
        palette: K colours: red, green and blue in 0..255.
        opacity: Share of the colours over the picture, in [0, 1].
        edges: Whether the borders between classes are drawn in their full colours.
        legend: Whether there is a legend.

    Raises:
        ValueError: Labels of another size, or without a name or colour, or an opacity outside.
    """
    if not legend:
        return paint_labels(image, labels, palette, opacity=opacity, edges=edges)
    check_size(image, labels)
    entries = legend_entries(labels, class_names, palette)
    factor = max(1, _MIN_LONG_SIDE // max(image.size))
    if factor > 1:
        size = (image.width * factor, image.height * factor)
        image = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
        labels = labels.repeat(factor, axis=0).repeat(factor, axis=1)
    painted = paint_labels(image, labels, palette, opacity=opacity, edges=edges)
    strip = draw_legend(entries, max(image.width, _MIN_WIDTH), font_size(*image.size))
    canvas = Image.new("RGB", (strip.width, image.height + strip.height), PAPER)
    canvas.paste(painted, (0, 0))
    canvas.paste(strip, (0, image.height))
    return canvas


def paint_labels(
    image: Image.Image,
    labels: Labels,
    palette: Palette,
    *,
    opacity: float = 0.55,
    edges: bool = True,
) -> Image.Image:
    """A copy of the picture, of its size, with its classes painted over it.

    Args:
        image: Any mode that Pillow converts to RGB.
        labels: (H, W) of the picture, in 0..K-1, or 255 for no class, which is hatched.
        palette: K colours: red, green and blue in 0..255.
        opacity: Share of the colours over the picture, in [0, 1].
        edges: Whether the borders between classes are drawn in their full colours.

    Raises:
        ValueError: Labels of another size or without a colour, or an opacity outside of [0, 1].
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"the opacity lies in [0, 1], got {opacity}")
    check_size(image, labels)
    _check_values(labels, palette)
    parts = round(256 * opacity)
    colors = color_table(palette).astype(np.uint16)
    pixels = np.array(image.convert("RGB"))
    width = edge_width(*image.size)
    is_edge = _edges(labels, width) if edges else None
    for top in range(0, len(labels), _ROWS_AT_ONCE):  # in sixteen bits: not all of it at once
        rows = slice(top, top + _ROWS_AT_ONCE)
        over = colors[labels[rows]]
        mixed = (pixels[rows].astype(np.uint16) * (256 - parts) + over * parts + 128) >> 8
        if is_edge is not None:
            mixed[is_edge[rows]] = over[is_edge[rows]]
        pixels[rows] = mixed.astype(np.uint8)
    paint_hatch(pixels, labels == IGNORED, max(2 * width, 3))
    return Image.fromarray(pixels)


def paint_hatch(pixels: NDArray[np.uint8], chosen: NDArray[np.bool_], width: int) -> None:
    """Hatches some pixels, in place; a third of what was there shines through.

    Args:
        pixels: (H, W, 3).
        chosen: (H, W).
        width: Of the stripes, pixels.
    """
    for top in range(0, len(pixels), _ROWS_AT_ONCE):
        part = chosen[top : top + _ROWS_AT_ONCE]
        rows, columns = part.nonzero()
        stripe = (rows + top + columns) // width % 2
        there = pixels[rows + top, columns].astype(np.uint16)
        hatch = np.array(_HATCH, np.uint16)[stripe]
        pixels[rows + top, columns] = ((there + 2 * hatch) // 3).astype(np.uint8)


def edge_width(width: int, height: int) -> int:
    """Width in pixels of the full colour on each side of a border, in proportion to the picture.

    Args:
        width: Of the picture, pixels.
        height: Of the picture, pixels.
    """
    return max(1, round(font_size(width, height) / 16))


def color_table(palette: Palette) -> NDArray[np.uint8]:
    """(256, 3) the colour of every label; black where there is none.

    Args:
        palette: K colours: red, green and blue in 0..255.
    """
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    return table


def legend_entries(
    labels: Labels | Sequence[Labels], class_names: Sequence[str], palette: Palette
) -> list[LegendEntry]:
    """The classes of one or several label maps, largest first.

    Args:
        labels: (H, W), or a sequence of such maps of any sizes.
        class_names: K names.
        palette: K colours.

    Raises:
        ValueError: A label has no name or no colour.
    """
    maps = [labels] if isinstance(labels, np.ndarray) else labels
    if len(class_names) != len(palette):
        raise ValueError(
            f"expected a colour per class, got {len(palette)} for {len(class_names)} classes"
        )
    counts = np.zeros(256, np.int64)
    for one in maps:
        _check_values(one, palette)
        counts += np.bincount(one.ravel(), minlength=256)
    total = max(int(counts.sum()), 1)
    order = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c] and c != IGNORED]
    entries = [
        LegendEntry(str(class_names[c]), _percent(counts[c] / total), tuple(palette[c]))
        for c in order
    ]
    if len(entries) > _MOST_LISTED:
        rest = order[_MOST_LISTED - 1 :]
        share = _percent(counts[rest].sum() / total)
        entries = [*entries[: _MOST_LISTED - 1], LegendEntry(f"{len(rest)} others", share)]
    if counts[IGNORED]:
        share = _percent(counts[IGNORED] / total)
        entries.append(LegendEntry("no class", share, is_hatched=True))
    return entries


def draw_legend(
    entries: Sequence[LegendEntry], width: int, letters: int, *, margin: int | None = None
) -> Image.Image:
    """A strip with a chip, a name and a share for every class, in columns read from the top.

    Args:
        entries: Of `legend_entries`.
        width: Pixels.
        letters: Height of the letters, pixels.
        margin: To the left and right, pixels; None suits the letters.
    """
    line, padding = round(letters * 1.6), round(letters * 0.7)
    margin = padding if margin is None else margin
    columns = _legend_columns(entries, width - 2 * margin, letters)
    rows = len(columns[0].entries) if columns else 0
    strip = Image.new("RGB", (width, rows * line + 2 * padding if rows else 0), PAPER)
    draw = ImageDraw.Draw(strip)
    number_font = font_for(_SHARE_LETTERS, letters)
    for column in columns:
        left = margin + column.left
        for row, entry in enumerate(column.entries):
            middle = padding + row * line + line // 2
            _draw_chip(strip, draw, entry, (left, middle - letters // 2), letters)
            text = fitting(entry.name, letters, column.name)
            begin = left + letters + round(letters * 0.5)
            draw.text((begin, middle), text, INK, font_for(text, letters), anchor="lm")
            right = left + column.width
            draw.text((right, middle), entry.share, MUTED, number_font, anchor="rm")
    return strip


class _Column(NamedTuple):
    """Entries of a legend below each other; pixels: where it begins, the name's share, all."""

    entries: Sequence[LegendEntry]
    left: int
    name: int
    width: int


def _legend_columns(entries: Sequence[LegendEntry], inside: int, letters: int) -> list[_Column]:
    """As many columns, each as wide as its own names and shares, as there is room for."""
    font = font_for(_SHARE_LETTERS, letters)
    numbers = [math.ceil(font.getlength(entry.share)) for entry in entries]
    names = [math.ceil(font_for(e.name, letters).getlength(e.name)) + 1 for e in entries]
    others = letters + 2 * round(letters * 0.5)  # the chip, and the gaps on both sides of the name
    columns: list[_Column] = []
    for count in range(len(entries), 0, -1):
        rows = math.ceil(len(entries) / count)
        columns, left = [], 0
        for first in range(0, len(entries), rows):
            part = slice(first, first + rows)
            number = max(numbers[part])
            room = min(_LETTERS_ACROSS * letters, inside - others - number)
            name = min(max(names[part]), room)
            columns.append(_Column(entries[part], left, name, others + name + number))
            left += columns[-1].width + round(1.5 * letters)
        if columns[-1].left + columns[-1].width <= inside:
            break
    return columns


def _draw_chip(
    strip: Image.Image,
    draw: ImageDraw.ImageDraw,
    entry: LegendEntry,
    corner: tuple[int, int],
    side: int,
) -> None:
    if entry.is_hatched:
        tile = np.full((side, side, 3), 255, np.uint8)
        paint_hatch(tile, np.ones((side, side), bool), max(side // 6, 1))
        strip.paste(Image.fromarray(tile), corner)
    elif entry.color is None:
        return
    # The outline is for white and pale classes, which would not be seen on paper.
    left, top = corner
    place = (left, top, left + side - 1, top + side - 1)
    draw.rectangle(place, fill=entry.color, outline=FAINT, width=max(1, side // 16))


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else "<0.1%"


def _edges(labels: Labels, width: int) -> NDArray[np.bool_]:
    """(H, W), where another class is at most `width` pixels above, below, left or right."""
    edges = np.zeros(labels.shape, bool)
    for distance in range(1, width + 1):
        differs = labels[distance:] != labels[:-distance]
        edges[distance:] |= differs
        edges[:-distance] |= differs
        differs = labels[:, distance:] != labels[:, :-distance]
        edges[:, distance:] |= differs
        edges[:, :-distance] |= differs
    return edges


def check_size(image: Image.Image, labels: Labels) -> None:
    """Raises unless there is a label for each pixel.

    Args:
        image: The picture.
        labels: (H, W).

    Raises:
        ValueError: Labels of another size.
    """
    if labels.shape != (image.height, image.width):
        raise ValueError(
            f"expected labels of {image.height} x {image.width} pixels, those of the picture, got "
            f"{' x '.join(map(str, labels.shape))}"
        )


def _check_values(labels: Labels, palette: Palette) -> None:
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"expected labels (H, W) in uint8, got {labels.dtype} {labels.shape}")
    used = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[:IGNORED])
    if len(used) and used[-1] >= len(palette):
        raise ValueError(f"label {used[-1]} has no colour: the palette has {len(palette)}")
