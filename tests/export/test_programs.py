"""A part becomes a program for any batch, and for any size where the network allows it."""

import pytest
import torch
from torch import Tensor, nn

from wavevit.export.parts import parts_of
from wavevit.export.programs import Program, program_of

SIZE = (48, 64)


class AnySize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 16, stride=16)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean(dim=(2, 3))


class OneSize(AnySize):
    """Adds a position to each patch, as plain vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.rand(4, SIZE[0] // 16, SIZE[1] // 16))

    def forward(self, images: Tensor) -> Tensor:
        return (self.conv(images) + self.position).mean(dim=(2, 3))


class OneBatch(AnySize):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + torch.ones(2, 4)


def program(module: nn.Module) -> Program:
    (part,) = parts_of(module, SIZE)
    return program_of(module.eval(), part, SIZE)


def test_batch_and_size_are_free_where_the_network_allows_it() -> None:
    model = AnySize()
    found = program(model)
    assert found.shapes == (("batch", 3, "height", "width"),)
    assert found.output_names == ("logits",)
    for shape in ((1, 3, 32, 80), (5, 3, 64, 64)):
        x = torch.rand(shape)
        torch.testing.assert_close(found.exported.module()(x)[0], model(x))


def test_a_network_for_one_size_is_exported_for_that_size() -> None:
    model = OneSize()
    found = program(model)
    assert found.shapes == (("batch", 3, *SIZE),)
    assert found.least == {}
    x = torch.rand(3, 3, *SIZE)
    torch.testing.assert_close(found.exported.module()(x)[0], model(x))


def test_a_network_for_one_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"for any batch and size: the batch has to be 2"):
        program(OneBatch())
