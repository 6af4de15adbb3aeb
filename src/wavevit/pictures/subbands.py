"""The sub-bands of an image as a picture, and their energy through a network as bars.

Legend: C colours, h w rows and columns of a sub-band, N signals.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from wavevit.pictures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    house_style,
    one_line,
    panel_figure,
    save_figure,
)
from wavevit.pictures.style import font_for as _font_for

BAND_NAMES = ("LL", "LH", "HL", "HH")

_MEANINGS = ("average", "horizontal edges", "vertical edges", "diagonals")
_LL_COLOUR = "#cfd7df"
_DETAIL_COLOURS = (BLUE, ORANGE, GREEN)
_GAP = 4
_MIN_SIDE = 200  # pixels of a band that is shown
_QUANTILE = 0.995  # of the details' sizes: what is shown as black or white


def subband_mosaic(ll: ArrayLike, details: Sequence[ArrayLike]) -> Image.Image:
    """The sub-bands LL and LH over HL and HH, each with its name.

    LL is shown as an image. The three others are grey where they are 0, and stretched by one common
    factor, so that they can be compared.

    Args:
        ll: ``(C, h, w)`` of an image, as `wavevit.dwt2` gives it, C being 1 or 3.
        details: LH, HL and HH, ``(C, h, w)`` each.

    Raises:
        ValueError: Not such sub-bands.
    """
    bands = [np.asarray(band, np.float64) for band in (ll, *details)]
    shape = bands[0].shape
    if len(bands) != 4 or any(band.shape != shape for band in bands) or len(shape) != 3:
        raise ValueError(
            f"expected four sub-bands (C, h, w), got {', '.join(str(b.shape) for b in bands)}"
        )
    if shape[0] not in (1, 3) or not all(np.isfinite(band).all() for band in bands):
        raise ValueError(f"expected finite sub-bands of 1 or 3 colours, got {shape[0]} colours")
    low, high = bands[0].min(), bands[0].max()
    reach = np.quantile(np.abs(np.stack(bands[1:])), _QUANTILE)
    shown = [(bands[0] - low) / max(high - low, 1e-12)]
    shown += [0.5 + band / (2 * max(reach, 1e-12)) for band in bands[1:]]
    tiles = [_tile(band, f"{n}  {m}") for band, n, m in zip(shown, BAND_NAMES, _MEANINGS)]  # noqa: B905
    width, height = tiles[0].size
    canvas = Image.new("RGB", (2 * width + _GAP, 2 * height + _GAP), "white")
    for number, tile in enumerate(tiles):
        canvas.paste(tile, (number % 2 * (width + _GAP), number // 2 * (height + _GAP)))
    return canvas


def _tile(values: NDArray[np.float64], text: str) -> Image.Image:
    pixels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    tile = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    factor = max(1, -(-_MIN_SIDE // max(tile.size)))
    tile = tile.resize((tile.width * factor, tile.height * factor), Image.Resampling.NEAREST)
    font = _font_for(text, 12)
    draw = ImageDraw.Draw(tile)
    left, top, right, bottom = draw.textbbox((10, 9), text, font=font)
    draw.rectangle((left - 5, top - 4, right + 5, bottom + 4), fill="white")
    draw.text((10, 9), text, INK, font)
    return tile


def draw_subband_energy(
    shares: ArrayLike, names: Sequence[str], path: Path, *, title: str = ""
) -> None:
    """A bar for each signal, split into the energy of LL and of the three bands of details.

    Args:
        shares: ``(N, 4)`` in [0, 1] of LL, LH, HL and HH, of one image or averaged over images; a
            row with NaN is a signal without energy.
        names: N names, such as "image" and those of blocks; the first one is drawn on top.
        path: PNG file to write.
        title: Line above the picture.

    Raises:
        ValueError: No signals, or another number of names.
        OSError: The file cannot be written.
    """
    values = np.asarray(shares, np.float64)
    if values.ndim != 2 or values.shape != (len(names), 4) or not len(names):
        raise ValueError(
            f"expected shares (N, 4) with N names, got {values.shape} and {len(names)} names"
        )
    rows = np.arange(len(names))
    with house_style():
        figure = panel_figure(900, 150 + 34 * len(names))
        axes = figure.subplots()
        left = np.zeros(len(names))
        for band, colour in enumerate((_LL_COLOUR, *_DETAIL_COLOURS)):
            part = np.nan_to_num(values[:, band])
            label = f"{BAND_NAMES[band]} {_MEANINGS[band]}"
            axes.barh(rows, part, left=left, height=0.66, color=colour, label=label)
            left += part
        for row, dropped in enumerate(values[:, 1:].sum(axis=1)):
            text = "no energy" if np.isnan(dropped) else f"{dropped:.1%}"
            axes.text(1.012, row, text, va="center", fontsize=9, fontweight="bold")
        axes.text(1.012, -0.75, "details", va="bottom", fontsize=9)
        axes.set_yticks(rows, [one_line(name, 40) for name in names], fontsize=9)
        axes.tick_params(axis="y", colors=INK)
        axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.6))
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.grid(False, axis="y")
        axes.set_title(one_line(title or "Energy per sub-band", 80), pad=30)
        figure.legend(loc="outside lower center", ncols=4, fontsize=9)
        save_figure(figure, path)
