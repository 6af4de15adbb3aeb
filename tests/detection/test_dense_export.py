"""The tensor-only part of the dense detectors is exported and compiled as one graph."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from wavevit.detection import create_detector

DENSE = ("retinanet", "atss", "gfl")
NARROW = {"fpn_channels": 16, "head_channels": 16, "num_tower_convs": 1}


class TinyPyramid(nn.Module):
    """A backbone that a user built: quick to trace."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1)
            for c_in, c_out, stride in ((3, 4, 4), (4, 6, 2), (6, 8, 2), (8, 10, 2))
        )
        self.feature_info = SimpleNamespace(
            reduction=lambda: [4, 8, 16, 32],
            channels=lambda: [4, 6, 8, 10],
            module_name=lambda: [f"stages.{i}" for i in range(4)],
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x).relu()
            maps.append(x)
        return maps


def network(name: str, backbone: str | nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return create_detector(name, backbone, num_classes=3, **NARROW).eval().network


def assert_exports(model: nn.Module) -> None:
    program = exported(model, 160, 192)
    for shape in ((1, 3, 256, 160), (3, 3, 160, 320)):
        other = torch.rand(shape)
        torch.testing.assert_close(program.module()(other), model(other))


def exported(model: nn.Module, height: int, width: int) -> ExportedProgram:
    """A program for any batch and sides, as far as it can be had from an image of this size."""
    sides = {0: Dim("batch", min=1, max=16)}
    sides |= {2 + i: 32 * Dim(side, min=2, max=40) for i, side in enumerate(("rows", "columns"))}
    return export(model, (torch.rand(2, 3, height, width),), dynamic_shapes={"images": sides})


@pytest.mark.parametrize("name", DENSE)
def test_one_exported_program_serves_every_batch_and_size(name: str) -> None:
    assert_exports(network(name, TinyPyramid()))


@pytest.mark.parametrize(
    ("example", "refused"), [((160, 192), (128, 160)), ((128, 160), (160, 160))]
)
def test_sides_of_128_pixels_and_of_more_need_programs_of_their_own(
    example: tuple[int, int], refused: tuple[int, int]
) -> None:
    """The coarsest level's stride is 128; torch.export takes a side of one cell for a constant."""
    program = exported(network("gfl", TinyPyramid()), *example).module()
    with pytest.raises((AssertionError, RuntimeError), match="Guard failed"):
        program(torch.rand(1, 3, *refused))


@pytest.mark.parametrize("name", DENSE)
def test_the_network_is_one_graph_to_the_compiler(name: str) -> None:
    model = network(name, TinyPyramid())
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    image = torch.rand(2, 3, 96, 64)
    torch.testing.assert_close(compiled(image), model(image))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["wavevit_test", "test_resnet", "test_convnext"])
@pytest.mark.parametrize("name", DENSE)
def test_export_and_compilation_with_real_backbones(name: str, backbone: str) -> None:
    model = network(name, backbone)
    assert_exports(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    image = torch.rand(2, 3, 96, 64)
    torch.testing.assert_close(compiled(image), model(image), rtol=1e-3, atol=1e-4)
