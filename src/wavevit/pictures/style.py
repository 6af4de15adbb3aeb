"""One look for every picture: colours, fonts, and writing a figure in one step.

Everything here works on `Figure` objects; pyplot and its global list of figures are never used.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import ImageFont

from wavevit.files import replacing

INK = "#1f2933"
MUTED = "#66727f"
FAINT = "#e3e8ed"
PAPER = "#ffffff"
BLUE = "#2f6fb5"
ORANGE = "#e0812f"
GREEN = "#2b9a5c"
RED = "#cf3f3f"

DPI = 100
"""Pixels per inch of every figure: one inch below is 100 pixels of the file."""

# Fonts with the scripts that matplotlib's own DejaVu Sans lacks; used where they are installed.
_WIDE_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans JP",
    "Noto Sans SC",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "Hiragino Sans",
    "PingFang SC",
    "Yu Gothic",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans",
    "Arial Unicode MS",
)


@contextmanager
def house_style() -> Iterator[None]:
    """Our matplotlib settings, for the time of drawing one picture."""
    settings: Any = {
        "font.family": ["DejaVu Sans", *_installed_wide_fonts()],
        "font.size": 10,
        "text.color": INK,
        # A class may be called "$5": that is a name and no formula.
        "text.parse_math": False,
        "text.usetex": False,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.edgecolor": "#b6c0ca",
        "axes.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.8,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "figure.facecolor": PAPER,
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
    }
    with matplotlib.rc_context(settings):
        yield


def panel_figure(width: int, height: int) -> Figure:
    """A figure that keeps its panels and their texts apart and clear of the border.

    Args:
        width: Pixels.
        height: Pixels.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.14)  # inches
    return Figure(figsize=(width / DPI, height / DPI), layout=layout)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG; an existing file is replaced in one step, never half written.

    Args:
        figure: The figure.
        path: File to write.

    Raises:
        OSError: It cannot be written.
    """

    def write(file: IO[bytes]) -> None:
        with without_letter_warnings():
            figure.savefig(file, format="png")

    write_atomically(path, write)


@contextmanager
def without_letter_warnings() -> Iterator[None]:
    """While texts are drawn or measured; scripts no installed font has become boxes.

    That is worth no warning per letter.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from")
        yield


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file under a temporary name beside it, then renames it.

    Args:
        path: File to write.
        write: Called with the open binary file.

    Raises:
        OSError: The file cannot be written.
    """
    # Pictures can be drawn again: nobody waits for the disk after each one.
    with replacing(path, durable=False) as partial, open(partial, "wb") as file:
        write(file)


def one_line(text: str, limit: int) -> str:
    """A name fit for a caption: no line breaks or control characters, shortened in its middle.

    Args:
        text: Any text.
        limit: Greatest number of characters, at least 3.
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split()) or "(no name)"
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 3
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def fitting(text: str, size: int, width: int) -> str:
    """A name in one line, shortened until it is at most so wide.

    Args:
        text: Any text.
        size: Height of the letters, pixels.
        width: Space, pixels; three characters stay in any case.
    """
    limit = 80
    shown = one_line(text, limit)
    while limit > 3 and font_for(shown, size).getlength(shown) > width:
        limit = min(limit, len(shown)) - 1
        shown = one_line(text, max(limit, 3))
    return shown


def fitting_with_ending(name: str, ending: str, size: int, width: int) -> str:
    """A name and what is said of it in one line, of which the name is shortened.

    Args:
        name: Any text.
        ending: Written behind it as it is.
        size: Height of the letters, pixels.
        width: Space, pixels; three characters of the name stay in any case.
    """
    room = width - font_for(ending, size).getlength(ending)
    return fitting(name, size, int(room)) + ending


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A Pillow font that has the text's letters; DejaVu Sans if no installed one has.

    Args:
        text: What will be written.
        size: Height, pixels.
    """
    wanted = {ord(c) for c in text if not c.isspace()}
    regular = _font_path("DejaVu Sans")
    if not wanted <= _letters(regular):
        for family in _installed_wide_fonts():
            if wanted <= _letters(_font_path(family)):
                return _font(_font_path(family), size)
    return _font(regular, size)


@lru_cache(maxsize=32)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@lru_cache(maxsize=1)
def _installed_wide_fonts() -> tuple[str, ...]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in _WIDE_FONTS if name in installed)


@lru_cache(maxsize=32)
def _font_path(family: str) -> str:
    return cast("str", font_manager.findfont(font_manager.FontProperties(family=family)))


@lru_cache(maxsize=32)
def _letters(path: str) -> frozenset[int]:
    return frozenset(FT2Font(path).get_charmap())
