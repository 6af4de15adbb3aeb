"""Losses of segmenters have the values that their definitions give."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wavevit.segmentation.losses import DiceLoss, PixelCrossEntropy, check_labels
from wavevit.segmentation.resize import resize_bilinear

K = 3


def draw() -> tuple[Tensor, Tensor]:
    """Logits at a quarter of the label map's size, and the map, some of it ignored."""
    torch.manual_seed(0)
    logits = torch.randn(2, K, 3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, K, (2, 11, 18))
    labels[torch.rand(labels.shape) < 0.3] = 255
    return logits, labels


def of_probabilities(per_pixel: list[float]) -> Tensor:
    """Logits ``(1, 2, 1, N)`` whose class 0 has these probabilities."""
    p = torch.tensor(per_pixel, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()])[None, :, None, :]


def test_the_published_mean_is_over_ignored_pixels_too() -> None:
    labels = torch.tensor([[[0, 1, 255, 255]]])
    logits = torch.zeros(1, 2, 1, 4)
    assert PixelCrossEntropy(2)(logits, labels).item() == pytest.approx(math.log(2) / 2)
    over_valid = PixelCrossEntropy(2, average="valid_pixels")
    assert over_valid(logits, labels).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 0.0)])
def test_values_and_gradients_are_torchs_on_resized_logits(
    weights: tuple[float, ...] | None,
) -> None:
    logits, labels = draw()
    resized = resize_bilinear(logits, labels.shape[-2:])
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    total = F.cross_entropy(resized, labels, weight, ignore_index=255, reduction="sum")
    mean = F.cross_entropy(resized, labels, weight, ignore_index=255)
    for average, expected in (("all_pixels", total / labels.numel()), ("valid_pixels", mean)):
        loss = PixelCrossEntropy(K, class_weights=weights, average=average)(logits, labels)
        torch.testing.assert_close(loss, expected)
        one, other = (torch.autograd.grad(x, logits, retain_graph=True) for x in (loss, expected))
        torch.testing.assert_close(one, other)


def test_only_pixels_below_the_threshold_are_mined() -> None:
    logits, labels = of_probabilities([0.9, 0.4, 0.6, 0.1]), torch.tensor([[[0, 0, 0, 255]]])
    mined = PixelCrossEntropy(2, ohem_threshold=0.5, ohem_min_kept=0)
    assert mined(logits, labels).item() == pytest.approx(-math.log(0.4))
    mined = PixelCrossEntropy(2, ohem_threshold=0.7, ohem_min_kept=0)
    assert mined(logits, labels).item() == pytest.approx(-math.log(0.4 * 0.6) / 2)


def test_the_hardest_pixels_are_mined_in_any_case() -> None:
    logits, labels = of_probabilities([0.9, 0.4, 0.6, 0.1]), torch.tensor([[[0, 0, 0, 255]]])
    for kept, expected in ((1, [0.4]), (2, [0.4, 0.6]), (99, [0.4, 0.6, 0.9])):
        mined = PixelCrossEntropy(2, ohem_threshold=0.2, ohem_min_kept=kept)
        mean = -sum(map(math.log, expected)) / len(expected)
        assert mined(logits, labels).item() == pytest.approx(mean), kept
    # Twice as many of two images, wherever they are.
    pair = torch.cat([logits, of_probabilities([0.95, 0.95, 0.95, 0.95])])
    mined = PixelCrossEntropy(2, ohem_threshold=0.2, ohem_min_kept=1)
    assert mined(pair, labels.expand(2, 1, 4)).item() == pytest.approx(-math.log(0.4 * 0.6) / 2)


def test_class_weights_count_among_mined_pixels() -> None:
    logits, labels = of_probabilities([0.4, 0.4, 0.9]), torch.tensor([[[0, 1, 0]]])
    mined = PixelCrossEntropy(2, class_weights=(1, 3), ohem_threshold=0.7, ohem_min_kept=0)
    expected = -(math.log(0.4) + 3 * math.log(0.6)) / 2
    assert mined(logits, labels).item() == pytest.approx(expected)


def test_dice_is_averaged_over_the_classes_that_are_there() -> None:
    logits, labels = of_probabilities([0.8, 0.4, 0.3]), torch.tensor([[[0, 1, 255]]])
    first = 2 * 0.8 / (0.8**2 + 0.4**2 + 1)
    second = 2 * 0.6 / (0.2**2 + 0.6**2 + 1)
    assert DiceLoss()(logits, labels).item() == pytest.approx(1 - (first + second) / 2)
    labels[labels == 1] = 255
    only = 2 * 0.8 / (0.8**2 + 1)
    assert DiceLoss()(logits, labels).item() == pytest.approx(1 - only)


def test_dice_is_zero_for_certain_and_right() -> None:
    _, labels = draw()
    classes = labels.where(labels != 255, 0)
    certain = 100.0 * F.one_hot(classes, K).permute(0, 3, 1, 2).double()
    assert DiceLoss()(certain, labels).item() == pytest.approx(0, abs=1e-12)


def test_dice_gradients_are_right() -> None:
    logits, labels = draw()
    assert torch.autograd.gradcheck(lambda x: DiceLoss()(x, labels), logits)


@pytest.mark.parametrize(
    "loss",
    [
        PixelCrossEntropy(K),
        PixelCrossEntropy(K, average="valid_pixels"),
        PixelCrossEntropy(K, class_weights=(1, 2, 3), average="valid_pixels"),
        PixelCrossEntropy(K, ohem_threshold=0.7),
        DiceLoss(),
    ],
)
def test_nothing_to_learn_from_costs_nothing(loss: torch.nn.Module) -> None:
    logits, labels = draw()
    value = loss(logits, labels.fill_(255))
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value, logits)
    assert not gradient.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "mean"}, "loss_average must be one of all_pixels, valid_pixels, got 'mean'"),
        ({"class_weights": (1, 2)}, "class_weights must be a list of 3 numbers from 0 on"),
        ({"class_weights": (1, -2, 1)}, "class_weights must be a list of 3 numbers from 0 on"),
        ({"class_weights": (1, math.nan, 1)}, "class_weights must be a list of 3 numbers"),
        ({"ohem_threshold": 70}, r"ohem_threshold must be a number in \[0, 1\], got 70"),
        ({"ohem_min_kept": -1}, "ohem_min_kept must be a whole number from 0 on, got -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelCrossEntropy(K, **options)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs labels beside the images"),
        (torch.zeros(2, 4, 4), r"labels must be int64 of shape \(2, 4, 4\).* got torch.float32"),
        (torch.zeros(2, 4, 5, dtype=torch.long), r"got torch.int64 of shape \(2, 4, 5\)"),
        (torch.full((2, 4, 4), 3), "labels must be 0 to 2, or 255 for pixels to ignore, got 3"),
        (torch.full((2, 4, 4), -1), "labels must be 0 to 2, or 255 .*, got -1"),
        (torch.full((2, 4, 4), 256), "got 256; map the label files' values to classes"),
    ],
)
def test_label_maps_that_do_not_fit_are_refused(labels: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_labels(labels, torch.zeros(2, 3, 4, 4), K)
