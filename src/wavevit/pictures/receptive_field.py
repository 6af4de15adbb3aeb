"""Effective receptive fields side by side.

Legend: H W rows and columns in pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from wavevit.pictures.style import (
    MUTED,
    PAPER,
    house_style,
    one_line,
    panel_figure,
    save_figure,
)

_PANEL = 300  # pixels
_DECADES = 4  # from the brightest pixel to what is black


def draw_receptive_fields(
    fields: Sequence[ArrayLike],
    titles: Sequence[str],
    path: Path,
    *,
    sides: Sequence[Sequence[int]] = (),
    title: str = "Effective receptive field",
) -> None:
    """A panel for each field, in logarithmic colours over four decades.

    Args:
        fields: ``(H, W)`` shares that sum to 1, at least one.
        titles: One for each.
        path: PNG file to write.
        sides: For each field, sides in pixels of squares about the centre to be drawn in, such as
            those that hold half of it; or none at all.
        title: Line above the panels.

    Raises:
        ValueError: No fields, or another number of titles or of lists of sides.
        OSError: The file cannot be written.
    """
    maps = [np.asarray(field, np.float64) for field in fields]
    if not maps or len(titles) != len(maps) or (len(sides) and len(sides) != len(maps)):
        raise ValueError(
            f"expected a title for each field, and sides for each or none; got {len(maps)} fields, "
            f"{len(titles)} titles and {len(sides)} lists of sides"
        )
    with house_style():
        figure = panel_figure(30 + (_PANEL + 20) * len(maps), _PANEL + 120)
        figure.suptitle(one_line(title, 120), x=0.012, ha="left", fontsize=12, fontweight="bold")
        for number, (axes, field) in enumerate(
            zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True)
        ):
            relative = np.log10(np.maximum(field / field.max(), 10.0**-_DECADES))
            H, W = field.shape
            axes.imshow(
                relative, cmap="inferno", vmin=-_DECADES, vmax=0, extent=(0, W, H, 0), zorder=1
            )
            for side in sides[number] if sides else ():
                corner = (W // 2 + 0.5 - side / 2, H // 2 + 0.5 - side / 2)
                axes.add_patch(
                    Rectangle(corner, side, side, fill=False, edgecolor=PAPER, lw=1.3, zorder=2)
                )
            axes.set(xticks=(0, W), yticks=(0, H), xlim=(0, W), ylim=(H, 0))
            axes.grid(False)
            axes.set_title(one_line(titles[number], 60), fontsize=10)
        figure.supxlabel(
            f"share of the gradient by pixel, from 1/{10**_DECADES:,} of the greatest (black) to "
            "the greatest (yellow)" + ("; white squares: see the titles" if sides else ""),
            fontsize=9,
            color=MUTED,
        )
        save_figure(figure, path)
