"""Precision over recall.

Shape legend: T IoU thresholds, R recall levels, K classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from wavevit.pictures.detection import class_color
from wavevit.pictures.style import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    house_style,
    one_line,
    panel_figure,
    save_figure,
)

_SHOWN_IOUS = ((0.5, GREEN), (0.75, BLUE), (0.9, ORANGE))
_MOST_CLASSES = 10
_ROW_HEIGHT = 430  # pixels


def draw_precision_recall(
    precision: Mapping[str, NDArray[np.float64]],
    iou_thresholds: Sequence[float] | NDArray[np.float64],
    class_names: Sequence[str],
    class_counts: NDArray[np.int64],
    path: Path,
    *,
    title: str = "",
) -> None:
    """A row of two panels each: the mean over classes at three IoUs, and each class at IoU 0.5.

    Args:
        precision: By what was compared, such as "boxes" and "masks": (T, R, K) best precision at
            each of R evenly spaced recalls from 0 to 1 or a higher one; NaN for classes without
            objects.
        iou_thresholds: T thresholds, 0.5 among them.
        class_names: K names.
        class_counts: (K,) objects of each class; the ten most frequent classes are drawn.
        path: PNG file to write.
        title: Line above the panels.

    Raises:
        ValueError: Nothing to draw, or other shapes.
        OSError: The file cannot be written.
    """
    T, K = len(iou_thresholds), len(class_names)
    for what, values in precision.items():
        if values.ndim != 3 or (values.shape[0], values.shape[2]) != (T, K):
            raise ValueError(
                f"{what}: expected precision of {T} thresholds and {K} classes, got {values.shape}"
            )
    if not precision or len(class_counts) != K:
        raise ValueError("expected precision of boxes or masks, and a count for each class")
    with house_style():
        figure = panel_figure(1180, 40 + _ROW_HEIGHT * len(precision))
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold")
        panels = figure.subplots(len(precision), 2, squeeze=False)
        for row, (what, values) in zip(panels, precision.items(), strict=True):
            _draw_thresholds(row[0], what, values, np.asarray(iou_thresholds))
            at_half = values[int(np.abs(np.asarray(iou_thresholds) - 0.5).argmin())]
            _draw_classes(row[1], what, at_half, class_names, class_counts)
        save_figure(figure, path)


def _draw_thresholds(
    axes: Axes, what: str, precision: NDArray[np.float64], thresholds: NDArray[np.float64]
) -> None:
    present = ~np.isnan(precision).any(axis=(0, 1))
    mean = precision[:, :, present].mean(axis=2) if present.any() else None
    for iou, color in _SHOWN_IOUS:
        place = int(np.abs(thresholds - iou).argmin())
        if mean is not None and abs(thresholds[place] - iou) < 1e-6:
            _draw_curve(axes, mean[place], f"IoU {iou:.2f}: AP {mean[place].mean():.1%}", color)
    overall = "no objects" if mean is None else f"AP {mean.mean():.1%}"
    _finish(axes, f"All classes, {what} ({overall})")


def _draw_classes(
    axes: Axes,
    what: str,
    precision: NDArray[np.float64],
    class_names: Sequence[str],
    counts: NDArray[np.int64],
) -> None:
    present = np.flatnonzero(~np.isnan(precision).any(axis=0))
    shown = present[np.argsort(-counts[present], kind="stable")][:_MOST_CLASSES]
    for label in shown:
        values = precision[:, label]
        name = f"{one_line(class_names[label], 24)}: {values.mean():.1%} (n={counts[label]:,})"
        color = "#{:02x}{:02x}{:02x}".format(*class_color(int(label)))
        _draw_curve(axes, values, name, color)
    more = len(present) - len(shown)
    rest = f", the {len(shown)} most frequent of {len(present)}" if more else ""
    _finish(axes, f"Each class, {what} at IoU 0.50{rest}")


def _draw_curve(axes: Axes, values: NDArray[np.float64], name: str, color: str) -> None:
    recall = np.linspace(0, 1, len(values))
    axes.plot(recall, values, color=color, label=name, linewidth=1.8, drawstyle="steps-pre")


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    if len(axes.lines):
        # Beside the panel, where it hides no curve.
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    else:
        axes.text(0.5, 0.5, "nothing to compare", ha="center", color=MUTED)
