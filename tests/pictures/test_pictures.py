"""Pictures exist, have the promised size and content, and survive odd names and numbers."""

import math
import threading
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from wavevit.pictures.confusion import draw_confusion, draw_reliability
from wavevit.pictures.curves import draw_curves, smoothed
from wavevit.pictures.grids import Example, draw_predictions, draw_samples, to_pixels
from wavevit.pictures.per_class import draw_per_class
from wavevit.pictures.style import fitting, font_for, one_line, write_atomically

GREEN, RED, BLUE = (43, 154, 92), (207, 63, 63), (47, 111, 181)
ODD_NAMES = [
    "$\\frac{1}{0}$ costs $5",
    "two\nlines\tand a tab \x00",
    "日本語 кошка قطة 🐈",
    "n" * 400,
    "",
    "a_b^c {x} % & # ~",
]


def read(path: Path) -> np.ndarray:
    """(H, W, 3) pixels of a picture that is not blank, with nothing beside it in its folder."""
    assert not list(path.parent.glob(".*.partial"))
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.std() > 5
    return pixels


def share(pixels: np.ndarray, color: tuple[int, int, int], tolerance: int = 12) -> float:
    """Share of the pixels that have about this colour."""
    return float((np.abs(pixels.astype(int) - color).max(axis=2) <= tolerance).mean())


def is_white_border(pixels: np.ndarray) -> bool:
    """Nothing is cut off at an edge."""
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    return all((edge > 250).all() for edge in edges)


def log_rows(steps: int = 400) -> list[dict]:
    rows: list[dict] = []
    for step in range(10, steps + 1, 10):
        epoch = step / 100
        loss = 2 * math.exp(-step / 200)
        rows.append({"kind": "train", "step": step, "epoch": epoch, "loss": loss, "lr": 1e-3})
        if step % 100 == 0:
            scores = {"loss": loss, "top1": 1 - loss / 3, "top5": 1 - loss / 9}
            rows.append({"kind": "evaluation", "step": step, "epoch": epoch, **scores})
    return rows


def test_curves_show_training_and_validation(tmp_path: Path) -> None:
    draw_curves(log_rows(), tmp_path / "curves.png", title="a run")
    pixels = read(tmp_path / "curves.png")
    assert pixels.shape == (430, 1320, 3)
    assert is_white_border(pixels)
    assert share(pixels, BLUE) > 0.001


@pytest.mark.parametrize(
    "rows",
    [
        [],
        log_rows(10),
        [{"kind": "train", "step": 1, "epoch": 0.01, "loss": math.nan, "lr": 0.0}],
        [{"kind": "evaluation", "step": 5, "epoch": 1.0, "top1": 0.5}],
        [{"kind": "other"}, {"kind": "evaluation", "step": 5, "epoch": 0, "loss": None}],
    ],
    ids=["nothing", "one row", "NaN", "one evaluation", "foreign rows"],
)
def test_curves_of_a_run_that_hardly_began(rows: list[dict], tmp_path: Path) -> None:
    draw_curves(rows, tmp_path / "curves.png")
    read(tmp_path / "curves.png")


def test_smoothing_keeps_a_constant_and_the_length() -> None:
    np.testing.assert_allclose(smoothed(np.full(9, 3.0), 5), 3.0)
    np.testing.assert_allclose(smoothed(np.array([0.0, 3, 6]), 3), [1.5, 3, 4.5])


@pytest.mark.parametrize("classes", [2, 20, 150])
def test_confusion_shows_right_in_blue_and_wrong_in_red(classes: int, tmp_path: Path) -> None:
    confusion = np.full((classes, classes), 0)
    np.fill_diagonal(confusion, 60)
    names = [f"class {i}" for i in range(classes)]
    draw_confusion(confusion, names, tmp_path / "right.png")
    right = read(tmp_path / "right.png")
    draw_confusion(np.roll(confusion, 1, axis=1), names, tmp_path / "wrong.png", title="none right")
    wrong = read(tmp_path / "wrong.png")
    dark_blue, dark_red = (23, 63, 109), (125, 26, 26)
    assert share(right, dark_blue) > 20 * share(right, dark_red)
    assert share(wrong, dark_red) > 20 * share(wrong, dark_blue)
    assert is_white_border(right)
    assert is_white_border(wrong)
    assert min(right.shape[:2]) >= 300


