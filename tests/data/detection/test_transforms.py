"""Boxes, masks and pixels move together, whatever the recipe draws."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from wavevit.data.detection.sample import (
    PADDING_RGB,
    DetectionSample,
    MaskView,
    cropped,
    flipped,
    padded,
    resized,
)
from wavevit.data.detection.transforms import (
    HorizontalFlip,
    LargeScaleJitter,
    PhotometricJitter,
    RandomCrop,
    Resize,
    detection_eval_transform,
    detection_train_transform,
)
from wavevit.data.loading import seeded

SMALL: dict[str, Any] = {
    "short_edges": [64, 80, 96],
    "long_edge": 160,
    "short_edges_before_crop": [64, 80],
    "crop_sizes": (48, 72),
    "jitter_canvas": (96, 112),
}
RECIPES = ("single_scale", "multi_scale", "large_scale_jitter")


def scene(H: int = 90, W: int = 120, *, with_masks: bool = True) -> DetectionSample:
    """Three rectangles on black: one red, one green, one blue."""
    boxes = np.array([[10, 8, 50, 60], [62, 20, 118, 44], [70, 50, 100, 86]])
    image = np.zeros((H, W, 3), np.uint8)
    masks = np.zeros((3, H, W), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2, number] = 200
        masks[number, y1:y2, x1:x2] = 1
    return DetectionSample(
        torch.from_numpy(image).permute(2, 0, 1),
        torch.tensor(boxes, dtype=torch.float32),
        torch.arange(3),
        MaskView.of(masks) if with_masks else None,
    )


def drawn(transform: Callable[[DetectionSample], DetectionSample], seed: int) -> DetectionSample:
    with seeded(seed):
        return transform(scene())


@pytest.mark.parametrize("recipe", RECIPES)
def test_boxes_masks_and_pixels_agree_after_any_draw(recipe: Any) -> None:
    transform = detection_train_transform(recipe, **SMALL)
    numbers: set[int] = set()
    sizes: set[tuple[int, int]] = set()
    for seed in range(40):
        sample = drawn(transform, seed)
        target = sample.target()
        H, W = sample.size
        sizes.add(sample.size)
        assert sample.image.dtype == torch.uint8
        assert target["masks"].shape == (len(target["boxes"]), H, W)
        assert target["masks"].dtype == torch.uint8
        assert target["boxes"].dtype == torch.float32
        for label, box, mask in zip(
            sample.labels.tolist(), sample.boxes.tolist(), target["masks"].numpy(), strict=True
        ):
            numbers.add(label)
            x1, y1, x2, y2 = box
            assert 0 <= x1 < x2 <= W
            assert 0 <= y1 < y2 <= H
            # The object's colour is where its mask is, but for a rim of two pixels.
            coloured = (sample.image[label] > 100) & (sample.image.sum(0) < 220)
            rim = 4 * (x2 - x1 + y2 - y1 + 4)
            assert (coloured.numpy() != mask.astype(bool)).sum() <= rim
            if mask.any():
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                found = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
                # The nearest pixel above and to the left is up to a source pixel away, enlarged.
                np.testing.assert_allclose(found, box, atol=3.1)
    assert numbers == {0, 1, 2}
    assert len(sizes) > 1 or recipe != "multi_scale"


def test_lazy_masks_equal_masks_moved_step_by_step() -> None:
    def nearest(masks: np.ndarray, H: int, W: int) -> np.ndarray:
        _, H0, W0 = masks.shape
        rows = np.floor(np.arange(H) * (1 / (H / H0))).astype(int)
        columns = np.floor(np.arange(W) * (1 / (W / W0))).astype(int)
        return masks[:, rows][:, :, columns]

    masks = (np.random.default_rng(0).random((4, 31, 47)) > 0.6).astype(np.uint8)
    masks[2] = 0
    view = MaskView.of(masks).resized((40, 90)).flipped().cropped(3, 7, (30, 60))
    view = view.resized((22, 80)).padded((25, 96)).flipped()
    expected = nearest(masks, 40, 90)[:, :, ::-1][:, 3:33, 7:67]
    expected = np.pad(nearest(expected, 22, 80), ((0, 0), (0, 3), (0, 16)))[:, :, ::-1]
    np.testing.assert_array_equal(view.pixels().numpy(), expected)
    chosen = np.array([True, False, False, True])
    np.testing.assert_array_equal(view.take(chosen).pixels().numpy(), expected[chosen])
    nothing = view.take(np.zeros(4, bool))
    assert nothing.pixels().shape == (0, 25, 96)


def test_a_flip_twice_is_no_flip() -> None:
    once, twice = flipped(scene()), flipped(flipped(scene()))
    assert once.boxes.tolist()[0] == [70, 8, 110, 60]
    assert torch.equal(once.image, scene().image.flip(2))
    assert torch.equal(twice.image, scene().image)
    assert torch.equal(twice.boxes, scene().boxes)
    assert torch.equal(twice.target()["masks"], scene().target()["masks"])


def test_a_crop_clips_boxes_and_drops_objects_together_with_their_masks() -> None:
    sample = cropped(scene(), 10, 40, (30, 70))
    assert sample.labels.tolist() == [0, 1]
    assert sample.boxes.tolist() == [[0, 0, 10, 30], [22, 10, 70, 30]]
    masks = sample.target()["masks"]
    assert masks.sum((1, 2)).tolist() == [300, 48 * 20]
    assert sample.image.shape == (3, 30, 70)


def test_a_crop_without_objects_is_kept() -> None:
    sample = cropped(scene(), 0, 0, (8, 9))
    target = sample.target()
    assert sample.image.shape == (3, 8, 9)
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    assert target["masks"].shape == (0, 8, 9)
    assert resized(sample, (16, 16)).target()["masks"].shape == (0, 16, 16)


def test_padding_is_the_mean_colour_at_the_bottom_and_on_the_right() -> None:
    sample = padded(scene(), (100, 130))
    assert torch.equal(sample.image[:, :90, :120], scene().image)
    assert sample.image[:, 90:].amin((1, 2)).tolist() == list(PADDING_RGB)
    assert sample.image[:, :, 120:].amax((1, 2)).tolist() == list(PADDING_RGB)
    assert torch.equal(sample.boxes, scene().boxes)
    assert not sample.target()["masks"][:, 90:].any()


def test_objects_without_masks_have_none_in_the_target() -> None:
    sample = flipped(scene(with_masks=False))
    assert set(sample.target()) == {"boxes", "labels"}


def test_crops_are_drawn_as_detr_does() -> None:
    crop = RandomCrop((20, 60))
    sizes = [drawn(crop, seed).size for seed in range(300)]
    heights, widths = ({size[axis] for size in sizes} for axis in (0, 1))
    assert heights == widths == set(range(20, 61))  # both ends are drawn, and independently
    assert len(set(sizes)) > 250
    assert drawn(RandomCrop((384, 600)), 0).size == (90, 120)  # smaller images stay whole
    assert {drawn(RandomCrop((100, 110)), seed).size[0] for seed in range(20)} == {90}


def test_multi_scale_takes_both_ways() -> None:
    transform = detection_train_transform("multi_scale", **SMALL, hflip=0)
    ratios = [drawn(transform, seed).size for seed in range(60)]
    whole = {(64, 80), (80, 112), (96, 128)}  # of 90 x 120 by the official rule
    assert whole <= set(ratios)
    share = sum(size in whole for size in ratios) / len(ratios)
    assert 0.3 < share < 0.75
    assert all(H % 16 == W % 16 == 0 for H, W in ratios)


def test_large_scale_jitter_fills_its_canvas_at_any_scale() -> None:
    jitter = LargeScaleJitter((96, 112), (0.1, 2.0))
    samples = [drawn(jitter, seed) for seed in range(60)]
    assert {sample.size for sample in samples} == {(96, 112)}
    boxes = torch.cat([sample.boxes for sample in samples])
    widths = boxes[:, 2] - boxes[:, 0]
    assert min(widths) < 10
    assert max(widths) > 70
    at_one = drawn(LargeScaleJitter((96, 112), (1.0, 1.0)), 0)
    assert not (at_one.image[:, :84] == torch.tensor(PADDING_RGB).view(3, 1, 1)).all()
    assert (at_one.image[:, 84:] == torch.tensor(PADDING_RGB).view(3, 1, 1)).all()


def test_the_probability_of_a_flip() -> None:
    x1 = [drawn(HorizontalFlip(0.25), seed).boxes[0, 0].item() for seed in range(200)]
    assert 0.15 < np.mean(np.array(x1) == 70) < 0.35
    assert drawn(HorizontalFlip(0), 0).boxes[0, 0] == 10
    assert drawn(HorizontalFlip(1), 0).boxes[0, 0] == 70


def test_colours_change_and_nothing_else() -> None:
    one, two = drawn(PhotometricJitter(0.4), 1), drawn(PhotometricJitter(0.4), 2)
    assert not torch.equal(one.image, two.image)
    assert one.image.dtype == torch.uint8
    assert torch.equal(one.boxes, scene().boxes)
    settings = {**SMALL, "short_edges": [96], "hflip": 0}
    plain = detection_train_transform("single_scale", **settings)
    coloured = detection_train_transform("single_scale", **settings, color_jitter=0.4)
    assert torch.equal(drawn(plain, 1).boxes, drawn(coloured, 1).boxes)
    assert not torch.equal(drawn(plain, 1).image, drawn(coloured, 1).image)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_seed_gives_the_same_sample_again(recipe: Any) -> None:
    transform = detection_train_transform(recipe, **SMALL, color_jitter=0.2)
    state = random.getstate()
    one, two = drawn(transform, 5), drawn(transform, 5)
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.boxes, two.boxes)
    others = [drawn(transform, seed).image for seed in range(3)]
    assert not all(torch.equal(image, one.image) for image in others)
    assert random.getstate() == state


def test_evaluation_resizes_and_nothing_else() -> None:
    sample = detection_eval_transform(short_edge=200, long_edge=333)(scene())
    assert sample.size == (192, 272)
    assert len(sample.boxes) == 3
    plain = detection_eval_transform(short_edge=200, long_edge=333, size_rule="keep_ratio")
    assert plain(scene()).size == (200, 267)


def test_errors_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"short edges .* got \[800\] and 600"):
        Resize([800], 600)
    with pytest.raises(ValueError, match=r"short edges of at least one pixel .* got \[\] and 10"):
        Resize([], 10)
    with pytest.raises(ValueError, match="size rule of multiple_of_16, keep_ratio; got 'other'"):
        Resize([10], 20, rule="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"least and largest side .* got \(600, 384\)"):
        RandomCrop((600, 384))
    with pytest.raises(ValueError, match=r"probability in \[0, 1\], got 1\.5"):
        HorizontalFlip(1.5)
    with pytest.raises(ValueError, match=r"positive factors, got \(10, 10\) and \(0, 2\)"):
        LargeScaleJitter((10, 10), (0, 2))
    with pytest.raises(ValueError, match=r"strength in \[0, 1\], got 2"):
        PhotometricJitter(2)
    with pytest.raises(ValueError, match=r"recipe of single_scale, .* got 'mosaic'"):
        detection_train_transform("mosaic", short_edges=[10], long_edge=20)  # type: ignore[arg-type]
