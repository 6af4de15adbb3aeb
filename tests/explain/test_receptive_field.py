"""Effective receptive fields of networks whose receptive field is known."""

import pytest
import timm
import torch
from torch import Tensor, nn

import wavevit
from wavevit import explain


class Stack(nn.Module):
    """Convolutions with weights of ones, and perhaps a norm over the channels at the end."""

    def __init__(self, *convolutions: nn.Conv2d, norm: nn.Module | None = None) -> None:
        super().__init__()
        for convolution in convolutions:
            nn.init.ones_(convolution.weight)
        self.body = nn.Sequential(*convolutions, norm or nn.Identity())
        self.feature_info = [{"num_chs": 1, "reduction": 1, "module": "body"}]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_one_3x3_convolution_sees_3x3_pixels_equally() -> None:
    field = explain.effective_receptive_field(
        Stack(nn.Conv2d(3, 1, 3, padding=1, bias=False)), image_size=(7, 9), num_images=2
    )
    expected = torch.zeros(7, 9)
    expected[2:5, 3:6] = 1 / 9
    torch.testing.assert_close(field, expected)
    assert explain.central_side(field, 1.0) == 3
    assert explain.central_side(field, 0.1) == 1


def test_two_convolutions_see_the_product_of_two_triangles() -> None:
    layers = [nn.Conv2d(3, 1, 3, padding=1, bias=False), nn.Conv2d(1, 1, 3, padding=1, bias=False)]
    field = explain.effective_receptive_field(Stack(*layers), image_size=9, num_images=1)
    triangle = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0])
    expected = torch.zeros(9, 9)
    expected[2:7, 2:7] = torch.outer(triangle, triangle) / 81
    torch.testing.assert_close(field, expected)


def test_shares_of_squares() -> None:
    field = torch.full((6, 6), 1 / 36)
    assert [explain.central_side(field, s) for s in (4 / 36, 5 / 36, 16 / 36, 1.0)] == [2, 4, 4, 6]


def test_a_normalised_map_whose_channels_sum_to_a_constant_has_a_field() -> None:
    """The sum over the channels of a LayerNorm without affine part has no gradient at all."""
    torch.manual_seed(0)
    model = timm.create_model("wavevit_test")
    field = explain.effective_receptive_field(model, 0, image_size=(64, 96), num_images=2)
    assert field.shape == (64, 96)
    assert field.sum() == pytest.approx(1, abs=1e-5)
    # Rounding of a constant would be noise all over; this is a hill at the centre.
    assert field[24:41, 40:57].sum() > 0.5
    again = explain.effective_receptive_field(model, 0, image_size=(64, 96), num_images=2)
    torch.testing.assert_close(again, field)


def test_it_grows_from_stage_to_stage_and_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet").train()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        sides = [
            explain.central_side(explain.effective_receptive_field(model, stage, x), 0.5)
            for stage in range(4)
        ]
    assert sides == sorted(sides)
    assert sides[0] < sides[-1]
    assert model.training
    assert not x.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_of_a_segmenter_it_is_that_of_its_backbone() -> None:
    torch.manual_seed(0)
    model = wavevit.create_segmenter("upernet", backbone="wavevit_test", num_classes=3)
    x = torch.randn(1, 3, 64, 96)
    found = explain.effective_receptive_field(model, 2, x)
    torch.testing.assert_close(
        found, explain.effective_receptive_field(model.network.backbone.body, 2, x)
    )


def test_mistakes() -> None:
    model = Stack(nn.Conv2d(3, 1, 3, padding=1, bias=False))
    with pytest.raises(ValueError, match="either images or image_size"):
        explain.effective_receptive_field(model)
    with pytest.raises(ValueError, match="num_images of at least 1"):
        explain.effective_receptive_field(model, image_size=8, num_images=0)
    with pytest.raises(ValueError, match=r"share in \(0, 1\], got 0"):
        explain.central_side(torch.ones(3, 3), 0)
