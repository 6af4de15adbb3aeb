"""Collecting images and objects from files, checking all boxes and outlines at once.

Shape legend: M objects, I images, R rings of polygons.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wavevit.data.detection.annotation_tables import ImageTable, ObjectTable
from wavevit.data.detection.annotations import DetectionAnnotations
from wavevit.data.detection.object_masks import code_to_counts
from wavevit.data.detection.problems import DetectionProblem
from wavevit.data.detection.segment_table import Segment, SegmentTable, SegmentTableBuilder
from wavevit.data.image_files import PathTable
from wavevit.data.shared_array import SharedArray

_TOLERANCE_PIXELS = 2.0
_TOLERANCE_FRACTION = 1e-3
_MIN_POINTS = 3

_FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """What reading the annotations of a split has given."""

    annotations: DetectionAnnotations | None
    """All that is sound; None if there was no reading at all."""
    problems: list[DetectionProblem]
    """All that is not, in the order of the files."""


class AnnotationBuilder:
    """Collects images and objects, and makes annotations of those that are sound.

    Args:
        root: Folder that the images' paths are relative to.
        where: The file and the place in it, given an object's image index and the number that
            `add_object` was given.
        problems: Receives what is wrong.
        clip: Whether boxes and outlines that stick out of the image are clipped, and told as a
            warning; otherwise that is an error, and such objects are left out.
    """

    def __init__(
        self,
        root: Path,
        where: Callable[[int, int], tuple[str, str]],
        problems: list[DetectionProblem],
        *,
        clip: bool = False,
    ) -> None:
        self._root = root
        self._where = where
        self._problems = problems
        self._clip = clip
        self._paths: list[str] = []
        self._maps: list[str] = []
        self._image_ids = array("q")
        self._sizes = array("q")
        self._image_of = array("q")
        self._places = array("q")
        self._boxes = array("d")
        self._labels = array("q")
        self._crowd = array("b")
        self._areas = array("d")
        self._annotation_ids = array("q")
        self._segments = SegmentTableBuilder()

    def add_image(
        self, path: str, image_id: int, size: tuple[int, int], instance_map: str = ""
    ) -> int:
        """Adds an image; returns its index.

        Args:
            path: Posix path, relative to the root or absolute.
            image_id: Its id.
            size: Height and width, pixels.
            instance_map: Path of its picture of object numbers.
        """
        self._paths.append(path)
        self._maps.append(instance_map)
        self._image_ids.append(image_id)
        self._sizes.extend(size)
        return len(self._paths) - 1

    def add_object(
        self,
        image: int,
        place: int,
        box_xywh: Sequence[float],
        label: int,
        annotation_id: int,
        *,
        crowd: bool = False,
        area: float = float("nan"),
        segment: Segment | Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Adds an object.

        Args:
            image: Index of its image.
            place: Where it was found, for `where`.
            box_xywh: Left, top, width and height, pixels.
            label: Of its class.
            annotation_id: Its id.
            crowd: As in `Objects`.
            area: Pixels; NaN to compute it.
            segment: As in `SegmentTableBuilder.append`; checked here but for run-length codes.

        Raises:
            TypeError: If the box or the outline has things that are no numbers. Nothing is added.
        """
        box = array("d", box_xywh)
        self._segments.append(segment)
        self._boxes += box
        self._image_of.append(image)
        self._places.append(place)
        self._labels.append(label)
        self._annotation_ids.append(annotation_id)
        self._crowd.append(crowd)
        self._areas.append(area)

    def build(
        self,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        description: str,
        *,
        with_masks: bool,
    ) -> DetectionAnnotations:
        """The annotations of all that is sound; what is not is told as problems.

        Args:
            class_names: Name of every label.
            category_ids: The file's own id of every label.
            description: One line for the log.
            with_masks: Whether outlines are kept.
        """
        I = len(self._paths)  # noqa: E741 - the legend's letter
        sizes = np.array(self._sizes, np.int64).reshape(-1, 2)
        image_of = np.array(self._image_of, np.int64)
        boxes = np.array(self._boxes, np.float64).reshape(-1, 4)
        segments = self._segments.build()
        sizes_of = sizes[image_of].reshape(-1, 2)
        with np.errstate(over="ignore", invalid="ignore"):  # what they are about to tell
            is_bad = self._check_boxes(boxes, sizes_of)
            is_bad |= self._check_outlines(segments, sizes_of)
        self._find_duplicates(boxes, image_of, ~is_bad)
        rows = np.flatnonzero(~is_bad)
        rows = rows[np.argsort(image_of[rows], kind="stable")]
        is_whole = len(rows) == len(boxes) and bool((np.diff(rows) == 1).all())
        segments = segments if is_whole else segments.take(rows)
        areas = np.array(self._areas, np.float64)[rows]
        objects = ObjectTable(
            boxes_xywh=SharedArray(boxes[rows].ravel()),
            labels=SharedArray(np.array(self._labels, np.int64)[rows]),
            crowd=SharedArray(np.array(self._crowd, np.bool_)[rows]),
            areas=SharedArray(_fill_areas(areas, boxes[rows], segments)),
            annotation_ids=SharedArray(np.array(self._annotation_ids, np.int64)[rows]),
            segments=segments if with_masks and segments.exists.any() else None,
        )
        counts = np.bincount(image_of[rows], minlength=I)
        images = ImageTable(
            root=self._root,
            paths=PathTable(self._paths),
            ids=SharedArray(np.array(self._image_ids, np.int64)),
            sizes=SharedArray(sizes.ravel()),
            instance_maps=PathTable(self._maps) if any(self._maps) else None,
        )
        first_objects = np.cumsum(counts) - counts
        return DetectionAnnotations(
            images, objects, first_objects, counts, class_names, category_ids, description
        )

    def _check_boxes(self, boxes: _FloatArray, sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tells wrong boxes; (M,) whether an object cannot be used for that."""
        is_finite: NDArray[np.bool_] = np.isfinite(boxes.sum(1))
        is_negative = is_finite & (boxes[:, 2:].min(1, initial=0) < 0)
        for row in np.flatnonzero(~is_finite | is_negative).tolist():
            what = "is negative" if is_negative[row] else "is not finite"
            self._tell("box_size", row, f"the box {_shown(boxes[row])} {what} in size or place")
        sound = is_finite & ~is_negative
        left_top = np.where(sound[:, None], boxes[:, :2], 0)
        right_bottom = left_top + np.where(sound[:, None], boxes[:, 2:], 0)
        size = sizes[:, ::-1].astype(np.float64)
        tolerance = np.maximum(_TOLERANCE_PIXELS, _TOLERANCE_FRACTION * size)
        sticks_out = np.maximum(-left_top, right_bottom - size)
        is_empty = sound & (boxes[:, 2:].min(1, initial=1) == 0)
        # A box that only touches the image's edge has nothing of it, unless it is empty anyway.
        is_inside = (left_top <= size) & (right_bottom >= 0)
        has_part = (left_top < size) & (right_bottom > 0)
        is_outside = sound & ~np.where(is_empty[:, None], is_inside, has_part).all(1)
        is_over = sound & ~is_outside & (sticks_out > tolerance).any(1)
        for row in np.flatnonzero(is_outside | is_over).tolist():
            width, height = size[row].astype(int).tolist()
            kind, how = "box_outside", "lies outside of the image"
            if is_over[row]:
                kind = "clipped" if self._clip else kind
                how = f"sticks out of the image by {sticks_out[row].max():,.6g} pixels"
            self._tell(kind, row, f"the box {_shown(boxes[row])} {how}, {width} x {height}")
        for row in np.flatnonzero(is_empty & ~is_outside & ~is_over).tolist():
            self._tell("empty_box", row, f"the box {_shown(boxes[row])} has no area")
        if not self._clip:
            return ~sound | is_outside | is_over
        boxes[is_over, :2] = left_top[is_over].clip(0, None)
        boxes[is_over, 2:] = np.minimum(right_bottom, size)[is_over] - boxes[is_over, :2]
        return ~sound | is_outside

    def _check_outlines(
        self, segments: SegmentTable, sizes: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Tells wrong rings; (M,) whether an object cannot be used for that."""
        is_bad = np.zeros(len(segments), np.bool_)
        starts, values = segments.ring_starts.array, segments.coordinates.array
        if len(starts) == 1:
            return is_bad
        owner = segments.rings_of()
        is_finite: NDArray[np.bool_] = np.isfinite(np.add.reduceat(np.abs(values), starts[:-1]))
        for row in np.unique(owner[~is_finite]).tolist():
            self._tell("mask", row, "the outline has a coordinate that is not finite")
        is_bad[owner[~is_finite]] = True
        points = np.nan_to_num(values).reshape(-1, 2)
        lowest = np.minimum.reduceat(points, starts[:-1] // 2)
        highest = np.maximum.reduceat(points, starts[:-1] // 2)
        size = sizes[owner][:, ::-1].astype(np.float64)
        tolerance = np.maximum(_TOLERANCE_PIXELS, _TOLERANCE_FRACTION * size)
        over = np.maximum(-lowest, highest - size)
        is_over = is_finite & (over > tolerance).any(1)
        most = np.zeros(len(segments))
        np.maximum.at(most, owner[is_over], over[is_over].max(1))
        for row in np.flatnonzero(most).tolist():
            height, width = sizes[row].tolist()
            self._tell(
                "clipped" if self._clip else "mask_outside",
                row,
                f"the outline sticks out of the image by {most[row]:,.6g} pixels, "
                f"{width} x {height}",
            )
        if not self._clip:
            return is_bad | (most > 0)
        lengths = np.diff(starts) // 2 * is_over
        points = values.reshape(-1, 2)
        is_over_point = np.repeat(is_over, np.diff(starts) // 2)
        points[is_over_point] = points[is_over_point].clip(0, np.repeat(size, lengths, axis=0))
        return is_bad

    def _find_duplicates(
        self, boxes: _FloatArray, image_of: NDArray[np.int64], usable: NDArray[np.bool_]
    ) -> None:
        labels = np.array(self._labels, np.int64)
        rows = np.flatnonzero(usable)
        keys = (*boxes[rows].T, labels[rows], image_of[rows])
        order = rows[np.lexsort(keys)]
        same = (boxes[order[1:]] == boxes[order[:-1]]).all(1)
        same &= labels[order[1:]] == labels[order[:-1]]
        same &= image_of[order[1:]] == image_of[order[:-1]]
        for position in np.flatnonzero(same).tolist():
            row, twin = int(order[position + 1]), int(order[position])
            first = self._where(int(image_of[twin]), self._places[twin])[1]
            self._tell("duplicate_box", row, f"box and class are those of {first}")

    def _tell(self, kind: str, row: int, detail: str) -> None:
        file, place = self._where(self._image_of[row], self._places[row])
        self._problems.append(DetectionProblem(kind, file, place, detail))


def rings_with_area(
    rings: Sequence[Sequence[float]],
) -> tuple[list[Sequence[float]], int]:
    """The rings of three points or more, and how many others there were.

    Args:
        rings: Each x, y, x, y, ...

    Raises:
        ValueError: If a ring has an odd number of coordinates.
        TypeError: If a ring is no list.
    """
    if any(len(ring) % 2 for ring in rings):
        raise ValueError("an outline with an odd number of coordinates")
    kept = [ring for ring in rings if len(ring) >= 2 * _MIN_POINTS]
    return kept, len(rings) - len(kept)


def _fill_areas(areas: _FloatArray, boxes: _FloatArray, segments: SegmentTable) -> _FloatArray:
    """Areas with those computed that are NaN: of the outline, else of the box."""
    is_unknown = np.isnan(areas)
    if not is_unknown.any():
        return areas
    outlines = segments.polygon_areas()
    filled = np.where(outlines > 0, outlines, boxes[:, 2] * boxes[:, 3])
    for row in np.flatnonzero(is_unknown & (np.diff(segments.code_starts.array) > 0)).tolist():
        code = segments[row]
        assert isinstance(code, bytes)
        filled[row] = code_to_counts(code)[1::2].sum()
    return np.where(is_unknown, filled, areas)


def _shown(box_xywh: _FloatArray) -> str:
    x, y, w, h = (f"{value:.6g}" for value in box_xywh.tolist())
    return f"{w} x {h} at ({x}, {y})"
