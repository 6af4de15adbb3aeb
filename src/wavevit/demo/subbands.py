"""The wavelet pyramid of a picture, laid out as one picture.

Shape legend: H rows and W columns of the picture.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wavevit.ops.dwt import dwt2
from wavevit.pictures.style import font_for

MOST_LEVELS = 5
_LONG_SIDE = 1024  # pixels of the transformed picture: its finest bands are half of that
_LINE = (235, 238, 241)
_PLATE = (31, 41, 51)
_WIDE = 3.0  # standard deviations of a band from grey to black or white


def most_levels(picture: Image.Image) -> int:
    """How often the picture can be halved with something left to look at, at least 1.

    Args:
        picture: Any size.
    """
    return max(int(np.log2(max(min(_fitted(picture.size)), 16) / 8)), 1)


def draw_subbands(picture: Image.Image, levels: int) -> Image.Image:
    """The Haar bands of every level: averages top left, in colour, details around them in grey.

    Mid grey is zero. Each detail band is stretched by itself, since those of a photo differ by an
    order of magnitude. Names as in `wavevit.dwt2`.

    Args:
        picture: RGB.
        levels: How often to halve the size, at least 1; no more than `most_levels` are drawn.
    """
    levels = min(levels, most_levels(picture))
    step = 2**levels
    width, height = (max(side // step, 1) * step for side in _fitted(picture.size))
    resized = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
    average, *details = dwt2(pixels, levels=levels)
    canvas = np.empty((height, width, 3), np.uint8)
    # Haar's low pass doubles the level of what it averages.
    top = (average / step).permute(1, 2, 0).numpy()
    canvas[: top.shape[0], : top.shape[1]] = np.rint(255 * top.clip(0, 1)).astype(np.uint8)
    names = [(0, 0, top.shape[0], top.shape[1], f"LL {levels}" if levels > 1 else "LL")]
    for number, (lh, hl, hh) in enumerate(details):
        H, W = lh.shape[-2:]
        level = f" {levels - number}" if levels > 1 else ""
        for band, (row, column, name) in zip(
            (lh, hl, hh), ((H, 0, "LH"), (0, W, "HL"), (H, W, "HH")), strict=True
        ):
            grey = _grey(band.mean(dim=0).numpy())
            canvas[row : row + H, column : column + W] = grey[..., None]
            names.append((row, column, H, W, name + level))
    return _with_names(Image.fromarray(canvas), names)


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height at most 1,024, and at least 16: small pictures are enlarged."""
    factor = min(_LONG_SIDE / max(size), 1.0)
    width, height = (max(round(side * factor), 16) for side in size)
    return width, height


def _grey(band: NDArray[np.float32]) -> NDArray[np.uint8]:
    spread = max(_WIDE * float(band.std()), 1e-6)
    return np.rint(255 * (0.5 + 0.5 * (band / spread).clip(-1, 1))).astype(np.uint8)


def _with_names(image: Image.Image, names: list[tuple[int, int, int, int, str]]) -> Image.Image:
    draw = ImageDraw.Draw(image)
    for row, column, height, width, name in names:
        draw.rectangle((column, row, column + width - 1, row + height - 1), outline=_LINE)
        size = min(max(image.width // 50, 11), height // 3)
        font = font_for(name, max(size, 1))
        room = font.getlength(name) + size
        if size < 9 or room > width:
            continue  # the band's place tells
        plate = (column + 4, row + 4, column + 4 + room, row + 4 + 1.6 * size)
        draw.rectangle(plate, fill=_PLATE)
        middle = row + 4 + 0.8 * size
        draw.text((column + 4 + size / 2, middle), name, (255, 255, 255), font, anchor="lm")
    return image
