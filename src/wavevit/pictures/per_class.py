"""Accuracy of every class as bars.

Shape legend: K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from wavevit.pictures.style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    house_style,
    one_line,
    panel_figure,
    save_figure,
)

MAX_CLASSES = 100


def draw_per_class(
    accuracy: NDArray[np.float64],
    counts: NDArray[np.int64],
    class_names: Sequence[str],
    path: Path,
    *,
    title: str = "",
) -> None:
    """One bar per class that has samples, the weakest on top, with the mean as a line.

    Args:
        accuracy: (K,) fractions in [0, 1]; NaN for classes without samples, which are left out.
        counts: (K,) samples of each class.
        class_names: K names.
        path: PNG file to write.
        title: Line above the picture.

    Raises:
        ValueError: No class has samples, or more than 100 do: the bars would not be readable.
        OSError: The file cannot be written.
    """
    shown = np.flatnonzero(counts > 0)
    if not 1 <= len(shown) <= MAX_CLASSES:
        raise ValueError(f"expected 1 to {MAX_CLASSES} classes with samples, got {len(shown)}")
    order = shown[np.argsort(accuracy[shown], kind="stable")]
    values, rows = accuracy[order], np.arange(len(order))
    mean = float(values.mean())
    with house_style():
        figure = panel_figure(820, 130 + 24 * len(shown))
        axes = figure.subplots()
        colors = [ORANGE if value < mean - 0.1 else BLUE for value in values]
        axes.barh(rows, values, height=0.72, color=colors)
        for row, (value, index) in enumerate(zip(values, order, strict=True)):
            axes.text(1.015, row, f"{value:.1%}", va="center", fontsize=9)
            axes.text(1.125, row, f"n={counts[index]:,}", va="center", fontsize=9, color=MUTED)
        axes.axvline(mean, color=INK, linewidth=1, dashes=(4, 3))
        axes.text(mean, -0.75, f"mean {mean:.1%}", ha="center", va="bottom", fontsize=9)
        axes.set_yticks(rows, [one_line(class_names[int(i)], 30) for i in order], fontsize=9)
        axes.tick_params(axis="y", colors=INK)
        axes.set(xlim=(0, 1), ylim=(len(shown) - 0.4, -0.6))
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.set_title(one_line(title or "Accuracy by class", 70), pad=22)
        save_figure(figure, path)
