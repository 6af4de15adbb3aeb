"""The baseline of the speed ratios computes the same function as our networks."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

import wavevit  # noqa: F401 - registers the models
from wavevit.models.official import our_name

PLAIN = Path(__file__).resolve().parents[2] / "benchmarks" / "models" / "plain.py"
# Attention and transform round in another order; the bar for equality in float32.
TOLERANCE = 1e-5


@pytest.fixture(scope="module", autouse=True)
def _plain_models() -> None:
    """Registers them; `importlib` mode of pytest has no path to the file."""
    import sys

    if not PLAIN.is_file():
        pytest.skip(f"needs the source tree, not found: {PLAIN}")
    spec = spec_from_file_location("plain_wave_vit", PLAIN)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)


def pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    """The baseline with random statistics and affines everywhere, and ours with its weights."""
    torch.manual_seed(0)
    plain = timm.create_model("plain_wavevit_test")
    for name, value in plain.state_dict().items():
        if name.endswith(("running_var", "weight")) and value.ndim == 1:
            value.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(std=0.1)
    ours = timm.create_model("wavevit_test")
    ours.load_state_dict(plain.state_dict())
    return plain, ours


@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
def test_evaluation_equals_ours(size: tuple[int, int]) -> None:
    plain, ours = pair()
    image = torch.randn(2, 3, *size)
    with torch.inference_mode():
        expected, found = ours.eval()(image), plain.eval()(image)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_training_gradients_and_statistics_equal_ours() -> None:
    plain, ours = (model.train() for model in pair())
    image, target = torch.randn(3, 3, 64, 96), torch.tensor([3, 977, 5])
    losses = [F.cross_entropy(model(image), target) for model in (plain, ours)]
    torch.testing.assert_close(losses[0], losses[1], rtol=TOLERANCE, atol=TOLERANCE)
    for loss in losses:
        loss.backward()
    of_ours = dict(ours.named_parameters())
    for name, parameter in plain.named_parameters():
        expected = of_ours[our_name(name)].grad
        found = parameter.grad.reshape(expected.shape)
        # The true gradient of a bias before BatchNorm is 0: both are rounding.
        atol = TOLERANCE * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(found, expected, rtol=0, atol=atol, msg=name)
    statistics = dict(ours.named_buffers())
    for name, buffer in plain.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, statistics[our_name(name)])


@pytest.mark.parametrize("variant", ["nano", "s", "b", "l"])
def test_every_variant_has_the_parameters_of_ours(variant: str) -> None:
    with torch.device("meta"):
        plain = timm.create_model(f"plain_wavevit_{variant}")
        ours = timm.create_model(f"wavevit_{variant}")
    named = {our_name(name): value.numel() for name, value in plain.named_parameters()}
    assert named == {name: value.numel() for name, value in ours.named_parameters()}


def test_logits_equal_those_recorded_from_the_official_network(golden: Path) -> None:
    import fill
    import inputs

    stem = golden / "classification" / "wavevit_s_224x224_seed0_plain"
    facts = json.loads(stem.with_suffix(".json").read_text())
    model = timm.create_model("plain_wavevit_s").eval()
    state = model.state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == facts["state_dict"]
    filled = fill.fill_state(facts["seed"], facts["state_dict"])
    state.update({name: torch.from_numpy(value) for name, value in filled.items()})
    model.load_state_dict(state)
    image = inputs.image(np.random.default_rng(1000 + facts["seed"]), 2, *facts["size"])
    with torch.inference_mode():
        logits = model(torch.tensor(image))
    recorded = torch.from_numpy(np.load(stem.with_suffix(".npz"))["logits"])
    assert logits.shape == recorded.shape
    atol = TOLERANCE * float(recorded.abs().max())
    torch.testing.assert_close(logits, recorded, rtol=0, atol=atol)


def test_other_sizes_are_refused() -> None:
    plain, _ = pair()
    with pytest.raises(ValueError, match=r"multiples of 32, got \(64, 65\)"):
        plain(torch.zeros(1, 3, 64, 65))
