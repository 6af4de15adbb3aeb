"""The fit finds what it was made from, and says where attention takes over."""

import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

import wavevit  # noqa: F401 - registers the models
from wavevit.profiling.scaling import Scaling, counted_scaling, fit_scaling

SIZES = (224, 384, 512, 1024, 1536)


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize("factors", [(3e-3, 2e-8, 5e-14), (0, 2e-8, 5e-14), (3e-3, 2e-8, 0)])
def test_a_polynomial_is_found_again(factors: tuple[float, float, float]) -> None:
    truth = Scaling(*factors, worst_error=0.0)
    found = fit_scaling(SIZES, [truth.cost(size) for size in SIZES])
    for size in (32, 700, 2048):
        assert found.cost(size) == pytest.approx(truth.cost(size), rel=1e-6)
    assert found.worst_error < 1e-9
    assert found.quadratic_share(1024) == pytest.approx(truth.quadratic_share(1024), abs=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_crossing_has_the_share(share: float) -> None:
    scaling = Scaling(3e-3, 2e-8, 5e-14, 0.0)
    assert scaling.quadratic_share(scaling.crossing(share)) == pytest.approx(share)
    assert Scaling(1.0, 1.0, 0.0, 0.0).crossing(share) == math.inf


def test_noise_does_not_make_a_part_negative() -> None:
    rng = np.random.default_rng(0)
    truth = Scaling(0.0, 2e-8, 0.0, 0.0)
    noisy = [truth.cost(size) * rng.uniform(0.9, 1.1) for size in SIZES]
    found = fit_scaling(SIZES, noisy)
    assert min(found.constant, found.per_pixel, found.per_pixel_pair) >= 0
    assert found.worst_error < 0.25


def test_counted_flops_of_attention_are_the_quadratic_part() -> None:
    """wavevit_test's four attentions, by hand, per pair of pixels."""
    found = counted_scaling(lambda _: on_meta("wavevit_test"), (64, 128, 256))
    dims, queries, keys = (8, 16, 24, 32), (4, 8, 16, 32), (32, 32, 16, 32)
    by_hand = sum(4 * C / (q * k) ** 2 for C, q, k in zip(dims, queries, keys, strict=True))
    assert found.per_pixel_pair == pytest.approx(by_hand, rel=1e-6)
    assert found.worst_error < 1e-9


def test_convolutions_never_cross() -> None:
    found = counted_scaling(lambda _: nn.Conv2d(3, 4, 3, padding=1), (32, 64, 96))
    assert found.crossing() == math.inf


@pytest.mark.parametrize(
    ("sizes", "costs", "words"),
    [
        ((1, 2), (1, 2), "three sizes or more"),
        ((1, 2, 2), (1, 2, 2), "three sizes or more"),
        ((1, 2, 3), (1, 2), "got 2 costs"),
        ((1, 2, 3), (1, 0, 2), "positive"),
        ((1, 2, 3), (1, math.nan, 2), "positive"),
    ],
)
def test_errors(sizes: tuple[float, ...], costs: tuple[float, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_scaling(sizes, costs)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Scaling(1, 1, 1, 0).crossing(1)
