"""Graphs rewritten for int8 compute what they did, and what cannot be quantized is said."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from wavevit.export.int8_graph import GELU_SLOPE, rewrite_for_int8
from wavevit.export.quantization import quantize

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Linears(nn.Module):
    """Linear layers on tensors of two, three and four axes, one without a bias, one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.on_map = nn.Linear(6, 8)
        self.on_sequence = nn.Linear(8, 10)
        self.without_bias = nn.Linear(10, 10, bias=False)
        self.on_vector = nn.Linear(10, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        sequence = self.on_sequence(self.on_map(tokens).flatten(1, 2))
        product = self.without_bias(sequence)
        return self.on_vector((product + product.sin()).mean(1))


def write(module: nn.Module, path: Path, *inputs: Tensor) -> Path:
    program = torch.onnx.export(module.eval(), inputs, dynamo=True, verbose=False)
    assert program is not None
    program.save(path)
    return path


def run(model: Path | bytes, inputs: Tensor) -> Tensor:
    content = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (only,) = session.get_inputs()
    return torch.from_numpy(session.run(None, {only.name: inputs.numpy()})[0])


def test_linear_layers_become_convolutions_with_the_same_results(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 5, 3, 6)
    model = onnx.load(write(module := Linears(), tmp_path / "linears.onnx", tokens))
    assert rewrite_for_int8(model) == set()
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == 3
    assert "MatMul" not in kinds
    onnx.checker.check_model(model, full_check=True)
    with torch.no_grad():
        torch.testing.assert_close(run(model.SerializeToString(), tokens), module(tokens))


def test_gelu_becomes_a_logistic_gate_within_its_bound(tmp_path: Path) -> None:
    features = torch.linspace(-8, 8, 20_001)
    model = onnx.load(write(nn.GELU(), tmp_path / "gelu.onnx", features))
    names = rewrite_for_int8(model)
    assert {node.name for node in model.graph.node} == names
    found = run(model.SerializeToString(), features)
    torch.testing.assert_close(found, features * torch.sigmoid(GELU_SLOPE * features))
    assert (found - nn.functional.gelu(features)).abs().max() < 0.0204


def test_the_other_form_of_gelu_stays_as_it_is(tmp_path: Path) -> None:
    model = onnx.load(write(nn.GELU(approximate="tanh"), tmp_path / "gelu.onnx", torch.randn(7)))
    before = [node.op_type for node in model.graph.node]
    assert rewrite_for_int8(model) == set()
    assert [node.op_type for node in model.graph.node] == before


@pytest.fixture
def network(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.GELU(),
        nn.Conv2d(8, 8, 1),
        nn.GELU(),
        nn.Conv2d(8, 4, 1),
    )
    return write(layers, tmp_path / "network.onnx", torch.zeros(1, 3, 12, 10))


def test_all_between_the_first_and_the_last_layer_runs_in_int8(network: Path) -> None:
    images = [torch.randn(1, 3, 12, 10) for _ in range(4)]
    before = run(network, images[0])
    assert quantize(network, images) == 2
    assert sorted(network.parent.iterdir()) == [network]
    after = run(network, images[0])
    assert 0 < (after - before).abs().max() < 0.05 * before.abs().max()
    session_options = onnxruntime.SessionOptions()
    session_options.optimized_model_filepath = str(network.with_name("optimized.onnx"))
    session_options.log_severity_level = 3
    onnxruntime.InferenceSession(str(network), session_options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(network.with_name("optimized.onnx")).graph.node]
    assert kinds.count("QLinearConv") == 2
    assert kinds.count("QLinearSigmoid") == 3
    assert sum(kind in ("Conv", "FusedConv") for kind in kinds) == 2
    assert not {"Gelu", "Sigmoid", "Mul"} & set(kinds)


def test_no_images_is_said_and_the_file_stays(network: Path) -> None:
    content = network.read_bytes()
    with pytest.raises(ValueError, match="images to calibrate int8 with, got none"):
        quantize(network, [])
    assert network.read_bytes() == content
    assert sorted(network.parent.iterdir()) == [network]


def test_a_network_without_inner_layers_is_refused(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(), nn.Conv2d(4, 2, 1))
    path = write(layers, tmp_path / "network.onnx", torch.zeros(1, 3, 6, 5))
    with pytest.raises(ValueError, match="three layers or more"):
        quantize(path, [torch.zeros(1, 3, 6, 5)])
    assert sorted(tmp_path.iterdir()) == [path]


def test_what_onnx_runtime_refuses_is_one_line(network: Path) -> None:
    with pytest.raises(ValueError, match="ONNX Runtime cannot quantize the network: ") as caught:
        quantize(network, [torch.zeros(1, 5, 12, 10)])
    assert "\n" not in str(caught.value)
    assert sorted(network.parent.iterdir()) == [network]