def test_every_one_of_a_thousand_classes_has_its_pixel(tmp_path: Path) -> None:
    names = [f"a class with a long name, number {i}" for i in range(1000)]
    draw_confusion(np.eye(1000, dtype=np.int64), names, tmp_path / "c.png")
    pixels = read(tmp_path / "c.png")
    is_blue = (np.abs(pixels.astype(int) - (23, 63, 109)).max(axis=2) <= 12)[:, :1400]
    assert is_blue.any(axis=1).sum() >= 1000
    assert is_white_border(pixels)


def test_confusion_of_names_and_classes_that_are_odd(tmp_path: Path) -> None:
    confusion = np.zeros((6, 6), np.int64)
    confusion[0, 1] = 3  # five classes without samples
    draw_confusion(confusion, ODD_NAMES, tmp_path / "c.png")
    assert is_white_border(read(tmp_path / "c.png"))


def test_confusion_of_very_many_samples_and_long_names_has_room_for_them(tmp_path: Path) -> None:
    for length in (1, 60):
        names = [f"{'W' * length}{i}" for i in range(11)]
        draw_confusion(np.full((11, 11), 10**11), names, tmp_path / "c.png")
        pixels = read(tmp_path / "c.png")
        assert is_white_border(pixels)
        ink = np.flatnonzero((pixels[150:-100] < 200).any(axis=(0, 2)))
        assert 10 <= ink[0] <= 24  # "true class" begins here


def test_confusion_refuses_names_of_another_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a \(3, 3\) matrix for 3 names, got \(2, 2\)"):
        draw_confusion(np.eye(2, dtype=np.int64), ["a", "b", "c"], tmp_path / "c.png")


def test_reliability_with_empty_bins(tmp_path: Path) -> None:
    edges = np.linspace(0, 1, 16)
    counts = np.array([0] * 10 + [5, 10, 0, 40, 80])
    confidence = np.where(counts > 0, (edges[:-1] + edges[1:]) / 2, np.nan)
    path = tmp_path / "r.png"
    draw_reliability(edges, counts, confidence, confidence * 0.9, path, ece=0.08)
    pixels = read(path)
    assert pixels.shape == (740, 640, 3)
    assert is_white_border(pixels)
    assert share(pixels, BLUE) > 0.05


def test_per_class_bars_leave_out_classes_without_samples(tmp_path: Path) -> None:
    accuracy = np.array([0.5, np.nan, 1.0, 0.0, 0.9, 0.7])
    draw_per_class(accuracy, np.array([10, 0, 3, 4, 5, 6]), ODD_NAMES, tmp_path / "p.png")
    pixels = read(tmp_path / "p.png")
    assert pixels.shape == (130 + 24 * 5, 820, 3)
    assert is_white_border(pixels)
    with pytest.raises(ValueError, match="expected 1 to 100 classes with samples, got 101"):
        draw_per_class(np.ones(101), np.ones(101, np.int64), ["x"] * 101, tmp_path / "p.png")


def test_sample_grid_undoes_the_normalisation_and_keeps_pixels(tmp_path: Path) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    color = torch.tensor([200.0, 100, 50]) / 255
    images = (color - torch.tensor(mean)) / torch.tensor(std)
    images = images[None, :, None, None].expand(9, 3, 64, 64)
    draw_samples(images, [*ODD_NAMES, "x", "y", "z"], tmp_path / "s.png", mean=mean, std=std)
    pixels = read(tmp_path / "s.png")
    exact = (pixels == [200, 100, 50]).all(axis=2).sum()
    assert exact >= 0.97 * 9 * 128 * 128  # 64 pixels doubled; borders may blend
    assert is_white_border(pixels)


