"""Sizes as the official detectors have them, pixels as OpenCV's, and the way back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wavevit.data.detection.resize import (
    keep_ratio_size,
    multiple_of_16_size,
    resize_image,
    restore_boxes,
    restore_masks,
)
from wavevit.data.detection.sample import DetectionSample, MaskView, flipped, resized

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


@pytest.fixture(scope="module")
def pipeline(golden: Path) -> tuple[dict[str, Any], Any]:
    """What the official preprocessing made of three images: facts and arrays."""
    folder = golden / "detection"
    return json.loads((folder / "pipeline.json").read_text()), np.load(folder / "pipeline.npz")


def recorded_input(seed: int, H: int, W: int, cells: tuple[int, int]) -> torch.Tensor:
    """(3, H, W) uint8 RGB: blocks of 4 x 4 pixels, as the record's note describes them."""
    random = np.random.default_rng(seed).random((*cells, 3))
    bgr = (random.repeat(4, 0).repeat(4, 1)[:H, :W] * 255).astype(np.uint8)
    return torch.from_numpy(bgr[:, :, ::-1].copy()).permute(2, 0, 1)


def test_every_size_of_the_official_table(golden: Path) -> None:
    rows = json.loads((golden / "detection/cresize_table.json").read_text())
    assert len(rows) == 486
    for row in rows:
        (W, H), (long_edge, short_edge) = row["wh"], sorted(row["scale"], reverse=True)
        official = multiple_of_16_size((H, W), short_edge, long_edge)
        assert list(official[::-1]) == row["out_wh"], row
        plain = keep_ratio_size((H, W), short_edge, long_edge)
        assert list(plain[::-1]) == row["plain_mmcv_wh"], row


def test_sizes_known_by_heart() -> None:
    assert multiple_of_16_size((480, 640), 800, 1333) == (800, 1072)
    assert keep_ratio_size((480, 640), 800, 1333) == (800, 1067)
    assert keep_ratio_size((100, 10_000), 800, 1333) == (13, 1333)


def test_strips_keep_a_size() -> None:
    """The official rule leaves nothing of them."""
    assert multiple_of_16_size((10, 4000), 800, 1333) == (16, 1328)
    assert keep_ratio_size((1, 4000), 800, 1333) == (1, 1333)


@pytest.mark.parametrize("index", [0, 1])
def test_pixels_of_the_official_preprocessing(index: int, pipeline: tuple[Any, Any]) -> None:
    facts, arrays = pipeline
    facts = facts[f"det{index}"]
    H0, W0 = facts["src_hw"]
    image = recorded_input(500 + index, H0, W0, (H0 // 4 + 1, W0 // 4 + 1))
    long_edge, short_edge = facts["img_scale"]
    size = multiple_of_16_size((H0, W0), short_edge, long_edge)
    assert list(size) == facts["img_shape"][:2]
    normalised = arrays[f"det{index}"]
    assert not normalised[:, size[0] :].any()  # what is padding there a detector adds itself
    assert not normalised[:, :, size[1] :].any()
    expected = normalised[:, : size[0], : size[1]].transpose(1, 2, 0) * STD + MEAN
    difference = np.abs(resize_image(image, size).permute(1, 2, 0).numpy() - expected)
    # OpenCV works in fixed point and torch rounds between rows and columns: at most one level.
    assert difference.max() < 1.001
    assert (difference > 0.5).mean() < 0.07


def test_boxes_masks_and_pixels_of_an_official_training_sample(pipeline: tuple[Any, Any]) -> None:
    facts, arrays = pipeline[0]["train"], pipeline[1]
    image = recorded_input(600, 120, 160, (30, 40))
    boxes = torch.tensor([[10.0, 12, 60, 70], [100, 5, 159, 119]])
    masks = np.zeros((2, 120, 160), np.uint8)
    masks[0, 12:70, 10:60] = 1
    masks[1, 5:119, 100:159] = 1
    sample = DetectionSample(image, boxes, torch.tensor([3, 4]), MaskView.of(masks))
    size = multiple_of_16_size((120, 160), 200, 333)
    sample = flipped(resized(sample, size))
    target = sample.target()
    torch.testing.assert_close(target["boxes"], torch.tensor(facts["boxes"]), rtol=0, atol=1e-4)
    assert target["masks"].sum((1, 2)).tolist() == facts["mask_areas"]
    expected = arrays["train_img_u8"][:, :, ::-1].astype(int)  # BGR
    difference = np.abs(sample.image.permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.07


@pytest.mark.parametrize("antialias", [False, True])
def test_memory_layout_changes_no_pixel(antialias: bool) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8))
    view = pixels.permute(2, 0, 1)
    for size in ((50, 40), (20, 70), (1, 1)):
        one = resize_image(view, size, antialias=antialias)
        assert torch.equal(one, resize_image(view.contiguous(), size, antialias=antialias))
        assert one.shape == (3, *size)
    assert resize_image(view, (37, 53)) is view


def test_boxes_go_back_to_the_original_image() -> None:
    original, size = (480, 640), (800, 1072)
    boxes = torch.tensor([[0.0, 0, 640, 480], [10, 20, 30.5, 40.25]])
    sample = DetectionSample(torch.zeros(3, *original, dtype=torch.uint8), boxes, torch.zeros(2))
    there = resized(sample, size).boxes
    assert there[0].tolist() == [0, 0, 1072, 800]
    torch.testing.assert_close(restore_boxes(there, size, original), boxes, rtol=1e-6, atol=1e-4)
    outside = torch.tensor([[-5.0, -5, 2000, 2000]], dtype=torch.float16)
    assert restore_boxes(outside, size, original).tolist() == [[0, 0, 640, 480]]
    assert restore_boxes(torch.zeros(0, 4), size, original).shape == (0, 4)


def test_masks_go_back_to_the_original_image() -> None:
    """Rectangles keep their place to the pixel; parts come in order."""
    original, size = (240, 320), (400, 544)
    masks = np.zeros((3, *original), np.uint8)
    places = [(0, 0, 320, 240), (10, 20, 90, 50), (300, 200, 320, 240)]
    for mask, (x1, y1, x2, y2) in zip(masks, places, strict=True):
        mask[y1:y2, x1:x2] = 1
    there = MaskView.of(masks).resized(size).pixels().float()
    back = torch.cat(list(restore_masks(there, original)))
    assert back.shape == masks.shape
    assert back.dtype == torch.bool
    for mask, (x1, y1, x2, y2) in zip(back, places, strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert abs(rows[0] - y1) <= 1
        assert abs(rows[-1] + 1 - y2) <= 1
        assert abs(columns[0] - x1) <= 1
        assert abs(columns[-1] + 1 - x2) <= 1
    assert list(restore_masks(torch.zeros(0, 8, 8), (4, 4))) == []
    unchanged = torch.rand(2, 8, 8)
    assert torch.equal(next(restore_masks(unchanged, (8, 8))), unchanged >= 0.5)


def test_large_masks_come_a_few_at_a_time() -> None:
    parts = list(restore_masks(torch.rand(3, 4, 4), (3000, 4000)))
    assert [len(part) for part in parts] == [1, 1, 1]
