"""Tiles cover the picture, and what they show twice or in parts becomes what is there."""

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wavevit.detection.inference import FoundObjects
from wavevit.detection.object_mask import ObjectMask
from wavevit.detection.tiling import TiledPredictor, Window, merge_tiles, tile_windows


def coordinates(height: int, width: int) -> Tensor:
    """A picture whose last two channels say which pixel it is: row and column."""
    picture = torch.zeros(3, height, width)
    picture[1] = torch.arange(height)[:, None]
    picture[2] = torch.arange(width)
    return picture


class PerfectDetector:
    """Sees all objects of a picture, and of those at its border the part inside.

    Args:
        size: H and W of the picture.
        boxes: ``(N, 4)`` xyxy.
        labels: N labels.
        least: Smallest visible share of an object that it recognises.
    """

    def __init__(
        self,
        size: tuple[int, int],
        boxes: list[list[float]],
        labels: list[int] | None = None,
        least: float = 0.05,
    ) -> None:
        self.size = size
        self.boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        self.labels = torch.tensor(labels or [0] * len(boxes))
        self.least = least
        self.batches: list[int] = []

    def __call__(self, images: Sequence[Tensor]) -> list[FoundObjects]:
        self.batches.append(len(images))
        return [self.look(image) for image in images]

    def look(self, image: Tensor) -> FoundObjects:
        H, W = image.shape[1:]
        top, left = float(image[1, 0, 0]), float(image[2, 0, 0])
        inside = self.boxes - torch.tensor([left, top, left, top])
        seen = torch.minimum(inside.clamp(min=0), torch.tensor([W, H, W, H]).float())
        share = area(seen) / area(inside)
        chosen = share > self.least
        masks = tuple(ellipse(box, (H, W)) for box in inside[chosen].tolist())
        # What is cut looks a little less certain, as it would to a network.
        scores = 0.5 + 0.4 * share[chosen]
        return FoundObjects((H, W), seen[chosen], self.labels[chosen], scores, masks)


def area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)


def ellipse(box: Sequence[float], size: tuple[int, int]) -> ObjectMask:
    """The ellipse in a box, as far as it is in the picture."""
    x1, y1, x2, y2 = box
    first_row, first_column = max(int(y1), 0), max(int(x1), 0)
    rows, columns = np.ogrid[
        first_row : min(int(y2), size[0]), first_column : min(int(x2), size[1])
    ]
    y = (rows + 0.5 - (y1 + y2) / 2) / (y2 - y1)
    x = (columns + 0.5 - (x1 + x2) / 2) / (x2 - x1)
    return ObjectMask.of(y**2 + x**2 <= 0.25, first_row, first_column)


def assert_found(found: FoundObjects, detector: PerfectDetector) -> None:
    """Each object once: box, class and every pixel of its mask."""
    assert found.size == detector.size
    assert len(found) == len(detector.boxes)
    order = [
        int((found.boxes_xyxy - box).abs().amax(dim=1).add(100 * (found.labels != label)).argmin())
        for box, label in zip(detector.boxes, detector.labels, strict=True)
    ]
    assert len(set(order)) == len(order)
    torch.testing.assert_close(found.boxes_xyxy[order], detector.boxes)
    assert torch.equal(found.labels[order], detector.labels)
    assert found.masks is not None
    for i, box in zip(order, detector.boxes.tolist(), strict=True):
        assert found.masks[i] == ellipse(box, detector.size)
    assert (found.scores.diff() <= 0).all()


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("size", [(100, 64), (64, 65), (500, 777), (130, 20)])
def test_tiles_cover_every_pixel_and_overlap_by_at_least_the_share(
    size: tuple[int, int], overlap: float
) -> None:
    windows = tile_windows(size, 64, overlap)
    covered = np.zeros(size, int)
    for y, x, h, w in windows:
        assert y + h <= size[0]
        assert x + w <= size[1]
        assert (h, w) == (min(64, size[0]), min(64, size[1]))
        covered[y : y + h, x : x + w] += 1
    assert covered.min() == 1
    for axis, length in enumerate(size):
        starts = sorted({window[axis] for window in windows})
        step = 64 - int(np.ceil(64 * overlap)) if overlap < 0.9 else 6
        assert all(after - before <= step for before, after in itertools.pairwise(starts))
        # One tile fewer would not do.
        assert length <= 64 or (len(starts) - 2) * step + 64 < length


def test_objects_up_to_the_overlap_are_found_as_in_one_piece() -> None:
    rng = np.random.default_rng(0)
    size, cells = (700, 900), [(y, x) for y in range(0, 660, 60) for x in range(0, 840, 60)]
    boxes = []
    for y, x in cells:
        h, w = rng.integers(8, 50, 2).tolist()
        boxes.append([float(x), float(y), float(x + w), float(y + h)])
    detector = PerfectDetector(size, boxes, rng.integers(0, 3, len(boxes)).tolist())
    tiled = TiledPredictor(detector, tile=200, overlap=0.25, batch_size=4, with_whole=False)
    assert_found(tiled(coordinates(*size)), detector)
    assert max(detector.batches) == 4


@pytest.mark.parametrize("with_whole", [False, True])
def test_objects_over_many_tiles_are_put_together(with_whole: bool) -> None:
    boxes = [
        [20.0, 30, 880, 90],  # long and flat, over a whole row of tiles
        [100.0, 120, 160, 690],
        [300.0, 200, 700, 600],  # some tiles see nothing but its inside
        [720.0, 480, 760, 520],
    ]
    detector = PerfectDetector((700, 900), boxes, [0, 1, 0, 0], least=0)
    tiled = TiledPredictor(detector, tile=200, overlap=0.25, with_whole=with_whole)
    assert_found(tiled(coordinates(700, 900)), detector)