def test_to_pixels_clips_and_takes_nan_for_black() -> None:
    images = torch.tensor([[[[9.0, -9, math.nan]]] * 3]).reshape(1, 3, 1, 3)
    assert to_pixels(images, (0.5,) * 3, (0.5,) * 3)[0, 0, :, 0].tolist() == [255, 0, 0]


def test_sample_grid_needs_a_caption_per_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a caption per image, got 1 for 2"):
        draw_samples(
            torch.zeros(2, 3, 8, 8), ["a"], tmp_path / "s.png", mean=(0,) * 3, std=(1,) * 3
        )


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (5, 900)])
def test_prediction_grid_frames_right_green_and_wrong_red(
    size: tuple[int, int], tmp_path: Path
) -> None:
    image = Image.new("RGB", size, (90, 90, 200))
    right = [Example(image, "a", "a", 0.9, True)] * 3
    wrong = [Example(image, name, "b", 1.0, False) for name in ODD_NAMES]
    draw_predictions(right, tmp_path / "right.png")
    draw_predictions(wrong, tmp_path / "wrong.png")
    draw_predictions([*right, *wrong], tmp_path / "both.png")
    only_right, only_wrong = read(tmp_path / "right.png"), read(tmp_path / "wrong.png")
    assert share(only_right, GREEN) > 0.005
    assert share(only_right, RED) == 0
    assert share(only_wrong, RED) > 0.005
    assert share(only_wrong, GREEN) == 0
    both = read(tmp_path / "both.png")
    assert share(both, RED) > 0
    assert share(both, GREEN) > 0
    assert share(both, (90, 90, 200)) > 0
    assert image.size == size  # the caller's picture is not changed


def test_prediction_grid_needs_an_example(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one example"):
        draw_predictions([], tmp_path / "p.png")


def test_drawing_leaves_no_trace_in_matplotlib(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    draw_curves(log_rows(), tmp_path / "c.png")
    assert dict(matplotlib.rcParams) == before


def test_an_existing_picture_survives_a_failed_drawing(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(b"old")

    def fail(file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ODD_NAMES)
@pytest.mark.parametrize("limit", [3, 10, 80])
def test_one_line_is_printable_and_short(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert 0 < len(line) <= max(limit, len("(no name)"))
    assert line.isprintable()


def test_a_shortened_name_keeps_both_ends() -> None:
    assert one_line("class number 123456", 12) == "class nu…456"


def test_fitting_text_is_as_wide_as_allowed_at_most() -> None:
    for width in (40, 90, 200):
        text = fitting("great white shark, white shark, man-eater", 14, width)
        assert font_for(text, 14).getlength(text) <= width
    assert fitting("cat", 14, 100) == "cat"


def test_threads_may_draw_at_once(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def draw(index: int) -> None:
        try:
            image = Image.new("RGB", (64, 64), (index, 0, 0))
            write_atomically(tmp_path / f"{index}.png", lambda file: image.save(file, "PNG"))
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(list(tmp_path.iterdir())) == 8


def test_a_long_title_is_shortened_to_the_picture(tmp_path: Path) -> None:
    title = "wavevit_nano on a-data-set-with-a-name-that-goes-on-and-on-and-on-and-on (val)"
    draw_confusion(np.eye(2, dtype=np.int64), ["a", "b"], tmp_path / "c.png", title=title)
    draw_per_class(np.ones(2), np.ones(2, np.int64), ["a", "b"], tmp_path / "p.png", title=title)
    image = Image.new("RGB", (9, 9), "red")
    draw_predictions([Example(image, "a", "a", 1.0, True)], tmp_path / "g.png", title=title)
    for name in ("c", "p", "g"):
        assert is_white_border(read(tmp_path / f"{name}.png"))
