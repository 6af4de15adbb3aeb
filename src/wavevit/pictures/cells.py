"""Sheets of cells under headings; a cell is a row of pictures with a caption."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from wavevit.pictures.style import (
    INK,
    MUTED,
    fitting,
    fitting_with_ending,
    font_for,
    write_atomically,
)

SIDE = 256
"""Pixels of a picture's longer side, at most."""
MARGIN = 24
"""Pixels around everything."""

_GAP = 16
_BETWEEN = 4  # the pictures of a cell
_HEADING, _CAPTION = 18, 12  # heights of letters, pixels
_HEADING_HEIGHT = 44
_HEADING_PICTURES = 3  # side by side at least, to have room for headings


@dataclass(frozen=True)
class Cell:
    """Pictures side by side, and one line below.

    Attributes:
        pictures: At least one, up to 256 pixels a side.
        caption: One line as wide as the pictures, as `fitted_caption` gives it; may be empty.
    """

    pictures: list[Image.Image]
    caption: str

    @property
    def height(self) -> int:
        """Pixels."""
        caption = _CAPTION + 8 if self.caption else 0
        return max(picture.height for picture in self.pictures) + caption


def fitted_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of a picture whose longer side is 256 pixels.

    Args:
        width: Of the picture, pixels.
        height: Of the picture, pixels.
    """
    factor = SIDE / max(width, height)
    return max(round(width * factor), 1), max(round(height * factor), 1)


def fitted_picture(image: Image.Image) -> Image.Image:
    """The picture, its longer side 256 pixels; small ones are enlarged without smoothing.

    Args:
        image: Any mode that Pillow converts to RGB.
    """
    is_small = 2 * max(image.size) <= SIDE
    resample = Image.Resampling.NEAREST if is_small else Image.Resampling.LANCZOS
    return image.convert("RGB").resize(fitted_size(*image.size), resample)


def fitted_caption(name: str, ending: str, num_pictures: int) -> str:
    """A line below pictures: a name, shortened where it has to be, and what is said of it.

    Args:
        name: Any text.
        ending: Written behind it as it is; may be empty.
        num_pictures: Of the cell.
    """
    return fitting_with_ending(name, ending, _CAPTION, _cell_width(num_pictures))


def sheet_width(num_pictures: int, columns: int) -> int:
    """Pixels.

    Args:
        num_pictures: Of a cell.
        columns: Cells side by side.
    """
    return 2 * MARGIN + columns * (_cell_width(num_pictures) + _GAP) - _GAP


def draw_sheet(
    sections: Sequence[tuple[str, Sequence[Cell]]],
    path: Path,
    columns: int,
    *,
    footer: Image.Image | None = None,
) -> None:
    """Writes cells under their headings as PNG.

    Args:
        sections: Headings and cells, none without; all cells have as many pictures.
        path: File to write.
        columns: Cells side by side, at most.
        footer: Put below, as wide as `sheet_width` or less.

    Raises:
        OSError: The file cannot be written.
    """
    num_pictures = len(sections[0][1][0].pictures)
    most = max(len(cells) for _, cells in sections)
    columns = max(min(columns, most), _HEADING_PICTURES // num_pictures)
    rows = [
        [list(cells[i : i + columns]) for i in range(0, len(cells), columns)]
        for _, cells in sections
    ]
    heights = [[max(cell.height for cell in row) + _GAP for row in section] for section in rows]
    total = MARGIN + sum(_HEADING_HEIGHT + sum(section) for section in heights)
    width = sheet_width(num_pictures, columns)
    below = 0 if footer is None else footer.height
    canvas = Image.new("RGB", (width, total + below), "white")
    draw = ImageDraw.Draw(canvas)
    top = 0
    for (heading, _), section, row_heights in zip(sections, rows, heights, strict=True):
        text = fitting(heading, _HEADING, width - 2 * MARGIN)
        draw.text((MARGIN, top + 26), text, INK, font_for(text, _HEADING), anchor="lm")
        top += _HEADING_HEIGHT
        for row, height in zip(section, row_heights, strict=True):
            for number, cell in enumerate(row):
                _place(
                    draw, canvas, cell, MARGIN + number * (_cell_width(num_pictures) + _GAP), top
                )
            top += height
    if footer is not None:
        canvas.paste(footer, (0, total - MARGIN))
    write_atomically(path, lambda file: canvas.save(file, "PNG"))


def _cell_width(num_pictures: int) -> int:
    return num_pictures * (SIDE + _BETWEEN) - _BETWEEN


def _place(draw: ImageDraw.ImageDraw, canvas: Image.Image, cell: Cell, left: int, top: int) -> None:
    for number, picture in enumerate(cell.pictures):
        canvas.paste(picture, (left + number * (SIDE + _BETWEEN), top))
    if cell.caption:
        below = top + max(picture.height for picture in cell.pictures) + 4
        draw.text((left, below), cell.caption, MUTED, font_for(cell.caption, _CAPTION))
