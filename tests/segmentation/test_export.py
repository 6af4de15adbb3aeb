"""A segmenter in evaluation mode is exported and compiled as one graph."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from wavevit.segmentation import create_segmenter


class TinyPyramid(nn.Module):
    """A backbone that a user built: quick to trace. As in the detectors' tests."""

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


def build(backbone: str | nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return create_segmenter("upernet", backbone, num_classes=3, channels=8).eval()


def assert_exports(segmenter: nn.Module) -> None:
    sides = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    example = (torch.rand(2, 3, 128, 160),)
    program = export(segmenter, example, dynamic_shapes={"images": sides}, strict=False)
    for shape in ((1, 3, 96, 224), (3, 3, 75, 107)):
        images = torch.rand(shape)
        torch.testing.assert_close(
            program.module()(images), segmenter(images), rtol=1e-4, atol=1e-5
        )


def test_one_exported_program_serves_every_batch_and_size() -> None:
    """Also sides that are no multiples of anything."""
    assert_exports(build(TinyPyramid()))


def test_the_segmenter_is_one_graph_to_the_compiler() -> None:
    segmenter = build(TinyPyramid())
    torch._dynamo.reset()
    compiled = torch.compile(segmenter, fullgraph=True, backend="eager")
    images = torch.rand(2, 3, 70, 96)
    torch.testing.assert_close(compiled(images), segmenter(images))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["wavevit_test", "test_resnet", "test_convnext"])
def test_export_and_compilation_with_real_backbones(backbone: str) -> None:
    segmenter = build(backbone)
    assert_exports(segmenter)
    torch._dynamo.reset()
    compiled = torch.compile(segmenter, fullgraph=True)
    images = torch.rand(2, 3, 96, 64)
    torch.testing.assert_close(compiled(images), segmenter(images), rtol=1e-3, atol=1e-4)
