"""The wavelet transforms through torch.compile, torch.export and ONNX."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from wavevit.ops import dwt2, haar_dwt2, haar_idwt2, idwt2

needs_pywt = pytest.mark.skipif(
    importlib.util.find_spec("pywt") is None, reason="PyWavelets is not installed"
)
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript or onnxruntime is not installed",
)
CASES = [
    ("haar", "symmetric", 2, False),
    ("haar", "reflect", 1, True),
    pytest.param("db2", "symmetric", 1, False, marks=needs_pywt),
    pytest.param("bior2.2", "periodization", 1, True, marks=needs_pywt),
]
# The same fp32 sums in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class RoundTrip(nn.Module):
    """x to its bands and back, all returned."""

    def __init__(self, wavelet: str, mode: str, levels: int, channels_last: bool) -> None:
        super().__init__()
        self.wavelet, self.levels = wavelet, levels
        self.options = {"mode": mode, "channels_last": channels_last}
        self.rows = -3 if channels_last else -2

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        bands = dwt2(x, self.wavelet, levels=self.levels, **self.options)
        size = (x.shape[self.rows], x.shape[self.rows + 1])
        return bands[0], *bands[-1], idwt2(bands, self.wavelet, size=size, **self.options)


class Packed(nn.Module):
    """The packed Haar transform and its inverse."""

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = haar_dwt2(x, self.channels_last)
        rows = 1 if self.channels_last else 2
        size = (x.shape[rows], x.shape[rows + 1])
        return y, haar_idwt2(y, self.channels_last, size=size)


def image(B: int, H: int, W: int, channels_last: bool) -> Tensor:
    return torch.randn(B, H, W, 2) if channels_last else torch.randn(B, 2, H, W)


def sizes(channels_last: bool, least: int) -> dict[int, torch.export.Dim]:
    # A dynamic size may not be 1 for torch.export, nor that of any band: so H, W > 2 ** levels.
    Dim = torch.export.Dim
    dims = (Dim("b", max=64), Dim("h", min=least, max=999), Dim("w", min=least, max=999))
    rows = 1 if channels_last else 2
    return dict(zip((0, rows, rows + 1), dims, strict=True))


def check(found, model: nn.Module, x: Tensor) -> None:
    for a, b in zip(found, model(x), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize(("wavelet", "mode", "levels", "channels_last"), CASES)
def test_compiles_to_one_graph_with_gradients(
    wavelet: str, mode: str, levels: int, channels_last: bool
):
    torch.compiler.reset()
    model = RoundTrip(wavelet, mode, levels, channels_last)
    # aot_eager traces forward and backward like the default backend, without a C++ compiler.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = image(2, 6, 7, channels_last).requires_grad_()
    found = compiled(x)
    check(found, model, x)
    grads = [
        torch.autograd.grad(sum(t.square().sum() for t in result), x)[0]
        for result in (found, model(x))
    ]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_packed_haar_compiles_once_for_all_even_sizes():
    torch.compiler.reset()
    model = Packed(channels_last=True)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    x = image(3, 8, 6, True)  # all sizes differ: torch takes equal ones for one symbol
    check(compiled(x), model, x)
    with torch.compiler.set_stance("fail_on_recompile"):
        x = image(5, 6, 10, True)
        check(compiled(x), model, x)


@pytest.mark.parametrize(("wavelet", "mode", "levels", "channels_last"), CASES)
def test_exports_with_dynamic_batch_and_size(
    wavelet: str, mode: str, levels: int, channels_last: bool
):
    model = RoundTrip(wavelet, mode, levels, channels_last)
    x = image(2, 12, 14, channels_last)
    program = torch.export.export(
        model, (x,), dynamic_shapes=(sizes(channels_last, 2**levels + 1),), strict=False
    )
    for B, H, W in ((2, 12, 14), (1, 9, 16), (3, 21, 11)):
        x = image(B, H, W, channels_last)
        check(program.module()(x), model, x)


@pytest.mark.parametrize("channels_last", [False, True])
def test_packed_haar_exports_with_dynamic_batch_and_size(channels_last: bool):
    model = Packed(channels_last)
    program = torch.export.export(
        model,
        (image(2, 12, 14, channels_last),),
        dynamic_shapes=(sizes(channels_last, 3),),
        strict=False,
    )
    for B, H, W in ((2, 12, 14), (1, 3, 16), (3, 21, 11)):
        x = image(B, H, W, channels_last)
        check(program.module()(x), model, x)


@pytest.mark.parametrize("channels_last", [False, True])
def test_export_of_even_sizes_needs_no_gather(channels_last: bool):
    program = torch.export.export(Packed(channels_last), (image(2, 4, 6, channels_last),))
    assert not [node for node in program.graph.nodes if "index" in str(node.target)]


@needs_onnx
@pytest.mark.filterwarnings("ignore")  # the exporter's own deprecations
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Packed(True), id="packed"),
        pytest.param(RoundTrip("haar", "symmetric", 1, False), id="haar"),
        pytest.param(RoundTrip("db2", "symmetric", 1, False), id="db2", marks=needs_pywt),
    ],
)
def test_onnx_runtime_gives_the_same_bands_for_other_sizes(model: nn.Module, tmp_path: Path):
    import onnxruntime

    channels_last = isinstance(model, Packed)
    program = torch.onnx.export(
        model,
        (image(2, 12, 14, channels_last),),
        dynamo=True,
        dynamic_shapes=(sizes(channels_last, 3),),
        verbose=False,
    )
    path = tmp_path / "dwt.onnx"
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for B, H, W in ((2, 12, 14), (1, 9, 16), (3, 21, 11)):
        x = image(B, H, W, channels_last)
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        check([torch.from_numpy(array) for array in found], model, x)
