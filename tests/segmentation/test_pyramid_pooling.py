"""Pyramid pooling is adaptive average pooling, written so that it exports."""

import pytest
import torch
import torch.nn.functional as F

from wavevit.segmentation.pyramid_pooling import PyramidPooling, pool_squares

POOL_SIZES = (1, 2, 3, 6)


@pytest.mark.parametrize(
    "size", [(16, 16), (7, 13), (1, 1), (1, 9), (2, 5), (5, 4), (6, 6), (11, 64)], ids=str
)
def test_squares_and_gradients_are_those_of_adaptive_average_pooling(size: tuple[int, int]) -> None:
    """Also of maps smaller than the pools, and of ones that their sides do not divide."""
    torch.manual_seed(0)
    features = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    upstream = [torch.randn(2, 3, S, S, dtype=torch.float64) for S in POOL_SIZES]
    expected = [F.adaptive_avg_pool2d(features, S) for S in POOL_SIZES]
    found = pool_squares(features, POOL_SIZES)
    gradients = []
    for squares in (expected, found):
        total = sum((s * u).sum() for s, u in zip(squares, upstream, strict=True))
        gradients += torch.autograd.grad(total, features)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-14)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-14)


def test_maps_need_not_be_contiguous() -> None:
    torch.manual_seed(0)
    whole = torch.randn(2, 20, 14, 3).permute(0, 3, 1, 2)[..., ::2, 1:]
    for found, S in zip(pool_squares(whole, (4, 5)), (4, 5), strict=True):
        torch.testing.assert_close(found, F.adaptive_avg_pool2d(whole, S))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_as_close_as_its_rounding_allows(dtype: torch.dtype) -> None:
    """Three roundings, one of them of an average's terms, where adaptive pooling has one."""
    torch.manual_seed(0)
    features = (torch.randn(2, 8, 33, 47) * 50 + 50).to(dtype)
    step = torch.finfo(dtype).eps
    for found, S in zip(pool_squares(features, POOL_SIZES), POOL_SIZES, strict=True):
        assert found.dtype == dtype
        expected = F.adaptive_avg_pool2d(features.double(), S)
        torch.testing.assert_close(found.double(), expected, rtol=2 * step, atol=0)


def test_the_map_itself_and_every_square_reach_the_merged_map() -> None:
    torch.manual_seed(0)
    pooling = PyramidPooling(4, 8, POOL_SIZES).train()
    features = torch.randn(2, 4, 5, 7, requires_grad=True)
    merged = pooling(features)
    assert merged.shape == (2, 8, 5, 7)
    merged.square().sum().backward()
    for name, parameter in pooling.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
