"""A traced transform gives the same tensors, and knows where each point came from, and the fill."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import AugmentOp, RandAugment
from torchvision.transforms import (
    Compose,
    RandomAffine,
    RandomHorizontalFlip,
    RandomVerticalFlip,
    ToTensor,
)

from wavevit.data.geometry import View, policy_operations
from wavevit.data.loader import seeded
from wavevit.data.transforms import TracedTransform, train_transform

MOVES = {
    "Rotate",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "TranslateXRel",
    "TranslateYRel",
}
POLICIES = [
    None,
    "rand-m9-mstd0.5-inc1",
    "rand-m9-n3-mstd0.5",
    "rand-m15-n3-p1.0-mstd101-mmax20-inc1",
    "rand-tweights",
    "rand-t3aw-inc1",
    "original-mstd0.5",
    "v0",
    "v0r",
    "3a",
]


def augmentation(rand_augment: str | None, **changes: Any) -> Any:
    """Black fill, values in [0, 1]."""
    settings: dict[str, Any] = {
        "crop_scale": (0.08, 1.0),
        "crop_ratio": (3 / 4, 4 / 3),
        "hflip": 0.5,
        "vflip": 0.5,
        "color_jitter": 0.3,
        "random_erasing": 0.0,
        "interpolation": "random",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }
    return train_transform((80, 112), rand_augment=rand_augment, **{**settings, **changes})


def same(view: View, other: View) -> bool:
    return np.array_equal([view.to_source, *view.windows], [other.to_source, *other.windows])


def points(affine: np.ndarray, xy: np.ndarray) -> np.ndarray:
    return xy @ affine[:, :2].T + affine[:, 2]


@pytest.mark.parametrize("rand_augment", POLICIES)
@pytest.mark.parametrize("interpolation", ["random", "bicubic"])
def test_tensors_and_draws_are_those_of_the_plain_transform(
    picture: Image.Image, rand_augment: str | None, interpolation: str
) -> None:
    plain = augmentation(rand_augment, interpolation=interpolation, random_erasing=0.5)
    traced = TracedTransform(plain)
    for seed in range(25):
        with seeded(seed):
            expected, number = plain(picture), (torch.rand(1), np.random.rand())
        with seeded(seed):
            tensor, view = traced(picture)
            assert (torch.rand(1), np.random.rand()) == number
        assert torch.equal(tensor, expected)
        for affine in (view.to_source, *view.windows):
            assert (affine.shape, affine.dtype) == ((2, 3), np.float64)


def blob(width: int, height: int, x: float, y: float) -> Image.Image:
    """A soft spot whose centre of mass is at (x, y)."""
    columns, rows = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    spot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 2.0**2))
    return Image.fromarray(np.repeat(spot.round()[..., None], 3, -1).astype(np.uint8))


def centre(tensor: torch.Tensor) -> np.ndarray:
    """The centre of mass, scaled to [0, 1] x [0, 1], x first."""
    weight = tensor[0].double().numpy()
    H, W = weight.shape
    x = (weight.sum(0) * (np.arange(W) + 0.5)).sum() / weight.sum() / W
    y = (weight.sum(1) * (np.arange(H) + 0.5)).sum() / weight.sum() / H
    return np.array([x, y])


@pytest.mark.parametrize("size", [(90, 60), (61, 97)])
@pytest.mark.parametrize("magnitude", [3, 10])
@pytest.mark.parametrize("name", sorted(MOVES))
def test_each_operation_moves_a_spot_as_traced(
    name: str, magnitude: int, size: tuple[int, int]
) -> None:
    hparams = {"translate_const": 20, "translate_pct": 0.2, "img_mean": (0, 0, 0)}
    operation = AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)
    transform = TracedTransform(Compose([RandAugment([operation], 1), ToTensor()]))
    width, height = size
    x, y = 0.45 * width, 0.54 * height
    image = blob(width, height, x, y)
    seen = set()
    for seed in range(6):
        with seeded(seed):
            tensor, view = transform(image)
        found = centre(tensor)
        seen.add(tuple(view.to_source.ravel()))
        assert np.abs(found * size - [x, y]).max() > 0.5  # it has moved
        assert np.abs(points(view.to_source, found) * size - [x, y]).max() < 0.15
    assert len(seen) == 2  # either sign


def test_operations_have_the_magnitude_asked_for() -> None:
    """Known answers: 30 degrees about the centre, a shear of 0.3, a translation by 0.45 widths."""
    expected = {
        "ShearX": [[1, 0.3 * 60 / 90, 0], [0, 1, 0]],
        "TranslateYRel": [[1, 0, 0], [0, 1, 0.45]],
        "TranslateX": [[1, 0, 20 / 90], [0, 1, 0]],
    }
    cosine, sine = math.sqrt(3) / 2, 1 / 2
    linear = np.array([[cosine, -sine * 60 / 90], [sine * 90 / 60, cosine]])
    rotated = np.c_[linear, [0.5, 0.5] - linear @ [0.5, 0.5]]
    for name, affine in [*expected.items(), ("Rotate", rotated)]:
        hparams = {"translate_const": 20, "img_mean": (0, 0, 0)}
        operation = AugmentOp(name, prob=1.0, magnitude=10, hparams=hparams)
        transform = TracedTransform(Compose([RandAugment([operation], 1), ToTensor()]))
        found = []
        for seed in range(8):
            with seeded(seed):
                found.append(transform(Image.new("RGB", (90, 60)))[1].to_source)
        assert min(np.abs(to_source - affine).max() for to_source in found) < 1e-12


@pytest.mark.parametrize("step", [RandomHorizontalFlip(1.0), RandomVerticalFlip(1.0)])
def test_flips(step: Any) -> None:
    transform = TracedTransform(Compose([step, ToTensor()]))
    tensor, view = transform(blob(90, 60, 54, 25))
    assert np.abs(points(view.to_source, centre(tensor)) * [90, 60] - [54, 25]).max() < 0.02
    assert np.linalg.det(view.to_source[:, :2]) == -1


def ramps(width: int, height: int) -> Image.Image:
    """Red tells x, green tells y, and blue that there is no fill."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    channels = [x / width * 255, y / height * 255, np.full_like(x, 255)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


