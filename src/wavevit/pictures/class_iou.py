"""IoU of every class as bars in the classes' colours.

Shape legend: K classes.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from wavevit.pictures.style import (
    INK,
    MUTED,
    house_style,
    one_line,
    panel_figure,
    save_figure,
)

_ROWS = 50  # of a panel
_PANEL_WIDTH = 720  # pixels
_ROW_HEIGHT = 24


def draw_class_iou(
    iou: NDArray[np.float64],
    accuracy: NDArray[np.float64],
    counts: NDArray[np.int64],
    class_names: Sequence[str],
    palette: Sequence[Sequence[int]],
    path: Path,
    *,
    title: str = "",
) -> None:
    """One bar per class that has an IoU, the weakest on top, with the mean as a line.

    A mark in each row is the share of the class's pixels that are found. More than 50 classes are
    shown in several panels side by side.

    Args:
        iou: (K,) fractions in [0, 1]; NaN for classes that are nowhere, which are left out.
        accuracy: (K,) fractions in [0, 1]; NaN for classes without true pixels.
        counts: (K,) true pixels of each class.
        class_names: K names.
        palette: K colours: red, green and blue in 0..255.
        path: PNG file to write.
        title: Line above the picture.

    Raises:
        ValueError: No class has an IoU.
        OSError: The file cannot be written.
    """
    shown = np.flatnonzero(~np.isnan(iou))
    if not len(shown):
        raise ValueError("expected at least one class that is in the truth or predicted")
    order = shown[np.argsort(iou[shown], kind="stable")]
    num_panels = math.ceil(len(order) / _ROWS)
    num_rows = math.ceil(len(order) / num_panels)
    shares = counts / max(int(counts.sum()), 1)
    with house_style():
        figure = panel_figure(100 + _PANEL_WIDTH * num_panels, 140 + _ROW_HEIGHT * num_rows)
        panels = figure.subplots(1, num_panels, squeeze=False)[0]
        for number, axes in enumerate(panels):
            part = order[number * num_rows : (number + 1) * num_rows]
            colors = [tuple(value / 255 for value in palette[c]) for c in part]
            _draw_bars(axes, iou[part], accuracy[part], shares[part], colors)
            names = [one_line(class_names[c], 26) for c in part]
            axes.set_yticks(np.arange(len(part)), names, fontsize=9)
            axes.tick_params(axis="y", colors=INK)
            axes.set(xlim=(0, 1), ylim=(num_rows - 0.4, -0.6))
            mean = float(iou[shown].mean())
            axes.axvline(mean, color=INK, linewidth=1, dashes=(4, 3))
            axes.text(mean, -0.75, f"mean {mean:.1%}", ha="center", va="bottom", fontsize=9)
        panels[0].set_title(one_line(title or "IoU by class", 70 * num_panels), pad=34)
        figure.supxlabel(
            "bar: IoU; |: share of the class's pixels that are found; "
            "right: IoU and share of all pixels",
            fontsize=9,
            color=MUTED,
        )
        save_figure(figure, path)


def _draw_bars(
    axes: Axes,
    iou: NDArray[np.float64],
    accuracy: NDArray[np.float64],
    shares: NDArray[np.float64],
    colors: Sequence[tuple[float, ...]],
) -> None:
    rows = np.arange(len(iou))
    # The outline is for pale classes.
    axes.barh(rows, iou, height=0.72, color=colors, edgecolor="#8a96a3", linewidth=0.6)
    axes.plot(accuracy, rows, linestyle="", marker="|", markersize=13, color=INK, clip_on=False)
    for row, (value, share) in enumerate(zip(iou, shares, strict=True)):
        axes.text(1.02, row, f"{value:.1%}", va="center", fontsize=9)
        text = f"{share:.1%}" if share >= 0.0005 or share == 0 else "<0.1%"
        axes.text(1.13, row, text, va="center", fontsize=9, color=MUTED)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
