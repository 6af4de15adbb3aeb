"""Operations of inference on a CPU equal PyTorch's, apply where they should, and are counted."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import wavevit
from wavevit.ops import cpu_inference
from wavevit.ops.cpu_inference import gelu, layer_norm, linear, rational_gelu

needs_onednn = pytest.mark.skipif(
    not cpu_inference._onednn_is_here(), reason="PyTorch is built without oneDNN or MKL"
)


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_inference, "MIN_PRODUCTS", 0)


def operations(model: Callable[..., Any], *inputs: Tensor) -> set[str]:
    """Names of what a compiler is given of the model."""
    names: set[str] = set()

    def note(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        names.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(model, backend=note, dynamic=False)(*inputs)
    return names


@needs_onednn
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (7, 5), (2, 3, 1, 5), (2, 9, 7, 5)])
def test_linear_is_pytorchs(shape: tuple[int, ...], with_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(6, 5)
    bias = torch.randn(6) if with_bias else None
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))
    assert weight in cpu_inference._packed


@needs_onednn
def test_linear_takes_tensors_that_are_not_contiguous() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 9, 8).permute(0, 3, 2, 1)[:, ::2]
    weight, bias = torch.randn(6, 10).t(), torch.randn(20)[::2]
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))
        empty = linear(x[:0], weight, bias)
    assert empty.shape == F.linear(x[:0], weight, bias).shape


@needs_onednn
def test_a_changed_weight_is_packed_anew_and_one_that_is_gone_is_forgotten() -> None:
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    with torch.no_grad():
        assert linear(x, weight, None).eq(3).all()
        weight.mul_(2)
        assert linear(x, weight, None).eq(6).all()
        weight.data = torch.full((4, 3), 5.0)
        assert linear(x, weight, None).eq(15).all()
    assert weight in cpu_inference._packed
    gc.collect()  # what other tests have left
    known = len(cpu_inference._packed)
    del weight
    gc.collect()
    assert len(cpu_inference._packed) == known - 1


@needs_onednn
def test_a_weight_made_in_inference_mode_is_never_stale() -> None:
    with torch.inference_mode():
        x, weight = torch.ones(2, 3), torch.ones(4, 3)
        assert linear(x, weight, None).eq(3).all()
        weight.mul_(2)
        assert linear(x, weight, None).eq(6).all()


def test_elsewhere_linear_is_pytorchs_own() -> None:
    x, weight = torch.randn(2, 3), torch.randn(4, 3, requires_grad=True)
    assert linear(x, weight, None).requires_grad
    with torch.no_grad():
        assert linear(x.double(), weight.double(), None).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight, None).dtype == torch.bfloat16
        mapped = torch.vmap(lambda row: linear(row, weight, None))(x)
        torch.testing.assert_close(mapped, F.linear(x, weight))
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            linear(x[:, :2], weight, None)
    assert weight not in cpu_inference._packed


def test_rational_gelu_is_exact_up_to_rounding() -> None:
    x = torch.cat((torch.linspace(-30, 30, 600_001), torch.linspace(-1e-3, 1e-3, 2001)))
    exact = F.gelu(x.double())
    assert ((rational_gelu(x) - exact).abs() <= 1e-6 + exact.abs() * 2**-22).all()
    small = x.abs() < 1
    assert (rational_gelu(x) - exact)[small].abs().max() < 2e-7
    special = torch.tensor([0.0, torch.inf, torch.nan])
    torch.testing.assert_close(rational_gelu(special), F.gelu(special), equal_nan=True)


def test_a_compiler_gets_them_without_gradients_only() -> None:
    def network(x: Tensor) -> Tensor:
        return gelu(layer_norm(x, [8], None, None, 1e-6))

    x = torch.randn(3, 8)
    with torch.no_grad():
        compiled = operations(network, x)
    assert any("wavevit.layer_norm" in name for name in compiled)
    assert not any("gelu" in name for name in compiled)
    training = operations(network, x.requires_grad_())
    assert any("gelu" in name for name in training)
    assert not any("wavevit" in name for name in training)


def test_layer_norm_keeps_its_numbers() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 8, 5, 3).permute(0, 2, 3, 1), torch.randn(8), torch.randn(8)
    with torch.no_grad():
        result = torch.ops.wavevit.layer_norm(x, [8], weight, bias, 1e-6)
    torch.testing.assert_close(result, F.layer_norm(x, [8], weight, bias, 1e-6))


@pytest.fixture
def fused() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = wavevit.fuse(timm.create_model("wavevit_test", num_classes=5).eval())
    return model


@needs_onednn
def test_the_inference_form_takes_them_all(fused: nn.Module) -> None:
    images = torch.randn(1, 3, 40, 36)
    with torch.inference_mode():
        compiled = operations(fused, images)
    assert {name.split(".")[1] for name in compiled if name.startswith("wavevit.")} == {
        "packed_linear",
        "layer_norm",
    }
    ours = {"linear", "layer_norm", "gelu"}
    assert {name for name in ours if any(f"built-in {name}" in each for each in compiled)} <= {
        "linear",  # of the head and the class token's own feed-forward network
        "gelu",
        "layer_norm",
    }


def test_exported_programs_hold_none_of_them(fused: nn.Module) -> None:
    with torch.no_grad():
        program = torch.export.export(fused, (torch.randn(2, 3, 64, 64),), strict=False)
    assert not [node for node in program.graph.nodes if "wavevit" in str(node.target)]


def test_flops_of_the_inference_form_are_counted(fused: nn.Module) -> None:
    images = torch.randn(1, 3, 64, 64)
    counts = []
    for model in (timm.create_model("wavevit_test", num_classes=5).eval(), fused):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(images)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_the_inference_form_still_differentiates(fused: nn.Module) -> None:
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    fused(images).sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
