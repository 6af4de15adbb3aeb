"""The tensor-only part of the dense detectors is exported and compiled as one graph."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

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
    sides = {0: Dim("batch", min=1, max=16)}
    sides |= {2 + i: 32 * Dim(side, min=2, max=40) for i, side in enumerate(("rows", "columns"))}
    program = export(model, (torch.rand(2, 3, 128, 160),), dynamic_shapes={"images": sides})
    other = torch.rand(1, 3, 96, 224)
    torch.testing.assert_close(program.module()(other), model(other))


@pytest.mark.parametrize("name", DENSE)
def test_one_exported_program_serves_every_batch_and_size(name: str) -> None:
    assert_exports(network(name, TinyPyramid()))


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
