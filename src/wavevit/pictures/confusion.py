"""Confusion matrix and reliability diagram.

Shape legend: K classes, M bins.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from wavevit.pictures.style import (
    BLUE,
    DPI,
    FAINT,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    RED,
    fitting,
    font_for,
    house_style,
    one_line,
    panel_figure,
    save_figure,
    without_letter_warnings,
)

MAX_CLASSES_WITH_NUMBERS = 20
_NAME_WIDTH = 170  # pixels
_LETTERS = 14  # pixels: 10 points
_NAME_HEIGHT = 15  # pixels a name needs so that the next one does not touch it
_WORST_SHOWN = 15
_BORDER = 16  # pixels around everything
_BELOW = 60  # pixels, for what is written under the matrix
_TITLE = 52  # pixels

_RIGHT_COLORS = LinearSegmentedColormap.from_list("right", [PAPER, "#a9c9ea", BLUE, "#173f6d"])
_WRONG_COLORS = LinearSegmentedColormap.from_list("wrong", [PAPER, "#f3b9a6", RED, "#7d1a1a"])


def draw_confusion(
    confusion: NDArray[np.int64], class_names: Sequence[str], path: Path, *, title: str = ""
) -> None:
    """Shares of every true class by predicted class; right ones blue, wrong ones red.

    Up to 20 classes the cells hold percentages; with more, the most frequent confusions are listed
    beside the matrix, and names are left out where they would overlap.

    Args:
        confusion: (K, K) counts by true class (row) and predicted class (column).
        class_names: K names.
        path: PNG file to write.
        title: Line above the picture.

    Raises:
        ValueError: The shape is not square, or the names do not match it.
        OSError: The file cannot be written.
    """
    K = len(class_names)
    if confusion.shape != (K, K):
        raise ValueError(f"expected a ({K}, {K}) matrix for {K} names, got {confusion.shape}")
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    with_numbers = K <= MAX_CLASSES_WITH_NUMBERS
    side = float(np.clip(K * 46, 320, 900)) if with_numbers else float(max(820, K + 100))
    names = [fitting(name, _LETTERS, _NAME_WIDTH) for name in class_names]
    beside = 130 if with_numbers else 500
    # Rare confusions are what one looks for: the power lifts them to where the colours differ.
    norm = PowerNorm(0.5 if with_numbers else 0.35, vmin=0, vmax=1)
    with house_style():
        figure = Figure(figsize=(side / DPI, side / DPI))
        axes = figure.add_axes((0, 0, 1, 1))
        _draw_matrix(axes, shares, norm, side)
        _draw_names(axes, names, totals[:, 0], side)
        margin = _make_room(figure, axes, side, beside)
        width, height = figure.get_size_inches() * DPI
        if with_numbers:
            _draw_numbers(axes, shares, side / K)
        else:
            _draw_worst(figure, confusion, totals[:, 0], names, (margin + side + 110) / width)
        _draw_scales(figure, norm, (margin + side + 24) / width, _BELOW / height)
        figure.text(
            _BORDER / width,
            1 - _BORDER / height,
            fitting(title or "Confusion matrix", 19, round(width) - 2 * _BORDER),
            va="top",
            fontsize=12,
            fontweight="bold",
        )
        save_figure(figure, path)


def draw_reliability(
    edges: NDArray[np.float64],
    counts: NDArray[np.int64],
    confidence: NDArray[np.float64],
    accuracy: NDArray[np.float64],
    path: Path,
    *,
    ece: float,
    title: str = "",
) -> None:
    """How often predictions are right against how sure the model was, and how many there are.

    Args:
        edges: (M + 1,) borders of the bins, in [0, 1].
        counts: (M,) samples in each bin.
        confidence: (M,) mean confidence; NaN in empty bins.
        accuracy: (M,) share of right predictions; NaN in empty bins.
        path: PNG file to write.
        ece: Expected calibration error, in [0, 1].
        title: Line above the picture.

    Raises:
        OSError: The file cannot be written.
    """
    used = counts > 0
    centres, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges) * 0.92
    with house_style():
        figure = panel_figure(640, 740)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, dashes=(4, 3), label="perfect")
        upper.bar(centres[used], accuracy[used], widths[used], color=BLUE, label="accuracy")
        gap = confidence[used] - accuracy[used]
        upper.bar(
            centres[used],
            gap,
            widths[used],
            bottom=accuracy[used],
            facecolor=(1, 1, 1, 0.6),
            edgecolor=RED,
            hatch="////",
            linewidth=0.8,
            label="gap to confidence",
        )
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        upper.set_title(one_line(title or "Reliability", 60))
        upper.legend(loc="upper left", bbox_to_anchor=(0, 0.93))
        upper.text(0.02, 0.96, f"ECE {ece:.2%}", va="center", fontsize=13, fontweight="bold")
        lower.bar(centres[used], counts[used] / counts.sum(), widths[used], color=ORANGE)
        lower.set(xlabel="confidence of the predicted class", ylabel="samples")
        for axis in (upper.xaxis, upper.yaxis, lower.yaxis):
            axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        save_figure(figure, path)


def _draw_matrix(axes: Axes, shares: NDArray[np.float64], norm: PowerNorm, side: float) -> None:
    K = len(shares)
    colors = _WRONG_COLORS(norm(shares))
    diagonal = np.arange(K)
    colors[diagonal, diagonal] = _RIGHT_COLORS(norm(shares[diagonal, diagonal]))
    axes.imshow(colors, interpolation="nearest" if side >= K else "antialiased")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#b6c0ca")
    if side / K >= 12:
        axes.set_xticks(np.arange(K - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(K - 1) + 0.5, minor=True)
        axes.grid(True, which="minor", color=FAINT, linewidth=0.8)
        axes.tick_params(which="minor", length=0)


def _draw_names(axes: Axes, names: Sequence[str], totals: NDArray[np.int64], side: float) -> None:
    K = len(names)
    step = math.ceil(K * _NAME_HEIGHT / side)
    shown = range(0, K, step)
    size = 9 if step > 1 or side / K < 24 else 10
    flat = max(font_for(name, _LETTERS).getlength(name) for name in names) < 0.9 * side / K
    axes.set_xticks(shown, [names[i] for i in shown], rotation=0 if flat else 90, fontsize=size)
    axes.set_yticks(shown, [f"{names[i]}  n={totals[i]:,}" for i in shown], fontsize=size)
    axes.tick_params(colors=INK)
    axes.xaxis.tick_top()
    note = f" (every {step}th name shown)" if step > 3 else ""
    axes.set_xlabel(f"predicted class{note}", labelpad=10)
    axes.set_ylabel("true class", labelpad=10)


def _make_room(figure: Figure, axes: Axes, side: float, beside: float) -> int:
    """Enlarges a figure that the matrix fills; gives the pixels on the left of the matrix."""
    with without_letter_warnings():
        drawn = axes.get_tightbbox()
    assert drawn is not None
    left = math.ceil(-drawn.x0) + _BORDER
    above = math.ceil(drawn.y1 - side) + _TITLE
    width, height = left + side + beside, _BELOW + side + above
    figure.set_size_inches(width / DPI, height / DPI)
    axes.set_position((left / width, _BELOW / height, side / width, side / height))
    return left


def _draw_numbers(axes: Axes, shares: NDArray[np.float64], cell: float) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share == 0:
            continue
        text = f"{100 * share:.0f}"
        if share not in (0, 1):
            text = {"0": "<1", "100": ">99"}.get(text, text)
        color = PAPER if share > 0.3 else INK
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            color=color,
            fontsize=11 if cell > 40 else 9,
        )


def _draw_worst(
    figure: Figure,
    confusion: NDArray[np.int64],
    totals: NDArray[np.int64],
    names: Sequence[str],
    left: float,
) -> None:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_WORST_SHOWN]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    pairs = [pair for pair in pairs if wrong[pair] > 0]
    height = figure.get_size_inches()[1] * DPI
    top = _BELOW / height + 0.5 - len(pairs) * 19 / height
    figure.text(
        left, top + (2 * len(pairs) + 1.3) * 19 / height, "Most frequent confusions", weight="bold"
    )
    for rank, (i, j) in enumerate(pairs):
        y = top + 2 * (len(pairs) - 1 - rank) * 19 / height
        figure.text(left, y + 17 / height, f"{names[i]} → {names[j]}", fontsize=9)
        count = f"{wrong[i, j]:,} of {totals[i]:,} ({wrong[i, j] / totals[i]:.0%})"
        figure.text(left, y, count, fontsize=9, color=MUTED)


def _draw_scales(figure: Figure, norm: PowerNorm, left: float, bottom: float) -> None:
    width, height = figure.get_size_inches() * DPI
    for rank, (colors, label) in enumerate(((_WRONG_COLORS, "wrong"), (_RIGHT_COLORS, "right"))):
        axes = figure.add_axes((left + rank * 20 / width, bottom, 12 / width, 190 / height))
        bar = figure.colorbar(ScalarMappable(norm, colors), cax=axes)
        bar.outline.set_visible(False)
        ticks = [0, 0.02, 0.1, 0.25, 0.5, 1]
        bar.set_ticks(ticks, labels=[f"{tick:.0%}" for tick in ticks] if rank else [""] * 6)
        bar.ax.tick_params(labelsize=8)
        axes.set_title(label, fontsize=8, fontweight="normal", loc="center", rotation=60, pad=6)
