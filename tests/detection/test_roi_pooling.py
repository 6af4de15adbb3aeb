"""Regions get the features under them, from the level of their size."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from wavevit.detection.roi_pooling import RoIPooling, assign_levels, join_regions
from wavevit.detection.separable_roi_align import separable_roi_align

STRIDES = (4, 8, 16, 32)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def levels(generator: torch.Generator, channels: int = 3) -> list[Tensor]:
    return [torch.randn(2, channels, 96 // s, 128 // s, generator=generator) for s in STRIDES]


def scattered_regions(generator: torch.Generator, count: int = 60) -> Tensor:
    """Some inside, some over the border, some far outside; from a pixel's part to everything."""
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([200.0, 150]) - 40
    sides = torch.exp(torch.rand(count, 2, generator=generator) * 7 - 2)
    image = torch.randint(2, (count, 1), generator=generator)
    return torch.cat([image, corner, corner + sides], dim=1)


@pytest.mark.parametrize(
    ("width", "height", "level"),
    [
        (0, 0, 0),
        (1, 1, 0),
        (111, 111, 0),
        (112, 112, 1),
        (224, 224, 2),
        (448, 448, 3),
        (9000, 9000, 3),
        (448, 28, 1),
        (-5, 9, 0),
    ],
)
def test_the_level_follows_from_the_area(width: float, height: float, level: int) -> None:
    box = torch.tensor([[10.0, 20, 10 + width, 20 + height]])
    assert assign_levels(box, num_levels=4).tolist() == [level]


def test_a_ramp_is_pooled_to_the_middles_of_the_bins() -> None:
    ramp = torch.arange(32.0).expand(1, 1, 24, 32)
    region = torch.tensor([[0.0, 16, 8, 72, 64]])
    pooled = RoIPooling(7, (4,))([ramp], region)
    middles = (16 + (torch.arange(7) + 0.5) * 8) / 4 - 0.5
    torch.testing.assert_close(pooled[0, 0], middles.expand(7, 7))
    down = RoIPooling(7, (4,))([ramp.transpose(2, 3)], torch.tensor([[0.0, 8, 16, 64, 72]]))
    torch.testing.assert_close(down[0, 0], middles[:, None].expand(7, 7))


def test_regions_keep_their_order_and_their_image(generator: torch.Generator) -> None:
    features = [*levels(generator), torch.full((2, 3, 1, 1), torch.nan)]  # P6 is not looked at
    boxes = [scattered_regions(generator, 8)[:, 1:], scattered_regions(generator, 5)[:, 1:]]
    boxes[0][3] = torch.tensor([0.0, 0, 9000, 9000])
    pooling = RoIPooling(7, STRIDES)
    together = pooling(features, join_regions(boxes))
    assert together.shape == (13, 3, 7, 7)
    alone = [
        pooling([level[image : image + 1] for level in features], join_regions([box[None]]))
        for image, of_image in enumerate(boxes)
        for box in of_image
    ]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("size", [7, 14])
def test_matrix_products_equal_torchvisions_loop(
    generator: torch.Generator, sampling_ratio: int, size: int
) -> None:
    """Values and gradients; both sides are exact but for rounding."""
    features = torch.randn(2, 3, 13, 19, generator=generator).double().requires_grad_()
    regions = scattered_regions(generator).double()
    ours = separable_roi_align(features, regions, size, 1 / 8, sampling_ratio)
    theirs = roi_align(features, regions, size, 1 / 8, sampling_ratio, aligned=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.randn(theirs.shape, generator=generator).double()
    gradients = [torch.autograd.grad((x * weights).sum(), features)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_either_memory_order_of_the_map_serves(generator: torch.Generator) -> None:
    features = levels(generator)[0]
    regions = scattered_regions(generator)
    last = features.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        separable_roi_align(features, regions, 7, 1 / 4, 0),
        separable_roi_align(last, regions, 7, 1 / 4, 0),
    )


def test_no_regions_leave_gradients_of_zero(generator: torch.Generator) -> None:
    features = [level.requires_grad_() for level in levels(generator)]
    pooled = RoIPooling(7, STRIDES)(features, join_regions([torch.zeros(0, 4)] * 2))
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert all(level.grad is not None and not level.grad.any() for level in features)


def test_coordinates_are_exact_in_half_precision(generator: torch.Generator) -> None:
    """bf16 would move a box at 500 pixels by up to one."""
    features = [level.bfloat16() for level in levels(generator)]
    regions = scattered_regions(generator)
    pooled = RoIPooling(7, STRIDES)(features, regions)
    exact = RoIPooling(7, STRIDES)([level.float() for level in features], regions)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, exact.bfloat16())


def test_autocast_does_not_lower_the_precision(generator: torch.Generator) -> None:
    features = levels(generator)[0].requires_grad_()
    regions = scattered_regions(generator)
    exact = separable_roi_align(features, regions, 7, 1 / 4, 0)
    (expected,) = torch.autograd.grad(exact.square().sum(), features)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = separable_roi_align(features, regions, 7, 1 / 4, 0)
        (gradient,) = torch.autograd.grad(pooled.square().sum(), features)
    assert torch.equal(pooled, exact)
    assert torch.equal(gradient, expected)


def test_boxes_that_are_no_numbers_do_not_crash(generator: torch.Generator) -> None:
    broken = torch.tensor([[0, torch.nan, 0, torch.inf, 5], [1, -torch.inf, 0, torch.inf, 1e30]])
    for ratio in (0, 2):
        regions = broken if ratio else broken[:1] * 0
        assert RoIPooling(7, STRIDES, ratio)(levels(generator), regions).isfinite().all()
