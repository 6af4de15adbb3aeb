"""Captions stand below a picture of any size, and cover nothing of it."""

import numpy as np
import pytest
from PIL import Image

from wavevit.pictures.annotate import annotate, font_size

PREDICTIONS = [
    ("a class", 0.931),
    ("a class with a very long name, as those of ImageNet are, with synonyms", 0.04),
    ("日本語 кошка قطة 🐈", 0.02),
    ("$\\frac{1}{2}$\nsecond line\x00", 0.009),
    ("", 0.0),
]


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (64, 48), (640, 480), (16, 2000), (2000, 16)])
def test_every_pixel_of_the_picture_is_still_there(size: tuple[int, int]) -> None:
    image = noise(*size)
    result = annotate(image, PREDICTIONS)
    factor = max(1, 220 // max(size))
    enlarged = np.asarray(image).repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = enlarged.shape[:2]
    np.testing.assert_array_equal(np.asarray(result)[:height, :width], enlarged)
    caption = np.asarray(result)[height:]
    assert caption.shape[0] >= 5 * 12
    assert caption.std() > 5  # there is something on it
    assert result.width >= 220


def test_a_huge_picture_gets_letters_in_proportion() -> None:
    image = Image.new("RGB", (8000, 6000), "navy")
    result = annotate(image, PREDICTIONS)
    assert result.size[0] == 8000
    assert 6000 < result.size[1] < 6000 * 1.5
    assert font_size(8000, 6000) == pytest.approx(0.032 * (8000 * 6000) ** 0.5, abs=1)


def test_letters_of_a_long_thin_picture_stay_small() -> None:
    assert font_size(8000, 16) == 12
    assert font_size(16, 8000) == 12
    assert font_size(16, 16) == 12


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_any_mode_becomes_rgb_and_the_input_stays_as_it_is(mode: str) -> None:
    image = Image.new(mode, (40, 40))
    before = image.tobytes()
    assert annotate(image, PREDICTIONS).mode == "RGB"
    assert image.mode == mode
    assert image.tobytes() == before


def test_bars_are_as_long_as_the_probabilities() -> None:
    image = Image.new("RGB", (1000, 500), "white")
    caption = np.asarray(annotate(image, [("a", 1.0), ("b", 0.5), ("c", 0.0)]))[500:].astype(int)
    is_bar = (np.abs(caption - (47, 111, 181)).max(axis=2) < 5) | (
        np.abs(caption - (157, 185, 216)).max(axis=2) < 5
    )
    lengths = sorted(set(is_bar.sum(axis=1).tolist()) - {0, 1})
    full, half = lengths[-1], max(n for n in lengths if n < 0.9 * lengths[-1])
    assert half / full == pytest.approx(0.5, abs=0.02)


def test_no_predictions_no_strip() -> None:
    assert annotate(noise(300, 200), []).size == (300, 200)
