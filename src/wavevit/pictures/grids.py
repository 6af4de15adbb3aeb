"""Grids of small images: augmented samples, and right and wrong predictions.

Shape legend: B images, H rows, W columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wavevit.pictures.style import (
    DPI,
    GREEN,
    INK,
    MUTED,
    RED,
    fitting,
    house_style,
    one_line,
    save_figure,
)

_SIDE = 128  # pixels of an image's square
_GAP = 24
_MARGIN = 24
_LINE = 17  # pixels of a caption's line
_CAPTION_WIDTH = _SIDE + _GAP - 8
_LETTERS = 13  # pixels: 9 points
_BEHIND_IMAGE = (241, 244, 247)


@dataclass(frozen=True)
class Example:
    """A picture with what it shows and what the model saw in it.

    Attributes:
        image: The picture.
        truth: Name of the true class.
        prediction: Name of the predicted class.
        confidence: Probability of the predicted class, in [0, 1].
        is_right: Whether the prediction is the truth.
    """

    image: Image.Image
    truth: str
    prediction: str
    confidence: float
    is_right: bool


@dataclass(frozen=True)
class _Tile:
    image: Image.Image
    lines: tuple[tuple[str, str], ...]  # text and colour
    frame: str | None = None


def draw_samples(
    images: Tensor,
    captions: Sequence[str],
    path: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    title: str = "Training samples as the network sees them",
    columns: int = 8,
) -> None:
    """A grid of network inputs, normalisation undone, each with its caption.

    Args:
        images: (B, 3, H, W) normalised floats, B >= 1.
        captions: B captions, e.g. class names.
        path: PNG file to write.
        mean: Per channel, of values in [0, 1].
        std: Per channel, of values in [0, 1].
        title: Line above the grid.
        columns: Images per row.

    Raises:
        ValueError: No images, or another number of captions.
        OSError: The file cannot be written.
    """
    if len(images) == 0 or len(images) != len(captions):
        raise ValueError(f"expected a caption per image, got {len(captions)} for {len(images)}")
    tiles = [
        _Tile(Image.fromarray(pixels), ((caption, INK),))
        for pixels, caption in zip(to_pixels(images, mean, std), captions, strict=True)
    ]
    _draw_sections([(title, INK, tiles)], path, columns)


def draw_predictions(
    examples: Sequence[Example], path: Path, *, title: str = "Validation", columns: int = 8
) -> None:
    """Wrong predictions in red frames, then right ones in green, with confidences.

    Args:
        examples: At least one; shown in the given order within each group.
        path: PNG file to write.
        title: Start of the groups' headings.
        columns: Images per row.

    Raises:
        ValueError: No examples.
        OSError: The file cannot be written.
    """
    if not examples:
        raise ValueError("expected at least one example to draw")
    sections = []
    for is_right, heading, color in ((False, "wrong", RED), (True, "right", GREEN)):
        tiles = [_prediction_tile(e, color) for e in examples if e.is_right == is_right]
        if tiles:
            sections.append((f"{title}: {heading}", color, tiles))
    _draw_sections(sections, path, columns)


def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """Normalised images as pixels.

    Args:
        images: (B, 3, H, W) normalised floats.
        mean: Per channel, of values in [0, 1].
        std: Per channel, of values in [0, 1].

    Returns:
        (B, H, W, 3), values outside the range clipped.
    """
    values = images.detach().cpu().double().permute(0, 2, 3, 1).numpy()
    values = values * np.asarray(std) + np.asarray(mean)
    pixels: NDArray[np.uint8] = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    return pixels


def _prediction_tile(example: Example, color: str) -> _Tile:
    share = f"{example.confidence:.0%}"
    name = fitting(example.prediction, _LETTERS, _CAPTION_WIDTH - (len(share) + 1) * 9)
    lines = [(f"{name} {share}", color)]
    if not example.is_right:
        lines.append((f"is {one_line(example.truth, 80)}", MUTED))
    return _Tile(example.image, tuple(lines), color)


def _draw_sections(
    sections: Sequence[tuple[str, str, list[_Tile]]], path: Path, columns: int
) -> None:
    columns = min(columns, max(len(tiles) for _, _, tiles in sections))
    columns = max(columns, 3)  # room for the headings
    width = 2 * _MARGIN + columns * (_SIDE + _GAP) - _GAP
    heights = [_section_height(tiles, columns) for _, _, tiles in sections]
    height = sum(heights) + _MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    with house_style():
        # One set of axes over the whole figure, in pixels from the upper left corner: hundreds of
        # axes would take seconds, and would not show images pixel for pixel.
        figure = Figure(figsize=(width / DPI, height / DPI))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        top = 0
        for (heading, color, tiles), section_height in zip(sections, heights, strict=True):
            shown = fitting(heading, 19, width - 2 * _MARGIN)
            axes.text(_MARGIN, top + 26, shown, fontsize=12, weight="bold", color=color)
            _place_tiles(axes, canvas, tiles, top + 44, columns)
            top += section_height
        axes.imshow(canvas, extent=(0, width, height, 0), interpolation="nearest", zorder=0)
        save_figure(figure, path)


def _section_height(tiles: Sequence[_Tile], columns: int) -> int:
    lines = max(len(tile.lines) for tile in tiles)
    return 44 + math.ceil(len(tiles) / columns) * (_SIDE + _LINE * lines + _GAP + 3)


def _place_tiles(
    axes: Axes, canvas: Image.Image, tiles: Sequence[_Tile], top: int, columns: int
) -> None:
    row_height = _SIDE + _LINE * max(len(tile.lines) for tile in tiles) + _GAP + 3
    for position, tile in enumerate(tiles):
        x = _MARGIN + position % columns * (_SIDE + _GAP)
        y = top + position // columns * row_height
        canvas.paste(_thumbnail(tile.image), (x, y))
        if tile.frame is not None:
            axes.add_patch(
                Rectangle((x, y), _SIDE, _SIDE, fill=False, edgecolor=tile.frame, linewidth=2.5)
            )
        for line, (text, color) in enumerate(tile.lines):
            axes.text(
                x,
                y + _SIDE + 16 + line * _LINE,
                fitting(text, _LETTERS, _CAPTION_WIDTH),
                fontsize=9,
                color=color,
            )


def _thumbnail(image: Image.Image) -> Image.Image:
    """The whole image inside a square; small ones enlarged without smoothing."""
    image = image.convert("RGB")
    long_side = max(image.size)
    if long_side > _SIDE:
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    elif 2 * long_side <= _SIDE:
        image = image.resize(
            [s * (_SIDE // long_side) for s in image.size], Image.Resampling.NEAREST
        )
    tile = Image.new("RGB", (_SIDE, _SIDE), _BEHIND_IMAGE)
    tile.paste(image, ((_SIDE - image.width) // 2, (_SIDE - image.height) // 2))
    return tile
