"""Photometric distortion: known colours, OpenCV's arithmetic, and the published chances."""

import colorsys
from typing import Any

import numpy as np
import pytest
import torch

from wavevit.data.loading import seeded
from wavevit.data.segmentation.photometric import (
    PhotometricChange,
    PhotometricDistortion,
    saturate,
    turn_hue,
)
from wavevit.data.segmentation.sample import SegmentationSample


def noise(H: int = 23, W: int = 37) -> torch.Tensor:
    """uint8 ``(3, H, W)`` with black, white, grey and pure colours among the pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
    pixels[0, :6] = [[0] * 3, [255] * 3, [77] * 3, [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    pixels[1, :3] = [[200, 200, 10], [10, 200, 200], [200, 10, 200]]
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("turns", [-0.2, 0.05, 1 / 3, 0.9])
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.5])
def test_saturation_and_hue_are_those_of_hsv(turns: float, factor: float) -> None:
    """Against Python's own conversion, pixel by pixel."""
    image = noise()
    values = image.numpy().astype(np.float32)
    saturate(values, factor)
    turn_hue(values, turns)
    for levels, found in zip(
        image.flatten(1).T.tolist(), values.reshape(3, -1).T.tolist(), strict=True
    ):
        hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in levels))
        expected = colorsys.hsv_to_rgb((hue + turns) % 1, min(saturation * factor, 1), value)
        np.testing.assert_allclose(np.array(found) / 255, expected, atol=2e-6)


def official(image: np.ndarray, change: PhotometricChange) -> np.ndarray:
    """The same in 8 bits with OpenCV, (H, W, 3); every step cuts off what is behind the point."""
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV, for comparison")

    def changed(values: np.ndarray, factor: float = 1, shift: float = 0) -> np.ndarray:
        return (values.astype(np.float32) * factor + shift).clip(0, 255).astype(np.uint8)

    image = changed(image, shift=change.brightness)
    if not change.contrast_last:
        image = changed(image, change.contrast)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = changed(hsv[..., 1], change.saturation)
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + change.hue) % 180
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return changed(image, change.contrast) if change.contrast_last else image


@pytest.mark.parametrize("contrast_last", [False, True])
def test_a_change_is_that_of_the_official_pipeline_but_for_its_rounding(
    contrast_last: bool,
) -> None:
    rng = np.random.default_rng(1)
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(rng.uniform(0, 255, (1, 3, 6, 8))), (48, 64), mode="bilinear"
    )
    image = smooth[0].byte()
    for _ in range(10):
        brightness, contrast, saturation = rng.uniform((-32, 0.5, 0.5), (32, 1.5, 1.5))
        hue = int(rng.integers(-18, 18))
        change = PhotometricChange(brightness, contrast, contrast_last, saturation, hue)
        found = change(image).permute(1, 2, 0).numpy().astype(int)
        difference = found - official(image.permute(1, 2, 0).numpy(), change)
        # Five steps, each of which cuts off half a level on average and a hue's 2 degrees.
        assert -0.5 < difference.mean() < 4
        assert np.percentile(np.abs(difference), 99) <= 8


def test_parts_are_put_together() -> None:
    """An image of several parts equals its rows, each changed alone."""
    image = noise(70, 1000)
    change = PhotometricChange(10, 1.2, False, 1.3, 7)
    rows = torch.cat([change(image[:, row : row + 1]) for row in range(70)], 1)
    assert torch.equal(change(image), rows)
    wide = noise(2, 40000)
    assert change(wide).shape == wide.shape


def test_single_steps() -> None:
    image = torch.tensor([[0, 100, 250]], dtype=torch.uint8).expand(3, 1, 3)
    assert PhotometricChange(brightness=10.4)(image)[0, 0].tolist() == [10, 110, 255]
    assert PhotometricChange(brightness=-10.4)(image)[0, 0].tolist() == [0, 90, 240]
    assert PhotometricChange(contrast=1.5)(image)[0, 0].tolist() == [0, 150, 255]
    assert PhotometricChange(brightness=32, contrast=0.5)(image)[0, 0].tolist() == [16, 66, 128]
    for grey in (PhotometricChange(saturation=1.5), PhotometricChange(hue=-18)):
        assert torch.equal(grey(image), image)
    assert PhotometricChange(contrast_last=True)(image) is image
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)
    assert PhotometricChange(hue=15)(red).flatten().tolist() == [255, 128, 0]  # by 30 degrees
    # Brightness is cut before contrast: 250 is 255, and then 128.
    late = PhotometricChange(brightness=32, contrast=0.5, contrast_last=True)
    assert late(image)[0, 0].tolist() == [16, 66, 128]


def test_the_order_of_contrast_and_saturation_matters() -> None:
    image = noise()
    early, late = (PhotometricChange(0, 1.5, last, 1.5, 0)(image) for last in (False, True))
    assert not torch.equal(early, late)


def test_changes_are_drawn_as_published() -> None:
    num = 2000
    changes = []
    for seed in range(num):
        with seeded(seed):
            changes.append(PhotometricChange.draw())
    values: Any = {
        name: np.array([getattr(change, name) for change in changes])
        for name in ("brightness", "contrast", "contrast_last", "saturation", "hue")
    }
    for name, neutral, low, high in (
        ("brightness", 0, -32, 32),
        ("contrast", 1, 0.5, 1.5),
        ("saturation", 1, 0.5, 1.5),
    ):
        changed = values[name][values[name] != neutral]
        assert abs(len(changed) / num - 0.5) < 0.05
        assert low <= changed.min() < low + 0.02 * (high - low)
        assert high >= changed.max() > high - 0.02 * (high - low)
        assert abs(changed.mean() - neutral) < 0.03 * (high - low)
    assert set(values["hue"].tolist()) == set(range(-18, 18))
    assert abs(np.mean(values["hue"] != 0) - 0.5 * 35 / 36) < 0.05
    assert abs(values["contrast_last"].mean() - 0.5) < 0.05
    together = np.corrcoef([values["brightness"] != 0, values["contrast"] != 1, values["hue"] != 0])
    assert np.abs(together - np.eye(3)).max() < 0.1  # one does not depend on another


def test_labels_and_the_original_stay_as_they_are() -> None:
    image = noise()
    sample = SegmentationSample(image.clone(), torch.arange(23 * 37).reshape(23, 37).byte())
    for seed in range(10):
        with seeded(seed):
            changed = PhotometricDistortion()(sample)
        assert changed.labels is sample.labels
        assert torch.equal(sample.image, image)
        assert changed.image.dtype == torch.uint8
