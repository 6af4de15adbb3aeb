"""Images and labels move together, whatever the recipe draws; and it draws what was published."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from wavevit.data.loading import seeded
from wavevit.data.resize import nearest_indices
from wavevit.data.segmentation.sample import (
    SegmentationSample,
    cropped,
    flipped,
    padded,
    resized,
)
from wavevit.data.segmentation.transforms import (
    EvalResize,
    HorizontalFlip,
    PadTo,
    RandomCrop,
    RandomResize,
    normalise,
    padding_colour,
    segmentation_eval_transform,
    segmentation_train_transform,
)

MEAN_COLOUR = (124, 116, 104)
LEVELS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)  # colours of the labels 0 to 2


def painted(H: int = 60, W: int = 90, *, cells: int = 12, ignored: bool = True) -> Any:
    """Cells of three classes in the colours of their classes; a corner is ignored, and black."""
    rows, columns = np.mgrid[:H, :W] // cells
    labels = ((rows * 5 + columns * 7) % 3).astype(np.uint8)
    image = LEVELS[labels]
    if ignored:
        labels[:cells, :cells], image[:cells, :cells] = 255, 0
    return SegmentationSample(torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(labels))


def drawn(
    transform: Callable[[SegmentationSample], SegmentationSample],
    seed: int,
    sample: SegmentationSample | None = None,
) -> SegmentationSample:
    with seeded(seed):
        return transform(painted() if sample is None else sample)


def seen(image: torch.Tensor) -> np.ndarray:
    """The labels that an image shows; 255 where no colour is clear."""
    levels = image.permute(1, 2, 0).numpy().astype(int)
    shown = levels.argmax(-1).astype(np.uint8)
    shown[levels.max(-1) < 2 * np.sort(levels, -1)[..., 1] + 60] = 255
    return shown


def test_labels_stay_on_their_pixels_through_the_whole_geometry() -> None:
    """The image shows its labels: they agree but for the rims of cells, which are mixed."""
    transform = segmentation_train_transform(
        crop_size=(70, 80), short_edge=60, long_edge=240, photometric=False
    )
    for seed in range(60):
        sample = drawn(transform, seed)
        assert sample.image.shape == (3, 70, 80)
        assert sample.labels.shape == (70, 80)
        labels = sample.labels.numpy()
        # What lies around the window is mixed into its outermost pixels, too.
        differ = (labels != seen(sample.image))[3:-3, 3:-3]
        around = np.lib.stride_tricks.sliding_window_view(labels, (7, 7))
        is_rim = around.min((2, 3)) != around.max((2, 3))
        assert not (differ & ~is_rim).any()
        assert differ.mean() < 0.3
        is_padding = (sample.image == torch.tensor(MEAN_COLOUR).view(3, 1, 1)).all(0)
        assert (sample.labels[is_padding] == 255).all()
        assert set(np.unique(labels)) <= {0, 1, 2, 255}


@pytest.mark.parametrize("size", [(60, 90), (30, 45), (120, 180), (47, 101), (1, 1)])
def test_labels_and_image_are_sampled_at_the_same_places(size: tuple[int, int]) -> None:
    """A ramp: the label's own level differs from the image's by less than a source pixel."""
    H, W = 60, 90
    for axis in (0, 1):
        ramp = np.broadcast_to(np.mgrid[:H, :W][axis] * 2, (H, W)).astype(np.uint8)
        image = torch.from_numpy(np.stack([ramp] * 3, -1)).permute(2, 0, 1)
        sample = resized(SegmentationSample(image, torch.from_numpy(ramp.copy())), size)
        assert sample.image.shape == (3, *size)
        difference = sample.image[0].int() - sample.labels.int()
        step = 2 * (H, W)[axis] / size[axis]
        # Nearest takes the pixel above and to the left, bilinear the middle: half a step apart.
        assert difference.abs().max() <= max(step / 2, 2) + 1


def test_nearest_pixels_are_those_of_opencv() -> None:
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV, for comparison")
    rng = np.random.default_rng(0)
    for _ in range(200):
        length, new = rng.integers(1, 700, 2).tolist()
        row = np.arange(length, dtype=np.float32)[None]
        expected = cv2.resize(row, (new, 1), interpolation=cv2.INTER_NEAREST)[0]
        np.testing.assert_array_equal(nearest_indices(length, new), expected)


def test_labels_are_never_mixed() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).choice([0, 7, 255], (31, 43)))
    sample = SegmentationSample(torch.zeros(3, 31, 43, dtype=torch.uint8), labels.byte())
    for seed in range(20):
        found = drawn(RandomResize(31, 124, (0.5, 2.0)), seed, sample).labels
        assert found.dtype == torch.uint8
        assert set(found.unique().tolist()) <= {0, 7, 255}


def test_sizes_are_drawn_as_published() -> None:
    """int(2048 r) and int(512 r) limit the edges, r even in [0.5, 2]; nothing is rounded to 16."""
    sizes = [drawn(RandomResize(60, 240, (0.5, 2.0)), seed).size for seed in range(400)]
    heights = np.array(sizes)[:, 0]
    assert (heights.min(), heights.max()) == (30, 119)
    assert abs(heights.mean() - 75) < 3
    quartiles = np.quantile(heights, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, [52, 75, 97], atol=5)
    assert all(abs(width - 1.5 * height) <= 0.5 for height, width in sizes)
    strip = SegmentationSample(
        torch.zeros(3, 10, 400, dtype=torch.uint8), torch.zeros(10, 400, dtype=torch.uint8)
    )
    assert drawn(RandomResize(60, 240, (1, 1)), 0, strip).size == (6, 240)


def halves(share: float) -> SegmentationSample:
    """Class 0 up to a column, class 1 from there on: windows of 20 x 20 in 20 x 100."""
    labels = torch.ones(20, 100, dtype=torch.uint8)
    labels[:, : int(100 * share)] = 0
    return SegmentationSample(torch.zeros(3, 20, 100, dtype=torch.uint8), labels)


def share_of_0(sample: SegmentationSample) -> float:
    return float((sample.labels == 0).float().mean())


def test_windows_of_one_class_are_drawn_again() -> None:
    """By the exact chances of ten more draws: 9 of the 81 windows have both classes below 3/4."""
    crop, any_crop = RandomCrop((20, 20)), RandomCrop((20, 20), max_class_share=1)
    num, good = 400, 9 / 81
    varied, plain = (
        np.mean([0.25 < share_of_0(drawn(c, seed, halves(0.5))) < 0.75 for seed in range(num)])
        for c in (crop, any_crop)
    )
    expected = 1 - (1 - good) ** 11  # the last one is taken untested
    assert abs(varied - expected) < 4 * (expected * (1 - expected) / num) ** 0.5
    assert abs(plain - good) < 4 * (good * (1 - good) / num) ** 0.5


def test_a_class_with_exactly_the_share_is_too_much() -> None:
    """Nothing but that: with the share of 3/4 in every window, all draws are used up."""
    labels = torch.tensor([0, 0, 0, 1], dtype=torch.uint8).repeat(8, 10)
    sample = SegmentationSample(torch.zeros(3, 8, 40, dtype=torch.uint8), labels)
    crop = RandomCrop((8, 4), max_class_share=0.75)
    assert not crop._is_varied(cropped(sample, 0, 5, (8, 4)).labels)
    assert RandomCrop((8, 4), max_class_share=0.76)._is_varied(labels)
    labels[:4] = 255  # ignored pixels do not count
    assert not crop._is_varied(labels)
    assert crop._is_varied(torch.tensor([[0, 0, 1, 255]]))


@pytest.mark.parametrize("value", [0, 255])
def test_images_of_one_class_or_all_ignored_are_cropped_all_the_same(value: int) -> None:
    sample = SegmentationSample(
        torch.zeros(3, 40, 50, dtype=torch.uint8), torch.full((40, 50), value, dtype=torch.uint8)
    )
    transform = segmentation_train_transform(crop_size=(32, 32), short_edge=40, long_edge=160)
    labels = drawn(transform, 3, sample).labels
    assert labels.shape == (32, 32)
    assert set(labels.unique().tolist()) <= {value, 255}


def test_windows_are_drawn_evenly_and_small_images_stay_whole() -> None:
    number = torch.arange(30 * 40).reshape(30, 40)
    sample = SegmentationSample(
        torch.stack([number // 256, number % 256, number * 0]).byte(), number
    )
    places = set()
    for seed in range(300):
        window = drawn(RandomCrop((27, 38), 1), seed, sample)
        assert window.size == (27, 38)
        assert torch.equal(window.image[0].int() * 256 + window.image[1], window.labels)
        places.add(int(window.labels[0, 0]))
    assert places == {row * 40 + column for row in range(4) for column in range(3)}
    assert drawn(RandomCrop((64, 38)), 0).size == (60, 38)


def test_a_flip_twice_is_no_flip() -> None:
    sample = painted()
    once = flipped(sample)
    assert torch.equal(once.labels, sample.labels.flip(1))
    assert torch.equal(once.image, sample.image.flip(2))
    assert torch.equal(flipped(once).image, sample.image)
    share = np.mean(
        [torch.equal(drawn(HorizontalFlip(0.25), s).labels, once.labels) for s in range(200)]
    )
    assert 0.15 < share < 0.35
    assert torch.equal(drawn(HorizontalFlip(1), 0).labels, once.labels)


def test_padding_is_ignored_and_nothing_to_the_network() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    sample = drawn(PadTo((64, 100), mean), 0)
    assert torch.equal(sample.image[:, :60, :90], painted().image)
    assert torch.equal(sample.labels[:60, :90], painted().labels)
    assert sample.labels[60:].min() == sample.labels[:, 90:].min() == 255
    assert sample.image[:, 60:].amin((1, 2)).tolist() == list(MEAN_COLOUR)
    assert normalise(sample.image, mean, std)[:, 60:].abs().max() < 0.02
    assert padded(painted(), (60, 90), MEAN_COLOUR).image.shape == (3, 60, 90)
    assert drawn(PadTo((10, 100)), 0).size == (60, 100)
    assert padding_colour((0, 0.5, 1)) == (0, 128, 255)


def test_normalised_images_are_as_torchvision_makes_them() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7), np.uint8))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.1, 0.3)
    found = normalise(images, mean, std)
    expected = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32
    view = images[0].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert normalise(view, mean, std).is_contiguous()
    torch.testing.assert_close(normalise(view, mean, std), found[0])


def test_evaluation_resizes_the_image_by_the_official_rule() -> None:
    image = painted(100, 150).image
    assert segmentation_eval_transform(short_edge=200, long_edge=800)(image).shape == (3, 192, 304)
    plain = segmentation_eval_transform(short_edge=200, long_edge=800, size_rule="keep_ratio")
    assert plain(image).shape == (3, 200, 300)
    official = segmentation_eval_transform()
    assert official(torch.zeros(3, 512, 683, dtype=torch.uint8)).shape == (3, 512, 688)


def test_a_seed_gives_the_same_sample_again() -> None:
    transform = segmentation_train_transform(crop_size=(48, 48), short_edge=60, long_edge=240)
    state = random.getstate()
    one, two = drawn(transform, 5), drawn(transform, 5)
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.labels, two.labels)
    assert not all(torch.equal(drawn(transform, seed).image, one.image) for seed in range(3))
    assert random.getstate() == state


def test_errors_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"short edge .* got 600 and 512"):
        RandomResize(600, 512, (0.5, 2))
    with pytest.raises(ValueError, match=r"range of positive factors, got \(2, 1\)"):
        RandomResize(60, 512, (2, 1))
    with pytest.raises(ValueError, match=r"share of pixels in \(0, 1\], got 0"):
        RandomCrop((4, 4), 0)
    with pytest.raises(ValueError, match=r"rows and columns in pixels, got \(0, 4\)"):
        PadTo((0, 4))
    with pytest.raises(ValueError, match=r"probability in \[0, 1\], got 2"):
        HorizontalFlip(2)
    wrong: Any = "other"
    with pytest.raises(ValueError, match=r"size rule of multiple_of_16, keep_ratio; got 'other'"):
        EvalResize(4, 8, wrong)
