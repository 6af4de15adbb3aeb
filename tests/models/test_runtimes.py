"""Every runtime gives the network's outputs, for any batch, and says why it cannot run."""

import importlib.util
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wavevit  # noqa: F401 - registers the models
from wavevit.models.openvino_graphs import num_streams
from wavevit.models.runtimes import prepare, with_runtime


def needs_openvino(test: Any) -> Any:
    """Slow, so that it runs apart: OpenVINO's threads do not outlive a later test's fork."""
    missing = importlib.util.find_spec("openvino") is None
    return pytest.mark.slow(pytest.mark.skipif(missing, reason="openvino is not installed")(test))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("wavevit_test", num_classes=5).eval()


@pytest.mark.parametrize(
    "runtime",
    [
        "eager",
        pytest.param("openvino", marks=pytest.mark.slow),
        pytest.param("compiled", marks=pytest.mark.slow),
    ],
)
def test_outputs_are_the_networks_for_growing_and_shrinking_batches(
    network: nn.Module, runtime: str
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    forward = with_runtime(prepare(network, runtime), runtime)
    kept = []
    for B, H, W in ((2, 64, 64), (1, 64, 64), (3, 64, 64), (1, 50, 70)):
        images = torch.randn(B, 3, H, W)
        with torch.no_grad():
            expected = network(images)
        kept.append((forward(images), expected))
    for outputs, expected in kept:  # later calls have not overwritten earlier results
        assert not outputs.requires_grad
        torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-6)


def test_a_smaller_batch_is_filled_up_instead_of_building_again(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def compiled(model: nn.Module, **_: Any) -> Any:
        return lambda images: seen.append(len(images)) or model(images)

    monkeypatch.setattr(torch, "compile", compiled)
    forward = with_runtime(network, "compiled")
    batches = (4, 4, 1, 6, 5, 1, 1, 1, 1, 3, 1)
    assert [len(forward(torch.randn(B, 3, 32, 32))) for B in batches] == list(batches)
    # The fourth time, one image gets a form of its own; three images still do not.
    assert seen == [4, 4, 4, 6, 6, 4, 4, 1, 1, 4, 1]
    with pytest.raises(ValueError, match=r"with B >= 1, got \(0, 3, 32, 32\)"):
        forward(torch.randn(0, 3, 32, 32))


def test_every_output_of_a_filled_batch_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    features = timm.create_model("wavevit_test", features_only=True).eval()
    forward = with_runtime(features, "compiled")
    forward(torch.randn(3, 3, 32, 32))
    assert [len(m) for m in forward(torch.randn(2, 3, 32, 32))] == [2, 2, 2, 2]


def test_what_cannot_run_says_why(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"expected a runtime of eager, .* got 'fast'"):
        with_runtime(network, "fast")
    with pytest.raises(ValueError, match='"cuda-graphs" needs a CUDA device, got cpu'):
        with_runtime(network, "cuda-graphs")
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        with_runtime(timm.create_model("wavevit_test"), "eager")


@pytest.mark.parametrize(
    ("batch", "threads", "streams"),
    [(8, 2, 2), (1, 8, 1), (4, 4, 1), (32, 4, 4), (30, 4, 3), (7, 2, 1), (64, 32, 16), (8, 1, 1)],
)
def test_streams_share_a_batch_equally_and_get_four_images_or_more(
    batch: int, threads: int, streams: int
) -> None:
    assert num_streams(batch, threads) == streams


@needs_openvino
def test_openvino_shares_a_batch_among_streams_in_order(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    images = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
    forward = with_runtime(network, "openvino")
    first = forward(images)
    forward(images.flip(0))
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-6)


@needs_openvino
def test_openvino_refuses_what_it_cannot_return(network: nn.Module) -> None:
    features = timm.create_model("wavevit_test", features_only=True).eval()
    with pytest.raises(ValueError, match="networks that return one tensor, got list"):
        with_runtime(features, "openvino")(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"takes float32 images, got torch\.bfloat16"):
        with_runtime(network, "openvino")(torch.randn(1, 3, 32, 32).bfloat16())

    class Unknown(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x, size=(7, 5), mode="bicubic", antialias=True)

    with pytest.raises(ValueError, match=r"OpenVINO cannot take the network .*bicubic"):
        with_runtime(Unknown(1, 1).eval(), "openvino")(torch.randn(1, 3, 32, 32))


def test_a_compiler_that_fails_is_one_line(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def broken(*_: Any) -> Any:
        raise TorchDynamoException("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    with pytest.raises(ValueError, match=r"compiled here \(No working C\+\+ compiler found\)"):
        with_runtime(network, "compiled")(torch.randn(1, 3, 32, 32))
