"""Learning curves of a run, from the rows of its log."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from wavevit.pictures.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    RED,
    house_style,
    panel_figure,
    save_figure,
)

Row = dict[str, Any]
_TICK_STEPS = [1, 2, 5, 10]

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


_ACCURACIES = {"top1": "top-1", "top5": "top-5"}
_PART_COLORS = (BLUE, ORANGE, GREEN, RED, "#8158b6", "#00a0ad", "#7a523c")


def draw_curves(
    rows: Sequence[Row],
    path: Path,
    *,
    title: str = "",
    scores: Mapping[str, str] = _ACCURACIES,
    scores_title: str = "Validation accuracy",
) -> None:
    """Loss, its parts if any, scores and learning rate over the steps of a run, epochs on top.

    Args:
        rows: Rows of ``log.jsonl``: ``{"kind": "train", "step", "epoch", "loss", "lr"}``, perhaps
            with parts of the loss called "loss_...", and ``{"kind": "evaluation", "step",
            "epoch", "loss"}`` with the scores, which are fractions. A curve whose numbers are
            absent is left out.
        path: PNG file to write.
        title: Line above the panels.
        scores: Names of scores in the rows, and what to call them; the best of the first one is
            marked.
        scores_title: Line above their panel.

    Raises:
        OSError: The file cannot be written.
    """
    train = [row for row in rows if row.get("kind") == "train"]
    evaluation = [row for row in rows if row.get("kind") == "evaluation"]
    with house_style():
        parts = _parts(train)
        figure = panel_figure(1320 if not parts else 1760, 430)
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold")
        loss, *between, score, rate = figure.subplots(1, 4 if parts else 3)
        _draw_loss(loss, train, evaluation)
        for axes in between:
            _draw_parts(axes, parts)
        _draw_scores(score, evaluation, scores, scores_title)
        _plot(rate, _curve(train, "lr"), color=MUTED)
        rate.set_title("Learning rate")
        rate.set_ylim(bottom=0)
        rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        last_step = max((row["step"] for row in rows if "step" in row), default=1)
        for axes in (loss, *between, score, rate):
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


def _parts(train: Sequence[Row]) -> dict[str, Curve]:
    """Curves of the loss's parts; those of stages, "loss_cls_0" and so on, are added up."""
    sums: list[Row] = []
    for row in train:
        of_row: Row = {"step": row["step"]}
        for name, value in row.items():
            if name.startswith("loss_") and value is not None:
                kind = re.sub(r"_\d+$", "", name.removeprefix("loss_"))
                of_row[kind] = of_row.get(kind, 0.0) + value
        sums.append(of_row)
    names = dict.fromkeys(name for row in sums for name in row if name != "step")
    return {name: _curve(sums, name) for name in names}


def _draw_parts(axes: Axes, parts: Mapping[str, Curve]) -> None:
    axes.set_title("Parts of the training loss")
    for number, (name, (steps, values)) in enumerate(parts.items()):
        window = len(steps) // 40 * 2 + 1
        color = _PART_COLORS[number % len(_PART_COLORS)]
        shown = smoothed(values, window) if window > 1 else values
        _plot(axes, (steps, shown), color=color, label=name.replace("_", " "))
    axes.legend(loc="upper right")


def _draw_scores(
    axes: Axes, evaluation: Sequence[Row], scores: Mapping[str, str], title: str
) -> None:
    axes.set_title(title)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    first, *others = scores.items()
    colors = (ORANGE, GREEN, RED, MUTED)
    for (key, name), color in zip(others, colors, strict=False):
        _plot(axes, _curve(evaluation, key), color=color, label=name, marker="o", alpha=0.55)
    steps, values = _curve(evaluation, first[0])
    _plot(axes, (steps, values), color=BLUE, label=first[1], marker="o")
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