def test_neighbours_of_one_class_and_objects_within_others_stay_apart() -> None:
    cars = [[10.0 + 60 * i, 150, 60 + 60 * i, 180] for i in range(13)]  # ten pixels apart
    boxes = [*cars, [300.0, 20, 800, 400], [400.0, 60, 440, 100]]
    labels = [0] * len(cars) + [1, 2]
    detector = PerfectDetector((420, 820), boxes, labels)
    tiled = TiledPredictor(detector, tile=256, overlap=0.25)
    assert_found(tiled(coordinates(420, 820)), detector)


def test_what_goes_on_where_the_other_ends_is_another_object() -> None:
    windows = [Window(0, left, 100, 100) for left in (0, 60, 120)]

    def merged(end: float) -> list[list[float]]:
        boxes = [[], [[60.0, 10, end, 40]], [[120.0, 10, 200, 40]]]
        parts = [
            FoundObjects(
                (100, 220),
                torch.tensor(rows).view(-1, 4),
                torch.zeros(len(rows)).long(),
                torch.full((len(rows),), 0.9),
            )
            for rows in boxes
        ]
        return sorted(merge_tiles(parts, windows).boxes_xyxy.tolist())

    # Both tiles see most of [120, 160] covered; only a box that is cut there can go on.
    assert merged(160) == [[60, 10, 200, 40]]
    assert merged(145) == [[60, 10, 145, 40], [120, 10, 200, 40]]


@pytest.mark.parametrize(
    ("with_whole", "width", "times"), [(None, 512, 1), (None, 513, 0), (True, 513, 1)]
)
def test_the_whole_is_looked_at_where_it_is_hardly_shrunk(
    with_whole: bool | None, width: int, times: int
) -> None:
    looked_at: list[tuple[int, ...]] = []

    def look(images: Sequence[Tensor]) -> list[FoundObjects]:
        looked_at.extend(tuple(image.shape[1:]) for image in images)
        return PerfectDetector((300, width), [])(images)

    TiledPredictor(look, tile=256, with_whole=with_whole)(coordinates(300, width))
    assert looked_at.count((300, width)) == times


def test_a_part_goes_where_the_whole_is_seen_however_certain_the_part() -> None:
    windows = [Window(0, 0, 100, 100), Window(0, 60, 100, 100)]
    left = FoundObjects(
        (100, 160), torch.tensor([[70.0, 10, 100, 40]]), torch.tensor([1]), torch.tensor([0.95])
    )

    def merged(score: float, label: int) -> list[float]:
        right = FoundObjects(
            (100, 160),
            torch.tensor([[70.0, 10, 112, 40]]),
            torch.tensor([label]),
            torch.tensor([score]),
        )
        return merge_tiles([left, right], windows).boxes_xyxy[:, 2].tolist()

    assert merged(0.6, label=1) == [112]
    assert merged(0.6, label=2) == [100, 112]
    # Something that the other tile hardly believes in takes nothing away.
    assert 100 in merged(0.1, label=1)


def test_a_picture_of_one_tile_is_left_to_the_detector() -> None:
    detector = PerfectDetector((60, 64), [[5.0, 6, 20, 30]])
    assert_found(TiledPredictor(detector, tile=64)(coordinates(60, 64)), detector)
    assert detector.batches == [1]


@pytest.mark.parametrize("with_masks", [False, True])
def test_a_wide_picture_with_few_or_no_objects(with_masks: bool) -> None:
    for boxes in ([], [[9_900.0, 300, 9_990, 390]]):
        detector = PerfectDetector((400, 10_000), boxes)

        def look(images: Sequence[Tensor], detector: PerfectDetector = detector) -> list[Any]:
            found = detector(images)
            return found if with_masks else [replace(each, masks=None) for each in found]

        found = TiledPredictor(look, tile=300)(coordinates(400, 10_000))
        assert len(found) == len(boxes)
        assert (found.masks is not None) == with_masks
        torch.testing.assert_close(found.boxes_xyxy, detector.boxes)


def test_no_tile_is_kept_longer_than_its_batch() -> None:
    tiles: list[weakref.ref[Tensor]] = []

    def look(images: Sequence[Tensor]) -> list[FoundObjects]:
        assert not any(tile() is not None for tile in tiles)
        tiles.extend(weakref.ref(image) for image in images)
        return PerfectDetector((300, 300), [])(images)

    TiledPredictor(look, tile=64, batch_size=3, with_whole=False)(coordinates(300, 300))
    assert len(tiles) == 36


def test_what_is_not_finite_in_one_tile_is_not_finite() -> None:
    def look(images: Sequence[Tensor]) -> list[FoundObjects]:
        empty = torch.zeros(0)
        return [
            FoundObjects((64, 64), empty.view(0, 4), empty.long(), empty, is_finite=i[2, 0, 0] > 0)
            for i in images
        ]

    assert not TiledPredictor(look, tile=64)(coordinates(64, 100)).is_finite


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 16}, "at least 32 pixels"),
        ({"tile": 64, "batch_size": 0}, "a batch of at least 1"),
        ({"tile": 64, "overlap": 0.95}, r"overlap in \[0, 0.9\]"),
        ({"tile": 64, "nms_threshold": 0.0}, "NMS threshold"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TiledPredictor(lambda images: [], **settings)
