"""Grids of pictures with objects: training samples, and predictions beside the truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from wavevit.pictures.detection import DrawnObjects, draw_objects
from wavevit.pictures.style import (
    INK,
    MUTED,
    fitting,
    fitting_with_ending,
    font_for,
    write_atomically,
)

_SIDE = 256  # pixels of a picture's longer side
_GAP = 16
_MARGIN = 24
_HEADING, _CAPTION = 18, 12  # heights of letters, pixels
_LETTERS = 11  # of names in a picture


@dataclass(frozen=True)
class DetectionExample:
    """A picture with its objects and those that a detector found.

    Attributes:
        image: The picture.
        truth: What is in it.
        found: What the detector says.
        name: What the picture is called; shortened where the line below it is too long.
        caption: The rest of that line.
    """

    image: Image.Image
    truth: DrawnObjects
    found: DrawnObjects
    name: str
    caption: str


def draw_detection_samples(
    samples: Sequence[tuple[Image.Image, DrawnObjects]],
    path: Path,
    *,
    title: str = "Training samples as the detector sees them",
    columns: int = 5,
) -> None:
    """A grid of pictures with their objects.

    Args:
        samples: At least one.
        path: PNG file to write.
        title: Line above the grid.
        columns: Pictures per row.

    Raises:
        ValueError: No samples.
        OSError: The file cannot be written.
    """
    if not samples:
        raise ValueError("expected at least one sample to draw")
    cells = [_Cell([_fitted(image, objects)], "") for image, objects in samples]
    _draw_sections([(title, cells)], path, columns)


def draw_detection_predictions(
    sections: Sequence[tuple[str, Sequence[DetectionExample]]], path: Path, *, columns: int = 2
) -> None:
    """Pairs of pictures: the truth on the left, what was found on the right.

    Args:
        sections: Headings with their examples; at least one example in all.
        path: PNG file to write.
        columns: Pairs per row.

    Raises:
        ValueError: No examples.
        OSError: The file cannot be written.
    """
    if not any(examples for _, examples in sections):
        raise ValueError("expected at least one example to draw")
    drawn = [
        (
            f"{heading}: truth on the left, found on the right",
            [
                _Cell([_fitted(e.image, e.truth), _fitted(e.image, e.found)], _caption(e))
                for e in examples
            ],
        )
        for heading, examples in sections
        if examples
    ]
    _draw_sections(drawn, path, columns)


def _caption(example: DetectionExample) -> str:
    return fitting_with_ending(example.name, f": {example.caption}", _CAPTION, 2 * _SIDE)


@dataclass(frozen=True)
class _Cell:
    pictures: list[Image.Image]
    caption: str

    @property
    def height(self) -> int:
        caption = _CAPTION + 8 if self.caption else 0
        return max(picture.height for picture in self.pictures) + caption


def _fitted(image: Image.Image, objects: DrawnObjects) -> Image.Image:
    """The picture with its objects, its longer side `_SIDE` pixels."""
    factor = _SIDE / max(image.size)
    width, height = (max(round(side * factor), 1) for side in image.size)
    resample = Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS
    small = image.convert("RGB").resize((width, height), resample)
    masks = objects.masks
    if masks is not None:
        rows = (np.arange(height) / factor).astype(int).clip(0, masks.shape[1] - 1)
        columns = (np.arange(width) / factor).astype(int).clip(0, masks.shape[2] - 1)
        masks = masks[:, rows[:, None], columns]
    scaled = DrawnObjects(
        objects.boxes_xyxy * factor, objects.labels, objects.class_names, objects.scores, masks
    )
    return draw_objects(small, scaled, letters=_LETTERS)


def _draw_sections(
    sections: Sequence[tuple[str, Sequence[_Cell]]], path: Path, columns: int
) -> None:
    most = max(len(cells) for _, cells in sections)
    pictures = len(sections[0][1][0].pictures)
    columns = max(min(columns, most), 3 // pictures)  # room for the headings
    cell_width = pictures * _SIDE + (pictures - 1) * 4
    width = 2 * _MARGIN + columns * (cell_width + _GAP) - _GAP
    rows = [
        [list(cells[i : i + columns]) for i in range(0, len(cells), columns)]
        for _, cells in sections
    ]
    heights = [[max(cell.height for cell in row) for row in of_section] for of_section in rows]
    total = _MARGIN + sum(44 + sum(h + _GAP for h in of_section) for of_section in heights)
    canvas = Image.new("RGB", (width, total), "white")
    draw = ImageDraw.Draw(canvas)
    top = 0
    for (heading, _), of_section, row_heights in zip(sections, rows, heights, strict=True):
        text = fitting(heading, _HEADING, width - 2 * _MARGIN)
        draw.text((_MARGIN, top + 26), text, INK, font_for(text, _HEADING), anchor="lm")
        top += 44
        for row, height in zip(of_section, row_heights, strict=True):
            for number, cell in enumerate(row):
                _place(canvas, draw, cell, _MARGIN + number * (cell_width + _GAP), top)
            top += height + _GAP
    write_atomically(path, lambda file: canvas.save(file, "PNG"))


def _place(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, cell: _Cell, left: int, top: int
) -> None:
    for number, picture in enumerate(cell.pictures):
        canvas.paste(picture, (left + number * (_SIDE + 4), top))
    if cell.caption:
        below = top + max(picture.height for picture in cell.pictures) + 4
        draw.text((left, below), cell.caption, MUTED, font_for(cell.caption, _CAPTION))
