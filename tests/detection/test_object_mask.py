"""Masks of objects: trimmed, packed, moved and joined without a pixel lost."""

import numpy as np
import pytest

from wavevit.detection.object_mask import ObjectMask


def ragged(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < 0.3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (13, 7), (64, 40)])
def test_pasting_gives_back_every_pixel(height: int, width: int) -> None:
    picture = np.zeros((100, 120), bool)
    picture[20 : 20 + height, 50 : 50 + width] = ragged(height, width)
    picture[20, 50] = True
    mask = ObjectMask.of(picture[10:, 40:], 10, 40)
    assert (mask.top, mask.left) == (20, 50)
    assert mask.pixels().any(axis=1)[[0, -1]].all()
    np.testing.assert_array_equal(mask.pasted((100, 120)), picture)
    moved = np.zeros_like(picture)
    moved[5:, 3:] = picture[:-5, :-3]
    np.testing.assert_array_equal(mask.moved(5, 3).pasted((100, 120)), moved)


def test_the_union_is_that_of_the_pixels() -> None:
    windows = [(0, 0, 5, 9), (3, 4, 20, 2), (30, 30, 4, 4)]
    expected = np.zeros((40, 40), bool)
    masks = []
    for seed, (top, left, height, width) in enumerate(windows):
        pixels = ragged(height, width, seed)
        expected[top : top + height, left : left + width] |= pixels
        masks.append(ObjectMask.of(pixels, top, left))
    masks.append(ObjectMask.of(np.zeros((3, 3), bool), 39, 39))
    np.testing.assert_array_equal(ObjectMask.union(masks).pasted((40, 40)), expected)


def test_an_empty_mask_is_no_trouble() -> None:
    mask = ObjectMask.of(np.zeros((3, 4), bool), 1, 2)
    assert mask.pixels().shape == (0, 0)
    assert not mask.pasted((9, 9)).any()
    assert not ObjectMask.union([mask, mask]).pasted((9, 9)).any()