@pytest.mark.parametrize("rand_augment", ["rand-m10-n4-p0.9-mstd0.5-inc1", "v0", "3a"])
def test_every_pixel_lies_where_the_trace_of_the_whole_pipeline_says(rand_augment: str) -> None:
    """With colours left alone a ramp tells each pixel's origin; they do not touch the affine."""
    full = augmentation(rand_augment, color_jitter=None)
    colourless = augmentation(rand_augment, color_jitter=None)
    for step in colourless.transforms:
        for operation in policy_operations(step):
            if operation.name not in MOVES:
                operation.aug_fn = _leave
    traced, traced_colourless = TracedTransform(full), TracedTransform(colourless)
    width, height = 125, 80
    image = ramps(width, height)
    negative = ImageOps.invert(image)
    x, y = np.meshgrid((np.arange(112) + 0.5) / 112, (np.arange(80) + 0.5) / 80)
    sheared, errors = 0, []
    for seed in range(100):
        with seeded(seed):
            tensor, view = traced_colourless(image)
        with seeded(seed):
            assert same(traced(image)[1], view)
        with seeded(seed):
            opposite = 1 - traced_colourless(negative)[0]
        sheared += bool(np.abs(view.to_source[[0, 1], [1, 0]]).max() > 0.05)
        # Filters at the edge of the fill mix it in; at the image's own edge they flatten the ramp.
        expected = points(view.to_source, np.stack([x, y], -1))
        inside = _eroded(tensor[2].numpy() == 1) & ((expected > 0.02) & (expected < 0.98)).all(-1)
        if inside.sum() < 200:
            continue
        # Pillow rounds down: the mean of ramp and negative is off by half a level at most.
        found = (tensor + opposite)[:2].permute(1, 2, 0).double().numpy() / 2
        error = (found - expected)[inside] * [width, height]  # pixels of the image
        assert np.abs(error).max() < 1.5  # several roundings to 8 bits
        assert np.abs(error.mean(0)).max() < 0.3  # half a level is 0.25 pixels
        errors.append(error.mean(0))
    assert np.abs(np.mean(errors, 0)).max() < 0.02
    assert sheared > 20 or rand_augment == "3a"


def _leave(image: Image.Image, *_: object, **__: object) -> Image.Image:
    return image


def _eroded(mask: np.ndarray, margin: int = 3) -> np.ndarray:
    padded = np.pad(mask, margin, constant_values=True)
    views = np.lib.stride_tricks.sliding_window_view(padded, (2 * margin + 1,) * 2)
    return views.all((2, 3))


def unfilled(view: View, tensor: torch.Tensor, margin: float = 0.0) -> np.ndarray:
    """Which pixels show the source by the view's windows made smaller, bool ``(H, W)``."""
    H, W = tensor.shape[-2:]
    xy = np.stack(np.meshgrid((np.arange(W) + 0.5) / W, (np.arange(H) + 0.5) / H), -1)
    far = [np.abs(points(window, xy) - 0.5).max(-1) for window in view.windows]
    return np.max(far, 0) <= 0.5 - margin


