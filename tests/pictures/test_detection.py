"""Frames, names and masks are where they belong, and legible on any background."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from wavevit.pictures.curves import draw_curves
from wavevit.pictures.detection import DrawnObjects, class_color, draw_objects
from wavevit.pictures.detection_grids import (
    DetectionExample,
    draw_detection_predictions,
    draw_detection_samples,
)
from wavevit.pictures.precision_recall import draw_precision_recall
from wavevit.pictures.style import fitting_with_ending, font_for

BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "the frame's own colour": class_color(0),
    "mid-grey": (127, 127, 127),
}


def objects(
    boxes: list[list[float]], *, names: tuple[str, ...] = ("cell", "dot"), **more: object
) -> DrawnObjects:
    labels = np.arange(len(boxes)) % len(names)
    found = np.array(boxes, np.float32).reshape(-1, 4)
    return DrawnObjects(found, labels, names, **more)  # type: ignore[arg-type]


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    """Contrast ratio of two colours (WCAG 2.2)."""
    light = [
        ((np.asarray(color) / 255) ** 2.2) @ np.array([0.2126, 0.7152, 0.0722]) for color in (a, b)
    ]
    return float((max(light) + 0.05) / (min(light) + 0.05))


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_frame_stands_out_from_any_background(background: str) -> None:
    """Along a line through its left edge some pixel has a contrast of at least 3 with it."""
    color = BACKGROUNDS[background]
    drawn = draw_objects(Image.new("RGB", (120, 100), color), objects([[40, 40, 100, 90]]))
    row = np.asarray(drawn)[65]
    assert max(contrast(pixel, np.array(color)) for pixel in row[36:48]) >= 3
    assert (row[:36] == color).all()
    assert (row[60:90] == color).all()


@pytest.mark.parametrize("label", range(40))
def test_a_name_stands_out_from_its_plate(label: int) -> None:
    names = tuple(f"name {number}" for number in range(40))
    thing = DrawnObjects(np.array([[5, 40, 195, 90]], np.float32), np.array([label]), names)
    drawn = np.asarray(draw_objects(Image.new("RGB", (200, 100)), thing, letters=16))
    plate = drawn[18:38, 8:60].reshape(-1, 3)
    fill = np.array(class_color(label))
    assert (plate == fill).all(axis=1).mean() > 0.3
    assert max(contrast(pixel, fill) for pixel in np.unique(plate, axis=0)) >= 3.5


def test_a_frame_encloses_the_pixels_of_its_box() -> None:
    """On the continuous plane: the box 10..20 covers the pixels 10 to 19."""
    drawn = np.asarray(draw_objects(Image.new("RGB", (64, 64)), objects([[10, 30, 20, 50]])))
    color = np.array(class_color(0))
    is_frame = (drawn[45] == color).all(axis=1)
    assert np.flatnonzero(is_frame)[[0, -1]].tolist() == [10, 19]


def test_masks_tint_their_pixels_and_no_others() -> None:
    masks = np.zeros((2, 80, 80), bool)
    masks[0, 10:40, 10:40] = True
    drawn = np.asarray(
        draw_objects(
            Image.new("RGB", (80, 80), (200, 200, 200)),
            objects([[10, 10, 40, 40], [50, 50, 60, 60]], masks=masks),
        )
    )
    tinted = 0.55 * 200 + 0.45 * np.array(class_color(0))
    assert np.abs(drawn[30, 25] - tinted).max() <= 1
    assert (drawn[30, 44:] == 200).all()
    with pytest.raises(ValueError, match="expected masks of 64 x 64 pixels"):
        draw_objects(Image.new("RGB", (64, 64)), objects([[1, 1, 9, 9]], masks=masks[:1]))


def test_objects_of_the_only_class_are_told_apart() -> None:
    thing = objects([[5, 20, 40, 60], [50, 20, 90, 60]], names=("balloon",))
    drawn = np.asarray(draw_objects(Image.new("RGB", (100, 64)), thing))
    for color in (class_color(0), class_color(1)):
        assert (drawn == color).all(axis=2).sum() > 50


def test_names_do_not_cover_each_other_where_there_is_room() -> None:
    """Three objects at one place: three plates, each with its whole width in its own colour."""
    names = ("first", "second", "third")
    thing = objects([[40, 60, 160, 140]] * 3, names=names, scores=np.array([0.9, 0.8, 0.7]))
    drawn = np.asarray(draw_objects(Image.new("RGB", (200, 200)), thing, letters=12))
    for label in range(3):
        is_plate = (drawn == class_color(label)).all(axis=2)
        assert is_plate.any(axis=1).sum() >= 14  # rows: the height of a plate


def test_names_in_a_crowd_are_left_out_before_they_hide_objects() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 220, (60, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 60, (60, 2))], axis=1)
    boxes = boxes.clip(0, 256).astype(np.float32)
    names, scores = ("cell",), rng.random(60)
    thing = DrawnObjects(boxes, np.zeros(60, int), names, scores)
    plates: list[tuple[float, ...]] = []
    fills: list[object] = []

    class Recorder(ImageDraw.ImageDraw):
        def rectangle(self, xy: Any, fill: Any = None, *more: Any, **options: Any) -> None:
            if fill is not None:
                plates.append(tuple(xy))
                fills.append(fill)
            super().rectangle(xy, fill, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw, "Draw", Recorder)
        draw_objects(Image.new("RGB", (256, 256)), thing, letters=11)
    assert 5 < len(plates) < 60
    assert fills[0] == class_color(int(scores.argmax()))  # the most certain one has its name
    hidden = np.zeros(60)
    for plate in plates:
        sides = np.minimum(boxes[:, 2:], plate[2:]) - np.maximum(boxes[:, :2], plate[:2])
        hidden += sides.clip(0).prod(axis=1)
    assert (hidden <= 0.5 * (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)).all()
    for a, b in itertools.combinations(plates, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_of_a_long_caption_the_name_is_shortened_and_not_the_counts() -> None:
    counts = ": 12 right, 3 wrong, 4 missed"
    line = fitting_with_ending("images/val/" + "x" * 100, counts, 12, 300)
    assert line.startswith("images/")
    assert "…" in line
    assert line.endswith("x" + counts)
    assert font_for(line, 12).getlength(line) <= 300
    assert fitting_with_ending("a.png", counts, 12, 300) == "a.png" + counts


@pytest.mark.parametrize(
    "box", [[-50, -50, 500, 500], [0, 0, 1, 1], [63, 63, 64, 64], [10, 10, 10.2, 10.1]]
)
def test_boxes_at_and_over_the_border_and_tiny_ones_are_drawn(box: list[float]) -> None:
    names = ("日本語 кошка " + "n" * 300,)
    thing = objects([box], names=names, scores=np.array([1.0]))
    drawn = draw_objects(Image.new("L", (64, 64)), thing)
    assert drawn.size == (64, 64)
    assert np.asarray(drawn).any()


def test_nothing_is_drawn_where_nothing_is() -> None:
    image = Image.new("RGB", (30, 20), (1, 2, 3))
    assert np.array_equal(draw_objects(image, objects([])), image)


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.std() > 5
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge > 250).all()  # nothing is cut off
    return pixels


def test_grids_take_pictures_of_any_shape(tmp_path: Path) -> None:
    wide, tall = Image.new("RGB", (900, 100)), Image.new("RGB", (30, 70))
    masks = np.ones((1, 100, 900), np.uint8)
    of_wide, of_tall = objects([[5, 5, 800, 90]], masks=masks), objects([])
    draw_detection_samples([(wide, of_wide), (tall, of_tall)] * 4, tmp_path / "samples.png")
    samples = picture(tmp_path / "samples.png")
    example = DetectionExample(
        wide, of_wide, of_wide, "shapes/val/000001 " + "long " * 60, "3 right"
    )
    sections = [("Hard ones", []), ("Others", [example] * 3)]
    draw_detection_predictions(sections, tmp_path / "predictions.png")
    predictions = picture(tmp_path / "predictions.png")
    assert samples.shape[1] == 2 * 24 + 5 * (256 + 16) - 16
    assert predictions.shape[0] < 250  # as flat as its pictures, without an empty section
    for draw in (draw_detection_samples, draw_detection_predictions):
        with pytest.raises(ValueError, match="expected at least one"):
            draw([], tmp_path / "none.png")


def test_precision_over_recall_of_boxes_and_masks(tmp_path: Path) -> None:
    precision = np.linspace(1, 0, 101)[None, :, None] * np.linspace(1, 0.5, 10)[:, None, None]
    precision = np.repeat(precision, 13, axis=2)
    precision[..., 3] = np.nan  # a class without objects
    names = [f"class {number}" for number in range(13)]
    counts = np.arange(13)
    path = tmp_path / "curves.png"
    thresholds = np.linspace(0.5, 0.95, 10)
    both = {"boxes": precision, "masks": np.full_like(precision, np.nan)}
    draw_precision_recall(both, thresholds, names, counts, path, title="mask_rcnn")
    assert picture(path).shape == (900, 1180, 3)
    with pytest.raises(ValueError, match="expected precision of 10 thresholds and 12 classes"):
        draw_precision_recall(both, thresholds, names[1:], counts, path)


def test_curves_show_the_parts_of_the_loss(tmp_path: Path) -> None:
    """Those of stages added up, in a panel of their own."""
    rows: list[dict] = [
        {"kind": "train", "step": step, "epoch": step / 10, "lr": 1e-3, "loss": 3.0}
        | {f"loss_{part}_{stage}": 0.5 for part in ("cls", "box") for stage in range(3)}
        for step in range(1, 20)
    ]
    rows.append({"kind": "evaluation", "step": 19, "epoch": 1.9, "box_ap": 0.3, "box_ap50": 0.5})
    path = tmp_path / "curves.png"
    draw_curves(rows, path, scores={"box_ap": "box AP", "box_ap50": "AP50"}, scores_title="AP")
    assert picture(path).shape == (430, 1760, 3)
