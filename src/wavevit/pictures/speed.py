"""Throughput of networks: against published accuracy, and against image size."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from wavevit.pictures.direct_labels import (
    LINE_PIXELS,
    Label,
    fix_places,
    label_ends,
    label_points,
)
from wavevit.pictures.style import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    RED,
    fitting,
    house_style,
    panel_figure,
    save_figure,
)

Row = Mapping[str, Any]

# Top-1 accuracy on ImageNet-1K's validation images, in percent, by image size: trained on
# ImageNet-1K alone, as their papers give it. With its class-attention head Wave-ViT was published
# with token labels only (arXiv 2207.04978, table 1).
_WAVE_VIT = {
    "wavevit_s": {224: 83.9, 384: 85.0},
    "wavevit_b": {224: 84.8, 384: 85.6},
    "wavevit_l": {224: 85.5, 384: 86.3},
}
PUBLISHED_TOP1: Mapping[str, Mapping[int, float]] = {
    **_WAVE_VIT,
    **{f"plain_{name}": accuracy for name, accuracy in _WAVE_VIT.items()},
    # PVT v2: arXiv 2106.13797, table 2.
    "pvt_v2_b0": {224: 70.5},
    "pvt_v2_b1": {224: 78.7},
    "pvt_v2_b2": {224: 82.0},
    "pvt_v2_b3": {224: 83.2},
    "pvt_v2_b4": {224: 83.6},
    "pvt_v2_b5": {224: 83.8},
    # Swin: arXiv 2103.14030, table 1.
    "swin_tiny_patch4_window7_224": {224: 81.3},
    "swin_small_patch4_window7_224": {224: 83.0},
    "swin_base_patch4_window7_224": {224: 83.5},
    # ConvNeXt: arXiv 2201.03545, table 1.
    "convnext_tiny": {224: 82.1},
    "convnext_small": {224: 83.1},
    "convnext_base": {224: 83.8},
}
_WITH_TOKEN_LABELS = frozenset(_WAVE_VIT) | {f"plain_{name}" for name in _WAVE_VIT}

_COLORS = {"wavevit": BLUE, "plain": MUTED, "pvt": ORANGE, "swin": GREEN, "convnext": RED}
_MORE_COLORS = ("#8158b6", "#00a0ad", "#7a523c", "#b5477f", "#6b7a1f")
_MARKERS = {"eager": "o", "compiled": "s", "cuda-graphs": "^", "openvino": "D"}

_WIDTH, _HEIGHT = 1380, 560  # pixels
_LABEL_WIDTH = 300  # pixels

# What makes rows differ, and a label where they do. The best batch size stands for all.
_SETTINGS = ("mode", "runtime", "precision", "device")


@dataclass(frozen=True)
class _Point:
    size: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class _Series:
    """A network in one setting: its label, and a point for each image size in ascending order."""

    model: str
    label: str
    color: str
    marker: str
    points: tuple[_Point, ...]


@dataclass(frozen=True)
class Cost:
    """How a network's time grows with the size of its images.

    Attributes:
        name: Of the network.
        sizes: Pixels along an edge.
        seconds: Of an image of each size: 20th percentile, median, 80th percentile.
        fitted: Seconds of an image of any size.
        crossing: Size from which on attention between all pairs of pixels takes the greater part
            of the time; infinity if it never does.
    """

    name: str
    sizes: Sequence[int]
    seconds: Sequence[tuple[float, float, float]]
    fitted: Callable[[float], float]
    crossing: float


def draw_speed(rows: Sequence[Row], path: Path, *, title: str = "") -> None:
    """Images per second against published top-1 accuracy, and against image size.

    Of several batch sizes the fastest counts. Networks without a published accuracy at a size are
    left out on the left, which is said there.

    Args:
        rows: Of a benchmark: ``model``, ``image_size`` (pixels) and ``images_per_s``; where there
            are any, ``images_per_s_p20`` and ``images_per_s_p80`` give error bars, and ``mode``,
            ``runtime``, ``precision`` and ``device`` tell rows apart. Rows without a throughput
            are left out.
        path: PNG file to write.
        title: Line above the panels; what all rows share if empty.

    Raises:
        ValueError: No row has a throughput.
        OSError: The file cannot be written.
    """
    rows = [row for row in rows if row.get("images_per_s") not in (None, "")]
    if not rows:
        raise ValueError("expected rows with images_per_s, got none: nothing was measured")
    series = _series(rows)
    with house_style():
        figure = panel_figure(_WIDTH, max(_HEIGHT, 200 + LINE_PIXELS * len(series)))
        figure.suptitle(
            fitting(title or _shared(rows), 12, _WIDTH - 60),
            x=0.012,
            ha="left",
            fontsize=12,
            fontweight="bold",
        )
        left, right = figure.subplots(1, 2)
        labels = _draw_accuracy(left, series)
        _draw_sizes(right, series)
        ends = [_end(s.points[-1].size, s.points[-1].rate, s.label, s.color) for s in series]
        fix_places(figure)
        label_points(left, labels)
        label_ends(right, ends)
        save_figure(figure, path)


def draw_scaling(costs: Sequence[Cost], path: Path, *, title: str = "") -> None:
    """Time per image against its size, measured and fitted, with the sizes where attention leads.

    Args:
        costs: One for each network.
        path: PNG file to write.
        title: Line above the panel.

    Raises:
        ValueError: There are no costs.
        OSError: The file cannot be written.
    """
    if not costs:
        raise ValueError("expected the cost of one network or more, got none")
    with house_style():
        figure = panel_figure(960, _HEIGHT)
        figure.suptitle(fitting(title, 12, 900), x=0.012, ha="left", fontsize=12, fontweight="bold")
        axes = figure.subplots()
        colors = _colors(cost.name for cost in costs)
        ends = [_draw_cost(axes, cost, colors[cost.name]) for cost in costs]
        axes.set(xlabel="image size, pixels", ylabel="milliseconds per image")
        axes.set_title(
            "Time per image, its fit, and where all-pairs attention takes half of it (ring)"
        )
        _log_axes(axes, sorted({size for cost in costs for size in cost.sizes}))
        fix_places(figure)
        label_ends(axes, ends)
        save_figure(figure, path)


def _series(rows: Sequence[Row]) -> list[_Series]:
    differing = [key for key in _SETTINGS if len({str(row.get(key, "")) for row in rows}) > 1]
    best: dict[tuple[str, ...], dict[int, _Point]] = {}
    runtimes: dict[tuple[str, ...], str] = {}
    for row in rows:
        key = (str(row["model"]), *(str(row.get(name, "")) for name in differing))
        size, rate = int(row["image_size"]), float(row["images_per_s"])
        points = best.setdefault(key, {})
        runtimes[key] = str(row.get("runtime", ""))
        if size not in points or points[size].rate < rate:
            low, high = (float(row.get(f"images_per_s_{p}") or rate) for p in ("p20", "p80"))
            points[size] = _Point(size, rate, min(low, rate), max(high, rate))
    colors = _colors(key[0] for key in best)
    return [
        _Series(
            key[0],
            fitting(" ".join(part for part in key if part), 11, _LABEL_WIDTH),
            colors[key[0]],
            _MARKERS.get(runtimes[key], "o"),
            tuple(points[size] for size in sorted(points)),
        )
        for key, points in best.items()
    ]


def _colors(models: Iterable[str]) -> dict[str, str]:
    """A colour for each family: what stands before the first underscore."""
    colors: dict[str, str] = {}
    families = dict(_COLORS)
    for model in models:
        family = model.split("_")[0]
        if family not in families:
            families[family] = _MORE_COLORS[(len(families) - len(_COLORS)) % len(_MORE_COLORS)]
        colors[model] = families[family]
    return colors


def _shared(rows: Sequence[Row]) -> str:
    """What all rows have in common, as a title."""
    parts = []
    for key in ("mode", "device", "precision", "runtime", "batch_size"):
        values = {str(row.get(key, "")) for row in rows}
        if len(values) == 1 and (value := values.pop()):
            parts.append(f"batch {value}" if key == "batch_size" else value)
    return ", ".join(["Throughput", *parts])


def _draw_accuracy(axes: Axes, series: Sequence[_Series]) -> list[Label]:
    known = [
        (point, each, top1)
        for point, each in _fastest(series)
        if (top1 := _published(each.model).get(point.size)) is not None
    ]
    axes.set(xlabel="images per second", ylabel="published ImageNet-1K top-1, %")
    _say_what_is_left_out(axes, series, {(each.model, point.size) for point, each, _ in known})
    if not known:
        axes.set_title("Accuracy")
        axes.text(
            0.5, 0.5, "nothing to compare", ha="center", color=MUTED, transform=axes.transAxes
        )
        axes.set(xticks=[], yticks=[])
        return []
    remarks = ["the fastest way of each"] if len(series) > len({s.model for s in series}) else []
    if any(each.model.split(".")[0] in _WITH_TOKEN_LABELS for _, each, _ in known):
        remarks.append("Wave-ViT with token labels")
    axes.set_title("Accuracy" + (f" ({', '.join(remarks)})" if remarks else ""))
    with_sizes = len({point.size for point, _, _ in known}) > 1
    labels = []
    for point, each, top1 in known:
        spread = [[point.rate - point.low], [point.high - point.rate]]
        axes.errorbar(point.rate, top1, xerr=spread, fmt=each.marker, color=each.color, capsize=2)
        text = each.label + (f" {point.size} px" if with_sizes else "")
        labels.append(Label(point.rate, top1, text, each.color, point.low, point.high))
    axes.set_xscale("log")
    _number_ticks(axes, "x")
    _widen(axes, [label.x for label in labels], [label.y for label in labels])
    return labels


def _fastest(series: Sequence[_Series]) -> list[tuple[_Point, _Series]]:
    """For each network and size the setting with the highest throughput."""
    best: dict[tuple[str, int], tuple[_Point, _Series]] = {}
    for each in series:
        for point in each.points:
            key = (each.model, point.size)
            if key not in best or best[key][0].rate < point.rate:
                best[key] = (point, each)
    return list(best.values())


def _published(model: str) -> Mapping[int, float]:
    return PUBLISHED_TOP1.get(model.split(".")[0], {})


def _say_what_is_left_out(
    axes: Axes, series: Sequence[_Series], known: Collection[tuple[str, int]]
) -> None:
    models = dict.fromkeys(each.model for each in series)
    shown = {model for model, _ in known}
    missing = ", ".join(model for model in models if model not in shown)
    pairs = {(each.model, point.size) for each in series for point in each.points}
    if shown and any(model in shown for model, _ in pairs - set(known)):
        missing += ("; " if missing else "") + "the others at sizes not shown"
    if missing:
        text = fitting(f"no published accuracy: {missing}", 12, _WIDTH // 2 - 110)
        axes.text(0.0, -0.16, text, color=MUTED, fontsize=9, transform=axes.transAxes)


def _widen(axes: Axes, rates: Sequence[float], accuracies: Sequence[float]) -> None:
    """Room for labels around points, which may all lie at one place."""
    spread = max(max(rates) / min(rates), 1.6)
    axes.set_xlim(min(rates) / spread**0.35, max(rates) * spread**0.35)
    margin = max(0.18 * (max(accuracies) - min(accuracies)), 0.5)
    axes.set_ylim(min(accuracies) - margin, max(accuracies) + margin)


def _draw_sizes(axes: Axes, series: Sequence[_Series]) -> None:
    for each in series:
        rates = np.array([(p.rate, p.rate - p.low, p.high - p.rate) for p in each.points])
        axes.errorbar(
            [point.size for point in each.points],
            rates[:, 0],
            yerr=rates[:, 1:].T,
            color=each.color,
            marker=each.marker,
            markersize=5,
            linewidth=1.6,
            capsize=2,
        )
    axes.set(xlabel="image size, pixels", ylabel="images per second")
    axes.set_title("Image size")
    _log_axes(axes, sorted({point.size for each in series for point in each.points}))


def _draw_cost(axes: Axes, cost: Cost, color: str) -> Label:
    milliseconds = 1e3 * np.array(cost.seconds)
    low, median, high = milliseconds.T
    spread = np.stack([median - low, high - median])
    axes.errorbar(cost.sizes, median, yerr=spread, fmt="o", color=color, markersize=5, capsize=2)
    first, last = min(cost.sizes), max(cost.sizes)
    sizes = np.geomspace(first, last, 100)
    axes.plot(sizes, [1e3 * cost.fitted(size) for size in sizes], color=color, linewidth=1.4)
    if first <= cost.crossing <= last:
        at = 1e3 * cost.fitted(cost.crossing)
        axes.plot(cost.crossing, at, "o", color=color, markersize=13, fillstyle="none")
        text = f"{cost.name}, half from {cost.crossing:.0f} px"
    else:
        text = cost.name
    return _end(last, 1e3 * cost.fitted(last), fitting(text, 11, _LABEL_WIDTH), color)


def _end(x: float, y: float, text: str, color: str) -> Label:
    return Label(x, y, text, color, low=x, high=x)


def _log_axes(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    # Of sizes that lie close together, numbers would touch.
    shown = [size for i, size in enumerate(sizes) if i == 0 or size / sizes[i - 1] > 1.12]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(min(sizes) / 1.1, max(sizes) * 1.02)
    _number_ticks(axes, "y")
    bottom, top = axes.get_ylim()
    if top / bottom < 4:  # a flat panel would make noise look large, and have one tick
        middle = math.sqrt(bottom * top)
        axes.set_ylim(middle / 2, middle * 2)


def _number_ticks(axes: Axes, which: str) -> None:
    """Plain numbers at 1, 2 and 5 of each power of ten, on a span of at least two of them."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
