"""Learning curves of a run, from the rows of its log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from wavevit.pictures.style import BLUE, INK, MUTED, ORANGE, house_style, panel_figure, save_figure

Row = dict[str, Any]
_TICK_STEPS = [1, 2, 5, 10]

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def draw_curves(rows: Sequence[Row], path: Path, *, title: str = "") -> None:
    """Loss, accuracy and learning rate over the steps of a run, epochs on top.

    Args:
        rows: Rows of ``log.jsonl``: ``{"kind": "train", "step", "epoch", "loss", "lr"}`` and
            ``{"kind": "evaluation", "step", "epoch", "loss", "top1", "top5"}``; accuracies are
            fractions. A curve whose numbers are absent is left out.
        path: PNG file to write.
        title: Line above the panels.

    Raises:
        OSError: The file cannot be written.
    """
    train = [row for row in rows if row.get("kind") == "train"]
    evaluation = [row for row in rows if row.get("kind") == "evaluation"]
    with house_style():
        figure = panel_figure(1320, 430)
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold")
        loss, accuracy, rate = figure.subplots(1, 3)
        _draw_loss(loss, train, evaluation)
        _draw_accuracy(accuracy, evaluation)
        _plot(rate, _curve(train, "lr"), color=MUTED)
        rate.set_title("Learning rate")
        rate.set_ylim(bottom=0)
        rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        last_step = max((row["step"] for row in rows if "step" in row), default=1)
        for axes in (loss, accuracy, rate):
            _draw_steps_and_epochs(axes, rows, last_step)
        save_figure(figure, path)


def smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred running mean; at the ends over the part of the window that exists.

    Args:
        values: (N,) numbers.
        window: Number of values to average, odd.

    Returns:
        (N,).
    """
    sums = np.convolve(values, np.ones(window), mode="same")
    return sums / np.convolve(np.ones_like(values), np.ones(window), mode="same")


def _draw_loss(axes: Axes, train: Sequence[Row], evaluation: Sequence[Row]) -> None:
    axes.set_title("Loss")
    steps, values = _curve(train, "loss")
    window = len(steps) // 40 * 2 + 1
    if window > 1 and len(steps) >= window:
        axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=1)
        values = smoothed(values, window)
    _plot(axes, (steps, values), color=BLUE, label="training")
    _plot(axes, _curve(evaluation, "loss"), color=ORANGE, label="validation", marker="o")
    if len(axes.lines):
        axes.legend(loc="upper right")


def _draw_accuracy(axes: Axes, evaluation: Sequence[Row]) -> None:
    axes.set_title("Validation accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    _plot(axes, _curve(evaluation, "top5"), color=ORANGE, label="top-5", marker="o", alpha=0.55)
    steps, values = _curve(evaluation, "top1")
    _plot(axes, (steps, values), color=BLUE, label="top-1", marker="o")
    if len(values) == 0:
        return
    best = int(values.argmax())
    axes.plot(steps[best], values[best], "o", color=BLUE, markersize=9, markeredgecolor=INK)
    axes.annotate(
        f"best {values[best]:.1%}",
        (steps[best], values[best]),
        xytext=(0, -16),
        textcoords="offset points",
        ha="right" if steps[best] > steps[-1] / 2 else "left",
        fontweight="bold",
    )
    axes.legend(loc="lower right")


def _draw_steps_and_epochs(axes: Axes, rows: Sequence[Row], last_step: int) -> None:
    axes.set_xlim(0, max(last_step, 1) * 1.02)
    axes.set_xlabel("steps")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=_TICK_STEPS))
    per_epoch = max(
        (row["step"] / row["epoch"] for row in rows if row.get("epoch") and row.get("step")),
        default=None,
    )
    if per_epoch is None:
        return
    top = axes.secondary_xaxis(
        "top", functions=(lambda s: np.asarray(s) / per_epoch, lambda e: np.asarray(e) * per_epoch)
    )
    top.xaxis.set_major_locator(
        MaxNLocator(5, integer=last_step >= 2 * per_epoch, steps=_TICK_STEPS)
    )
    top.set_xlabel("epochs", fontsize=9)
    top.tick_params(labelsize=9)


def _curve(rows: Sequence[Row], key: str) -> Curve:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    points = [(step, value) for step, value in points if np.isfinite(value)]
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _plot(axes: Axes, curve: Curve, *, marker: str | None = None, **style: Any) -> None:
    steps, values = curve
    if len(steps) == 0:
        return
    # A single point would be an invisible line; a hundred markers would hide theirs.
    shown = "o" if len(steps) == 1 else marker if len(steps) <= 40 else None
    axes.plot(steps, values, marker=shown, markersize=4, linewidth=1.8, **style)
