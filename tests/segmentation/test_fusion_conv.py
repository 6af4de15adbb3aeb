"""The convolution of resized maps is that of maps that were resized."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wavevit.segmentation.fusion_conv import FusionConv, conv_of_resized
from wavevit.segmentation.resize import resize_bilinear

# Sizes of the maps: powers of two, a pyramid of odd sizes, single cells, a finer map.
SIZES = [
    [(8, 16), (4, 8), (2, 4), (1, 2)],
    [(27, 13), (14, 7), (7, 4), (4, 2)],
    [(5, 1), (1, 1)],
    [(4, 6), (9, 5)],
    [(3, 5)],
]


def resized_first(maps: Sequence[Tensor], weight: Tensor) -> Tensor:
    size = maps[0].shape[-2:]
    resized = [maps[0], *(resize_bilinear(other, size) for other in maps[1:])]
    return F.conv2d(torch.cat(resized, dim=1), weight, padding=1)


def draw(sizes: Sequence[tuple[int, int]], dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    maps = [torch.randn(2, 3 + i, *size, dtype=dtype) for i, size in enumerate(sizes)]
    channels = sum(m.shape[1] for m in maps)
    return maps, torch.randn(5, channels, 3, 3, dtype=dtype) / (3 * channels**0.5)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients_are_those_of_resizing_first(sizes: list[tuple[int, int]]) -> None:
    maps, weight = draw(sizes, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (*maps, weight)]
    found, expected = conv_of_resized(maps[0], maps[1:], weight), resized_first(maps, weight)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(found)
    pairs = zip(
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_maps_may_lie_either_way_in_memory(layout: torch.memory_format) -> None:
    maps, weight = draw(SIZES[0], torch.float32)
    maps = [m.contiguous(memory_format=layout) for m in maps]
    found = conv_of_resized(maps[0], maps[1:], weight.contiguous(memory_format=layout))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, resized_first(maps, weight))


def test_low_precision_is_at_most_twice_as_far_from_the_truth_as_resizing_first() -> None:
    maps, weight = draw([(32, 48), (16, 24), (8, 12), (4, 6)], torch.float64)
    truth = resized_first(maps, weight)
    low = [m.bfloat16() for m in maps], weight.bfloat16()
    truth = resized_first([m.double() for m in low[0]], low[1].double())
    plain = (resized_first(*low) - truth).abs()
    ours = (conv_of_resized(low[0][0], low[0][1:], low[1]) - truth).abs()
    assert ours.max() <= 2 * plain.max()
    assert ours.mean() <= 2 * plain.mean()


def test_the_norm_folds_into_the_convolution() -> None:
    torch.manual_seed(0)
    fusion = FusionConv(4, 2).eval()
    fusion.norm.running_mean.uniform_(-1, 1)
    fusion.norm.running_var.uniform_(0.5, 2)
    maps = [torch.randn(2, 4, 6, 8), torch.randn(2, 4, 3, 4)]
    with torch.no_grad():
        expected = fusion(maps)
        fusion.reparameterize()
        assert isinstance(fusion.norm, torch.nn.Identity)
        torch.testing.assert_close(fusion(maps), expected)
