"""Labels written beside what they name, moved so that none touches another."""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from wavevit.pictures.style import DPI, INK, font_for

LINE_PIXELS = 15
"""Distance of labels under each other."""

_SIZE = 8.5  # points
_COLUMN_GAP = 24  # pixels from the end of the longest line to the labels


class Label(NamedTuple):
    """A text and what it names, in the axes' data."""

    x: float
    y: float
    text: str
    color: str
    """Of the line between them."""
    low: float
    """Left end of the point's error bar."""
    high: float
    """Right end of the point's error bar."""


def fix_places(figure: Figure) -> None:
    """Lays a figure out for good, so that labels can be put by pixels.

    Args:
        figure: All but its labels is drawn.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Writes labels to the right of the ends of lines, moved apart where they would touch.

    Args:
        axes: Logarithmic along x, of a figure after `fix_places`; widened to the right.
        labels: One or more.
    """
    frame = axes.get_window_extent()
    longest = max(font_for(each.text, 1).getlength(each.text) for each in labels)
    longest = longest * _SIZE * DPI / 72
    share = min((longest + _COLUMN_GAP + 8) / frame.width, 0.7)
    low, high = axes.get_xlim()
    axes.set_xlim(low, low * (high / low) ** (1 / (1 - share)))
    ends = [axes.transData.transform((each.x, each.y)) for each in labels]
    column = max(end[0] for end in ends) + _COLUMN_GAP
    order = sorted(range(len(labels)), key=lambda i: -ends[i][1])
    heights = _apart([ends[i][1] for i in order], frame)
    for i, height in zip(order, heights, strict=True):
        _write(axes, labels[i], (column - ends[i][0], height - ends[i][1]), (0, 0.5))


def label_points(axes: Axes, labels: Sequence[Label]) -> None:
    """Writes labels beside points, at the nearest place where they cover nothing else.

    Args:
        axes: Of a figure after `fix_places`.
        labels: At any number of points.
    """
    frame = axes.get_window_extent()
    bars = [
        Bbox(axes.transData.transform([(each.low, each.y), (each.high, each.y)])).padded(5)
        for each in labels
    ]
    taken = list(bars)
    for label, bar in zip(labels, bars, strict=True):
        x, y = axes.transData.transform((label.x, label.y))
        note = _write(axes, label, (0, 0), None)
        size = Text.get_window_extent(note)
        note.remove()
        box, is_near = _free_place(bar, size.width, size.height, frame, taken)
        offset = (box.x0 - x, (box.y0 + box.y1) / 2 - y)
        side = (0.0, 0.5) if box.x0 > x else (1.0, 0.5) if box.x1 < x else None
        _write(axes, label, offset, None if is_near else side or (0.5, float(box.y1 < y)))
        taken.append(box)


def _write(
    axes: Axes, label: Label, offset: tuple[float, float], attached: tuple[float, float] | None
) -> Text:
    """Writes a label with its left edge's middle at an offset, with a line from there if any."""
    line: dict[str, Any] = {"arrowstyle": "-", "color": label.color, "lw": 0.7, "shrinkB": 4}
    return axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=offset,
        textcoords="offset pixels",
        va="center",
        fontsize=_SIZE,
        color=INK,
        annotation_clip=False,
        arrowprops=None if attached is None else line | {"shrinkA": 0, "relpos": attached},
    )


def _apart(heights: Sequence[float], frame: Bbox) -> list[float]:
    """Descending heights at least a line apart and inside the frame, near where they were."""
    placed: list[float] = []
    ceiling = frame.y1 - LINE_PIXELS / 2
    for height in heights:
        placed.append(min(height, ceiling))
        ceiling = placed[-1] - LINE_PIXELS
    floor = frame.y0 + LINE_PIXELS / 2
    for i in reversed(range(len(placed))):
        placed[i] = max(placed[i], floor)
        floor = placed[i] + LINE_PIXELS
    return placed


def _free_place(
    bar: Bbox, width: float, height: float, frame: Bbox, taken: Sequence[Bbox]
) -> tuple[Bbox, bool]:
    """The nearest free place for a label, and whether it needs no line to what it names."""
    beside, before = bar.x1 + 3, bar.x0 - 3 - width
    x, y = (bar.x0 + bar.x1) / 2, (bar.y0 + bar.y1) / 2
    above = x - width / 2
    near = [(beside, y), (before, y), (above, y + 13), (above, y - 13)]
    far = [
        (left, y + side * 8.0 * step)
        for step, side, left in product(range(2, 40), (1, -1), (beside, before, above))
    ]
    for number, (left, middle) in enumerate((*near, *far)):
        box = Bbox.from_bounds(left, middle - height / 2, width, height)
        is_inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
        is_inside = is_inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if is_inside and not any(box.padded(1).overlaps(other) for other in taken):
            return box, number < len(near)
    return Bbox.from_bounds(beside, y - height / 2, width, height), True  # a crowd beyond help