@pytest.mark.parametrize("name", sorted(MOVES))
def test_an_operation_fills_just_the_pixels_outside_of_its_window(name: str) -> None:
    hparams = {"translate_const": 20, "translate_pct": 0.2, "img_mean": (0, 0, 0)}
    operation = AugmentOp(name, prob=1.0, magnitude=9, hparams=hparams)
    transform = TracedTransform(Compose([RandAugment([operation], 1), ToTensor()]))
    for seed in range(6):
        with seeded(seed):
            tensor, view = transform(Image.new("RGB", (91, 60), "white"))
        expected = unfilled(view, tensor)
        assert 0.5 < expected.mean() < 0.95
        assert np.array_equal(tensor[0].numpy() == 1, expected)


def test_a_translation_there_and_back_leaves_fill_although_the_affine_is_the_identity() -> None:
    hparams = {"translate_const": 20, "img_mean": (0, 0, 0)}
    operation = AugmentOp("TranslateX", prob=1.0, magnitude=10, hparams=hparams)
    transform = TracedTransform(Compose([RandAugment([operation], 2), ToTensor()]))
    found = []
    for seed in range(8):
        with seeded(seed):
            tensor, view = transform(Image.new("RGB", (90, 60), "white"))
        assert np.array_equal(tensor[0].numpy() == 1, unfilled(view, tensor))
        if np.abs(view.to_source - [[1, 0, 0], [0, 1, 0]]).max() < 1e-12:
            found.append(unfilled(view, tensor)[0].tolist())
    assert [False] * 20 + [True] * 70 in found
    assert [True] * 70 + [False] * 20 in found


def test_a_crop_that_leaves_the_image_is_seen_as_such() -> None:
    """timm's own never does."""
    changes = {"hflip": 1.0, "vflip": 0.0, "interpolation": "bilinear", "color_jitter": None}
    transform = augmentation(None, **changes)
    transform.transforms[0].get_params = lambda image, *_: (-20, 30, 60, 120)
    tensor, view = TracedTransform(transform)(Image.new("RGB", (100, 70), "white"))
    corners = points(view.to_source, np.array([[1, 0], [0, 1]])) * [100, 70]
    np.testing.assert_allclose(corners, [[30, -20], [150, 40]], atol=1e-12)
    expected = unfilled(view, tensor)
    assert 0.3 < expected.mean() < 0.4  # 70 of 120 columns, 40 of 60 rows
    assert np.array_equal(tensor[0].numpy() > 0.5, expected)


@pytest.mark.parametrize("rand_augment", ["rand-m10-n4-p0.9-mstd0.5-inc1", "v0"])
def test_fill_of_the_whole_pipeline_is_where_its_windows_say(rand_augment: str) -> None:
    transform = augmentation(rand_augment, color_jitter=None)
    for step in transform.transforms:
        for operation in policy_operations(step):
            if operation.name not in MOVES:
                operation.aug_fn = _leave
    traced = TracedTransform(transform)
    partly = 0
    for seed in range(100):
        with seeded(seed):
            tensor, view = traced(Image.new("RGB", (125, 80), "white"))
        partly += bool(0.1 < unfilled(view, tensor).mean() < 0.9)
        # At the edge of the fill each later move rounds to pixels and mixes it in.
        assert (tensor[0].numpy()[unfilled(view, tensor, 0.05)] == 1).all()
        assert (tensor[0].numpy()[~unfilled(view, tensor, -0.05)] == 0).all()
    assert partly > 20


def test_copies_trace_on_their_own_and_survive_pickling(picture: Image.Image) -> None:
    transform = TracedTransform(augmentation("rand-m10-n3-p1.0-inc1"))
    copied = pickle.loads(pickle.dumps(transform))
    for seed in range(5):
        with seeded(seed):
            tensor, view = transform(picture)
        with seeded(seed):
            other, other_view = copied(picture)
        assert torch.equal(tensor, other)
        assert same(view, other_view)


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (augmentation("augmix-m3-w2"), "AugMixAugment"),
        (Compose([RandomAffine(10), ToTensor()]), "RandomAffine"),
        (torch.nn.Identity(), "Identity"),
    ],
)
def test_what_is_no_single_affine_view_is_refused(transform: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"not known of {name}; choose a RandAugment"):
        TracedTransform(transform)


def test_an_operation_that_nobody_has_looked_at_is_refused() -> None:
    transform = augmentation("rand-m9")
    next(iter(policy_operations(transform.transforms[3]))).name = "Perspective"
    with pytest.raises(ValueError, match="not known of Perspective"):
        TracedTransform(transform)
