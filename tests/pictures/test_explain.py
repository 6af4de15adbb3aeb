"""Heat maps lie where they belong; sub-bands, energies and fields are pictures to be read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import wavevit
from wavevit.pictures.heat_maps import explained_picture, heat_overlay
from wavevit.pictures.receptive_field import draw_receptive_fields
from wavevit.pictures.subbands import draw_subband_energy, subband_mosaic


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_heat_is_where_it_is_hot_and_no_picture_is_changed_elsewhere() -> None:
    image = noise(100, 60)
    heat = np.zeros((6, 10))
    cold = np.asarray(heat_overlay(image, heat)).astype(int)
    heat[1, 8] = 3  # rows 10 to 19, columns 80 to 89
    hot = np.asarray(heat_overlay(image, heat)).astype(int)
    changed = np.abs(hot - cold).sum(axis=2)
    rows, columns = np.nonzero(changed)
    assert rows.min() >= 4
    assert rows.max() < 26  # half a cell of smoothing around
    assert columns.min() >= 74
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    assert 10 <= row < 20
    assert 80 <= column < 90
    boxed = np.asarray(heat_overlay(image, heat, (0, 0, 50, 30))).astype(int)
    assert np.abs(boxed - cold)[5:10, 40:45].sum() > 0
    np.testing.assert_array_equal(boxed[30:], cold[30:])
    np.testing.assert_array_equal(boxed[:, 50:], cold[:, 50:])


def test_only_the_proportions_of_heat_count() -> None:
    image, heat = noise(40, 30), np.random.default_rng(1).random((3, 4))
    np.testing.assert_array_equal(heat_overlay(image, heat), heat_overlay(image, 1e-9 * heat))


@pytest.mark.parametrize("size", [(1, 1), (64, 48), (640, 480), (900, 30), (30, 900)])
def test_the_picture_is_beside_its_heat_map(size: tuple[int, int]) -> None:
    image = noise(*size)
    result = explained_picture(image, np.ones((2, 3)), "caption", [("a", 0.7), ("b", 0.3)])
    factor = max(1, 220 // max(size))
    enlarged = np.asarray(image).repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = enlarged.shape[:2]
    np.testing.assert_array_equal(np.asarray(result)[:height, :width], enlarged)
    beside = (0, height + 4) if width > 2 * height else (width + 4, 0)
    hot = result.crop((*beside, beside[0] + width, beside[1] + height))
    box = (0, 0, width, height)
    expected = heat_overlay(Image.fromarray(enlarged), np.ones((2, 3)), box)
    np.testing.assert_array_equal(np.asarray(hot), np.asarray(expected))


def test_sub_bands_are_laid_out_as_named() -> None:
    rows = np.tile([[0.0], [1.0]], (32, 64))[None]  # changes from row to row: LH alone
    ll, details = wavevit.dwt2(torch.from_numpy(rows)[None])
    mosaic = np.asarray(subband_mosaic(ll[0], [band[0] for band in details])).astype(int)
    side = (mosaic.shape[0] - 4) // 2
    below = slice(40, side)  # of the names
    assert np.abs(mosaic[below, side + 4 :] - 128).min() > 100  # LH: all black or white
    assert np.abs(mosaic[side + 44 :, :side] - 128).max() <= 1  # HL
    assert np.abs(mosaic[side + 44 :, side + 4 :] - 128).max() <= 1  # HH


def test_charts_are_written_whatever_the_values(tmp_path: Path) -> None:
    shares = [[0.7, 0.1, 0.1, 0.1], [float("nan")] * 4]
    draw_subband_energy(shares, ["image", "stages.0.blocks.0"], tmp_path / "energy.png")
    fields = [np.eye(30) / 30, np.full((20, 40), 1 / 800)]
    draw_receptive_fields(fields, ["a", "b"], tmp_path / "fields.png", sides=[[10], []])
    for name in ("energy.png", "fields.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert pixels.std() > 10


def test_mistakes(tmp_path: Path) -> None:
    image = noise(8, 8)
    with pytest.raises(ValueError, match=r"heat map \(h, w\)"):
        heat_overlay(image, np.ones(4))
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="finite numbers that are not negative"):
            heat_overlay(image, np.full((2, 2), bad))
    with pytest.raises(ValueError, match="no area inside 8 x 8"):
        heat_overlay(image, np.ones((2, 2)), (9, 0, 12, 4))
    with pytest.raises(ValueError, match="four sub-bands"):
        subband_mosaic(np.ones((3, 4, 4)), [np.ones((3, 4, 4))] * 2)
    with pytest.raises(ValueError, match="1 or 3 colours, got 2"):
        subband_mosaic(np.ones((2, 4, 4)), [np.ones((2, 4, 4))] * 3)
    with pytest.raises(ValueError, match="2 names"):
        draw_subband_energy(np.ones((1, 4)), ["a", "b"], tmp_path / "x.png")
    with pytest.raises(ValueError, match="title for each"):
        draw_receptive_fields([np.ones((2, 2))], [], tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []
