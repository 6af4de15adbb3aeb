"""The U-Net with wavelets loses nothing on the way down and learns."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 48), (65, 97)])
def test_unpool_is_the_exact_inverse_of_pool(
    load_example: Callable[[str], ModuleType], size: tuple[int, int]
) -> None:
    example = load_example("dwt_unet")
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    low, details = example.WaveletPool()(x)
    assert low.shape == (2, 5, (size[0] + 1) // 2, (size[1] + 1) // 2)
    torch.testing.assert_close(example.WaveletUnpool()(low, details, size), x)


def test_the_network_without_its_convolutions_is_the_identity_at_odd_sizes(
    load_example: Callable[[str], ModuleType],
) -> None:
    model = load_example("dwt_unet").WaveletUNet(3, 3, widths=(3, 3, 3, 3)).double()
    for layers in (model.encoders, model.lows, model.decoders):
        for index in range(len(layers)):
            layers[index] = nn.Identity()
    model.head = nn.Identity()
    x = torch.randn(2, 3, 45, 77, dtype=torch.float64)
    torch.testing.assert_close(model(x), x)


def test_it_learns_to_tell_textures_apart_by_detail_alone(
    load_example: Callable[[str], ModuleType],
) -> None:
    example = load_example("dwt_unet")
    model = example.WaveletUNet(1, len(example.TEXTURES))
    losses = example.train(model, steps=25, size=(33, 49))
    assert min(losses[-3:]) < 0.5 * losses[0]
    assert example.pixel_accuracy(model, (51, 37)) > 0.8
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
