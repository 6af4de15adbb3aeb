"""Images beside their label maps: which class a teacher sees where.

Shape legend: H W rows and columns of a map.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps

from wavevit.pictures.style import (
    BLUE,
    DPI,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    RED,
    fitting,
    house_style,
    save_figure,
)

_SIDE = 144  # pixels of an image's square, and of its map's
_BETWEEN = 6  # pixels between an image and its map
_GAP = 26
_MARGIN = 24
_LINE = 17  # pixels of a caption's line
_LETTERS = 13  # pixels: 9 points
_HEADING = 62
_LEGEND_LINE = 22
_LEGEND_WIDTH = 190
_BEHIND_IMAGE = (241, 244, 247)
_STRONGEST = 0.85  # opacity of a cell of probability 1: the picture still shows through
# The most frequent classes have a colour of their own, the rest shares the last one.
_COLORS = (
    BLUE,
    ORANGE,
    GREEN,
    RED,
    "#8a5cc2",
    "#12a5b0",
    "#d6539a",
    "#a8862a",
    "#5a8f00",
    "#7a4a2b",
    "#3d3fb8",
    "#ff9d9d",
)
_OTHERS = "#8b95a1"
_NOTE = "each cell's best class, stronger where surer; below, the class of most cells"


@dataclass(frozen=True)
class MapExample:
    """An image with what a teacher sees in it.

    Attributes:
        image: The whole picture; the map covers all of it.
        truth: Name of its class.
        classes: (H, W) most probable class of each cell.
        probability: (H, W) of that class, in [0, 1].
    """

    image: Image.Image
    truth: str
    classes: NDArray[np.integer]
    probability: NDArray[np.floating]


def draw_label_maps(
    examples: Sequence[MapExample],
    class_names: Sequence[str],
    path: Path,
    *,
    title: str = "Label maps",
    columns: int = 4,
) -> None:
    """Each image beside a pale copy in the colours of its map: the surer a cell, the stronger.

    The twelve classes that fill most cells have a colour each. Under an image stands its class,
    under the map the most frequent class with its share of the cells, green where they agree.

    Args:
        examples: At least one.
        class_names: Name of every class.
        path: PNG file to write.
        title: Line above the pictures.
        columns: Images with maps per row.

    Raises:
        ValueError: No examples, or a map with a class that has no name.
        OSError: The file cannot be written.
    """
    if not examples:
        raise ValueError("expected at least one image with its map to draw")
    cells = Counter[int]()
    for example in examples:
        cells.update(example.classes.ravel().tolist())
    if not 0 <= min(cells) <= max(cells) < len(class_names):
        raise ValueError(
            f"expected classes 0 to {len(class_names) - 1}, got {min(cells)} to {max(cells)}"
        )
    shown = sorted(cells, key=lambda label: (-cells[label], label))
    legend = dict(zip(shown, _COLORS, strict=False))
    entries = [(color, class_names[label]) for label, color in legend.items()]
    if len(shown) > len(legend):
        entries.append((_OTHERS, f"{len(shown) - len(legend)} other classes"))
    columns = min(columns, len(examples))
    width = max(2 * _MARGIN + columns * (_pair_width() + _GAP) - _GAP, 3 * _LEGEND_WIDTH)
    per_line = (width - 2 * _MARGIN) // _LEGEND_WIDTH
    rows = math.ceil(len(examples) / columns)
    legend_top = _HEADING + rows * _row_height()
    height = legend_top + math.ceil(len(entries) / per_line) * _LEGEND_LINE + _MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    with house_style():
        # As in the other grids: one set of axes in pixels, from the upper left corner.
        figure = Figure(figsize=(width / DPI, height / DPI))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        heading = fitting(title, 19, width - 2 * _MARGIN)
        axes.text(_MARGIN, 26, heading, fontsize=12, weight="bold", color=INK)
        note = fitting(_NOTE, _LETTERS, width - 2 * _MARGIN)
        axes.text(_MARGIN, 46, note, fontsize=9, color=MUTED)
        for position, example in enumerate(examples):
            x = _MARGIN + position % columns * (_pair_width() + _GAP)
            y = _HEADING + position // columns * _row_height()
            _place_pair(axes, canvas, example, legend, class_names, (x, y))
        _draw_legend(axes, entries, legend_top, per_line)
        axes.imshow(canvas, extent=(0, width, height, 0), interpolation="nearest", zorder=0)
        save_figure(figure, path)


def overlay(image: Image.Image, example: MapExample, colors: Mapping[int, str]) -> Image.Image:
    """A pale grey copy of a picture under the colours of a map, cell by cell.

    Args:
        image: The picture of the example, at any size.
        example: The map.
        colors: Of the classes; the others are grey.
    """
    table = {label: ImageColor.getrgb(color) for label, color in colors.items()}
    other = ImageColor.getrgb(_OTHERS)
    tint = np.array(
        [[table.get(label, other) for label in row] for row in example.classes.tolist()], np.uint8
    )
    opacity = np.nan_to_num(example.probability.astype(float)).clip(0, 1) * _STRONGEST * 255
    grey = ImageOps.grayscale(image).convert("RGB")
    pale = Image.blend(grey, Image.new("RGB", image.size, "white"), 0.45)
    nearest = Image.Resampling.NEAREST
    return Image.composite(
        Image.fromarray(tint).resize(image.size, nearest),
        pale,
        Image.fromarray(np.rint(opacity).astype(np.uint8)).resize(image.size, nearest),
    )


def _pair_width() -> int:
    return 2 * _SIDE + _BETWEEN


def _row_height() -> int:
    return _SIDE + _LINE + _GAP


def _place_pair(
    axes: Axes,
    canvas: Image.Image,
    example: MapExample,
    colors: Mapping[int, str],
    class_names: Sequence[str],
    corner: tuple[int, int],
) -> None:
    x, y = corner
    image = _fitted(example.image)
    labels, counts = np.unique(example.classes, return_counts=True)
    most = int(labels[counts.argmax()])
    share = f"{counts.max() / counts.sum():.0%}"
    name = fitting(class_names[most], _LETTERS, _SIDE - (len(share) + 1) * 9)
    agrees = class_names[most] == example.truth
    captions = (
        (fitting(example.truth, _LETTERS, _SIDE), INK),
        (f"{name} {share}", GREEN if agrees else RED),
    )
    for tile, (text, color) in zip((image, overlay(image, example, colors)), captions, strict=True):
        square = Image.new("RGB", (_SIDE, _SIDE), _BEHIND_IMAGE)
        square.paste(tile, ((_SIDE - tile.width) // 2, (_SIDE - tile.height) // 2))
        canvas.paste(square, (x, y))
        axes.text(x, y + _SIDE + 16, text, fontsize=9, color=color)
        x += _SIDE + _BETWEEN


def _draw_legend(axes: Axes, entries: Sequence[tuple[str, str]], top: int, per_line: int) -> None:
    for position, (color, name) in enumerate(entries):
        x = _MARGIN + position % per_line * _LEGEND_WIDTH
        y = top + position // per_line * _LEGEND_LINE
        axes.add_patch(Rectangle((x, y), 12, 12, facecolor=color, edgecolor="none"))
        text = fitting(name, _LETTERS, _LEGEND_WIDTH - 30)
        axes.text(x + 19, y + 11, text, fontsize=9, color=MUTED)


def _fitted(image: Image.Image) -> Image.Image:
    """The whole picture, its long side that of the square; small ones without smoothing."""
    image = image.convert("RGB")
    factor = _SIDE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    method = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST
    return image.resize(size, method, reducing_gap=3.0)
