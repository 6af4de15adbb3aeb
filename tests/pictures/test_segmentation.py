"""Classes painted over pictures, legends, sheets, and index PNGs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wavevit.pictures.class_iou import draw_class_iou
from wavevit.pictures.index_png import to_index_picture, write_index_png
from wavevit.pictures.segmentation import (
    LegendEntry,
    draw_legend,
    draw_segmentation,
    edge_width,
    legend_entries,
    paint_labels,
)
from wavevit.pictures.segmentation_grids import (
    SegmentationExample,
    draw_segmentation_predictions,
    draw_segmentation_samples,
)

NAMES = ["sky", "road", "a class with quite a long name of many words"]
PALETTE = [[70, 130, 180], [128, 64, 128], [255, 255, 255]]


def halves(height: int, width: int) -> np.ndarray:
    """Sky on the left, road on the right, and a corner without a class."""
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 2 :] = 1
    labels[height // 2 :, : width // 8] = 255
    return labels


def photo(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_each_class_is_mixed_with_its_own_colour() -> None:
    image, labels = photo(60, 80), halves(60, 80)
    before = np.array(image)
    for opacity in (0.0, 0.25, 0.6, 1.0):
        painted = np.asarray(paint_labels(image, labels, PALETTE, opacity=opacity, edges=False))
        for label in (0, 1):
            there = labels == label
            wanted = before[there] * (1 - opacity) + np.array(PALETTE[label]) * opacity
            assert np.abs(painted[there] - wanted).max() < 1.5
    np.testing.assert_array_equal(np.asarray(image), before)


def test_what_has_no_class_is_hatched_in_grey() -> None:
    labels = halves(64, 64)
    black = Image.new("RGB", (64, 64))
    painted = np.asarray(paint_labels(black, labels, PALETTE, opacity=1.0))[labels == 255]
    assert (painted.std(axis=1) < 8).all()
    assert len(np.unique(painted, axis=0)) == 2
    assert 0.3 < (painted[:, 0] > 140).mean() < 0.7


@pytest.mark.parametrize("size", [(48, 64), (900, 1200)])
def test_borders_have_the_full_colours_of_both_sides(size: tuple[int, int]) -> None:
    labels = halves(*size)
    painted = np.asarray(paint_labels(photo(*size), labels, PALETTE, opacity=0.3))
    width, middle = edge_width(size[1], size[0]), size[1] // 2
    assert (painted[: size[0] // 2, middle - width : middle] == PALETTE[0]).all()
    assert (painted[: size[0] // 2, middle : middle + width] == PALETTE[1]).all()
    assert not (painted[:10, : middle - width] == PALETTE[0]).all(axis=2).any()
    assert (width > 1) == (size[0] > 500)


def test_borders_are_those_of_a_plain_search() -> None:
    labels = np.random.default_rng(1).integers(0, 3, (9, 11)).astype(np.uint8).repeat(7, 0)
    image = Image.new("RGB", (11, 63), (1, 2, 3))
    painted = np.asarray(paint_labels(image, labels, PALETTE, opacity=0.0))
    for y, x in np.ndindex(labels.shape):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [(a, b) for a, b in around if 0 <= a < 63 and 0 <= b < 11]
        differs = any(labels[place] != labels[y, x] for place in inside)
        assert tuple(painted[y, x]) == (tuple(PALETTE[labels[y, x]]) if differs else (1, 2, 3))


def test_a_legend_names_the_classes_that_are_there_by_size() -> None:
    labels = np.full((100, 100), 1, np.uint8)
    labels[:30] = 0
    labels[0, 0] = 255
    entries = legend_entries(labels, NAMES, PALETTE)
    assert [(e.name, e.share, e.color, e.is_hatched) for e in entries] == [
        ("road", "70.0%", (128, 64, 128), False),
        ("sky", "30.0%", (70, 130, 180), False),
        ("no class", "<0.1%", None, True),
    ]
    both = legend_entries([labels, np.full((1, 1), 2, np.uint8)], NAMES, PALETTE)
    assert [e.name for e in both] == ["road", "sky", NAMES[2], "no class"]


def test_a_legend_of_very_many_classes_sums_up_the_rare_ones() -> None:
    labels = np.arange(150, dtype=np.uint8)[:, None].repeat(10, 1)
    labels[:, 0] = 7
    names = [f"class {number}" for number in range(150)]
    entries = legend_entries(labels, names, [[number, 0, 0] for number in range(150)])
    assert len(entries) == 40
    assert entries[0].name == "class 7"
    assert entries[-1].name == "111 others"
    assert entries[-1].share == f"{111 * 9 / 1500:.1%}"


@pytest.mark.parametrize(("width", "height"), [(30, 90), (100, 75), (480, 360), (1900, 150)])
def test_a_legend_stands_below_the_picture_and_keeps_inside(width: int, height: int) -> None:
    labels = halves(height, width)
    labels[0, 0] = 2
    drawn = draw_segmentation(photo(height, width), labels, NAMES, PALETTE)
    factor = max(1, 220 // max(width, height))
    assert drawn.width == max(220, width * factor)
    strip = np.asarray(drawn)[height * factor :]
    assert len(strip) >= 12 * 2
    # Nothing is cut off: paper all around, and the chips' colours are there.
    for border in (strip[:3], strip[-3:], strip[:, :3], strip[:, -3:]):
        assert (border == 255).all()
    for color in PALETTE[:2]:
        assert (strip == color).all(axis=2).sum() >= 64
    plain = draw_segmentation(photo(height, width), labels, NAMES, PALETTE, legend=False)
    assert plain.size == (width, height)


def test_a_legend_has_columns_where_there_is_room() -> None:
    entries = legend_entries(np.array([[0, 1, 2, 255]], np.uint8), NAMES, PALETTE)
    heights = [draw_legend(entries, width, 14).height for width in (220, 2000)]
    assert heights[1] < heights[0]


def test_columns_of_a_legend_are_as_wide_as_their_own_names() -> None:
    short = [LegendEntry(name, "1.0%", (200, 0, 0)) for name in ("sky", "car")]
    long = LegendEntry("a name of many letters", "1.0%", (0, 0, 200))
    strip = np.asarray(draw_legend([*short, long, long], 380, 14))
    is_red, is_blue = ((strip == color).all(axis=2) for color in ((200, 0, 0), (0, 0, 200)))
    first, second = (int(np.flatnonzero(chips.any(axis=0))[0]) for chips in (is_red, is_blue))
    assert first < second < 150  # beside each other; the long name's width would not fit twice
    assert (strip[:, -3:] == 255).all()


def test_a_long_name_leaves_room_for_what_is_said_of_a_picture(tmp_path: Path) -> None:
    labels = halves(20, 30)
    sheets = []
    for caption in ("mean IoU 1.0%", "mean IoU 2.0%"):
        name = "a/long/folder/" * 20 + "name.png"
        example = SegmentationExample(photo(20, 30), labels, labels, name, caption)
        path = tmp_path / "predictions.png"
        draw_segmentation_predictions([("some", [example])], NAMES, PALETTE, path)
        with Image.open(path) as image:
            sheets.append(np.asarray(image.convert("RGB")))
    assert (sheets[0] != sheets[1]).any()
    assert (sheets[0][:, -20:] == 255).all()


def test_training_samples_are_drawn_beside_their_classes(tmp_path: Path) -> None:
    samples = [(photo(*size), halves(*size)) for size in ((64, 64), (30, 60), (300, 200))]
    draw_segmentation_samples(samples, NAMES, PALETTE, tmp_path / "samples.png")
    with Image.open(tmp_path / "samples.png") as image:
        assert image.width == 2 * 24 + 3 * (2 * 256 + 4) + 2 * 16
        sheet = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(sheet[44, 24], np.asarray(samples[0][0])[0, 0])
    with pytest.raises(ValueError, match="at least one sample"):
        draw_segmentation_samples([], NAMES, PALETTE, tmp_path / "none.png")


def test_predictions_show_mistakes_in_red_and_leave_out_what_does_not_count(
    tmp_path: Path,
) -> None:
    truth = halves(256, 256)
    predicted = np.zeros((256, 256), np.uint8)
    grey = Image.new("RGB", (256, 256), (90, 90, 90))
    example = SegmentationExample(grey, truth, predicted, "x", "y")
    draw_segmentation_predictions(
        [("none", []), ("some", [example])], NAMES, PALETTE, tmp_path / "predictions.png"
    )
    with Image.open(tmp_path / "predictions.png") as image:
        sheet = np.asarray(image.convert("RGB")).astype(int)
    mistakes = sheet[44:300, 24 + 3 * 260 : 24 + 3 * 260 + 256]
    is_red = mistakes[..., 0] > mistakes[..., 1] + 60
    np.testing.assert_array_equal(is_red, (truth != predicted) & (truth != 255))
    with pytest.raises(ValueError, match="at least one example"):
        draw_segmentation_predictions([("none", [])], NAMES, PALETTE, tmp_path / "none.png")


@pytest.mark.parametrize("K", [1, 3, 60])
def test_iou_of_any_number_of_classes_are_drawn(tmp_path: Path, K: int) -> None:
    rng = np.random.default_rng(0)
    iou = rng.random(K)
    accuracy = np.minimum(iou * 1.2, 1)
    counts = (rng.random(K) * 1e9).astype(np.int64)
    if K > 1:
        iou[1] = accuracy[1] = np.nan
        accuracy[2] = np.nan  # predicted only
        counts[1:3] = 0
    names = [f"class {number} 木" for number in range(K)]
    palette = [[number, 2 * number, 255] for number in range(K)]
    draw_class_iou(iou, accuracy, counts, names, palette, tmp_path / "iou.png", title="run")
    with Image.open(tmp_path / "iou.png") as image:
        assert image.width == 100 + 720 * -(-np.count_nonzero(~np.isnan(iou)) // 50)
    with pytest.raises(ValueError, match="at least one class"):
        draw_class_iou(np.full(K, np.nan), accuracy, counts, names, palette, tmp_path / "none.png")


@pytest.mark.parametrize("reduce_zero_label", [False, True])
@pytest.mark.parametrize("K", [2, 150, 255])
def test_an_index_png_holds_the_data_sets_own_values_and_colours(
    tmp_path: Path, K: int, reduce_zero_label: bool
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, (13, 17)).astype(np.uint8)
    labels[0, 0] = 255
    palette = rng.integers(0, 256, (K, 3)).tolist()
    path = tmp_path / "labels.png"
    path.write_text("old")
    write_index_png(path, labels, palette, reduce_zero_label=reduce_zero_label)
    with Image.open(path) as image:
        assert image.mode == "P"
        values, colors = np.asarray(image), np.asarray(image.convert("RGB"))
    assert values.dtype == np.uint8
    # As a data set reads it: 0 becomes 255, and all others one less.
    read = np.where(values == 0, 255, values - 1) if reduce_zero_label else values
    np.testing.assert_array_equal(read, labels)
    known = labels != 255
    np.testing.assert_array_equal(colors[known], np.array(palette)[labels[known]])
    assert colors[0, 0].tolist() == [0, 0, 0]
    assert [item.name for item in tmp_path.iterdir()] == ["labels.png"]
    assert path.read_bytes()[24] == 8  # bits a pixel


def test_mistakes_are_named(tmp_path: Path) -> None:
    image, labels = photo(20, 30), halves(20, 30)
    with pytest.raises(ValueError, match=r"labels of 20 x 30 pixels, .* got 30 x 20"):
        draw_segmentation(image, labels.T, NAMES, PALETTE)
    with pytest.raises(ValueError, match=r"labels of 20 x 30 pixels, .* got 30 x 20"):
        draw_segmentation_samples([(image, labels.T)], NAMES, PALETTE, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"in uint8, got int64 \(20, 30\)"):
        paint_labels(image, labels.astype(np.int64), PALETTE)
    with pytest.raises(ValueError, match="label 1 has no colour: the palette has 1"):
        draw_segmentation(image, labels, NAMES[:1], PALETTE[:1])
    with pytest.raises(ValueError, match="a colour per class, got 3 for 2 classes"):
        draw_segmentation(image, labels, NAMES[:2], PALETTE)
    with pytest.raises(ValueError, match=r"opacity lies in \[0, 1\], got 50"):
        paint_labels(image, labels, PALETTE, opacity=50)
    with pytest.raises(ValueError, match="label 1 has no colour: the palette has 1"):
        to_index_picture(labels, PALETTE[:1])
    with pytest.raises(ValueError, match="up to 255 classes, got 256"):
        to_index_picture(labels, [[0, 0, 0]] * 256)
    with pytest.raises(ValueError, match=r"in uint8, got int32 \(20, 30\)"):
        to_index_picture(labels.astype(np.int32), PALETTE)
