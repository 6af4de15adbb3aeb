"""UPerNet computes what the official one was recorded to compute."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from wavevit.segmentation import create_segmenter
from wavevit.segmentation.sliding_window import SlidingLogits

# The bar for logits and losses, relative to the largest value; observed: 2e-6.
RTOL = 2e-4
# The bar for gradient norms; observed: 7e-4. Input noise of 1e-6 moves them by 1.4e-3.
NORM_RTOL = 1e-3
# Rounding moves single values of a gradient more than its norm; observed: 3e-3.
GRADIENT_ATOL = 1e-2


@pytest.fixture(scope="module")
def pair(recording: Callable[[str], Any]) -> SimpleNamespace:
    """The segmenter with the recorded weights, and the recording."""
    found = recording("upernet_s_seed0")
    segmenter = create_segmenter("upernet", "wavevit_s", num_classes=150, dropout=0.0)
    segmenter.load_state_dict(found.official_weights(), strict=True)
    return SimpleNamespace(segmenter=segmenter, recording=found, names=found.our_names(segmenter))


def slide(segmenter: torch.nn.Module, image: Tensor, window: int, stride: int) -> Tensor:
    """Logits ``(K, H, W)`` averaged over windows."""
    _, H, W = image.shape
    logits = SlidingLogits(image, segmenter, segmenter.num_classes, window=window, stride=stride)
    return logits.columns(0, W, H).rows(0, H)


def test_state_dict_has_the_official_entries_one_by_one(pair: SimpleNamespace) -> None:
    state = pair.segmenter.state_dict()
    assert len(pair.names) == len(state)
    assert set(pair.names.values()) == set(state)
    shapes = {name: shape for name, shape, _ in pair.recording.facts["state_dict"]}
    for official, ours in pair.names.items():
        shape = [side for i, side in enumerate(shapes[official]) if i < state[ours].ndim]
        assert list(state[ours].shape) == shape, official


def test_parameter_counts_and_what_is_frozen_are_the_official_ones(pair: SimpleNamespace) -> None:
    facts, segmenter = pair.recording.facts, pair.segmenter.train()
    assert sum(p.numel() for p in segmenter.parameters()) == facts["n_params"]
    by_part = facts["n_params_by_part"]
    parts = {"backbone": "backbone", "head": "decode_head", "auxiliary": "auxiliary_head"}
    for part, official in parts.items():
        module = getattr(segmenter.network, part)
        assert sum(p.numel() for p in module.parameters()) == by_part[official]
    frozen = {name for name, p in segmenter.named_parameters() if not p.requires_grad}
    assert frozen == {pair.names[name] for name in facts["frozen_params"]}
    norms = [m for m in segmenter.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    expected = pair.recording.record["norm_train_mode"]
    assert len(norms) == expected["n_bn"]
    assert sum(norm.training for norm in norms) == expected["n_bn_in_train_mode"]


def test_maps_and_logits_equal_the_recorded_ones(pair: SimpleNamespace) -> None:
    segmenter, found = pair.segmenter.eval(), pair.recording
    network = segmenter.network
    with torch.inference_mode():
        features = network.backbone(found.images)
        quarter = network.head(features)
        auxiliary = network.auxiliary(features[2])
        whole = segmenter(found.images)
        windows = torch.stack([slide(segmenter, x, window=64, stride=42) for x in found.images])
    for i, feature in enumerate(features):
        found.assert_close(f"eval.backbone.{i}", feature, atol=RTOL)
    found.assert_close("eval.head.decode_quarter_logits", quarter, atol=RTOL)
    found.assert_close("eval.head.aux_logits", auxiliary, atol=RTOL)
    for name, logits in (("whole", whole), ("slide", windows)):
        found.assert_close(f"eval.{name}.logits", logits, atol=RTOL)
        assert torch.equal(logits.argmax(1), found.array(f"eval.{name}.argmax").long())


def test_losses_gradients_and_statistics_equal_the_recorded_ones(pair: SimpleNamespace) -> None:
    segmenter, found = pair.segmenter.train(), pair.recording
    maps: list[Tensor] = []
    hook = segmenter.network.backbone.register_forward_hook(lambda *args: maps.extend(args[-1]))
    losses = segmenter(found.images, found.labels)
    hook.remove()
    for i, features in enumerate(maps):
        found.assert_close(f"train.backbone.{i}", features, atol=RTOL)
    expected = {name: found.record["losses"][f"{name[:-3]}.loss_ce"] for name in losses}
    assert expected.keys() == {"decode_ce", "aux_ce"}
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=RTOL), name
    sum(losses.values()).backward()

    parameters = dict(segmenter.named_parameters())
    norms = found.record["grad_norms"]
    assert {pair.names[n] for n in norms} == {n for n, p in parameters.items() if p.requires_grad}
    for official, norm in norms.items():
        # A BatchNorm on batch statistics follows: their true gradient is 0.
        if not official.endswith(("attn.reduce.0.bias", "attn.filter.0.bias")):
            gradient = parameters[pair.names[official]].grad
            assert gradient.norm().item() == pytest.approx(norm, rel=NORM_RTOL), official
    for key, (official, _) in found.record["grad_norm_named"].items():
        gradient = parameters[pair.names[official]].grad
        found.assert_close(f"train.grad.{key}", gradient, atol=GRADIENT_ATOL)
    state = segmenter.state_dict()
    for key, official in (("mean", "running_mean"), ("var", "running_var")):
        name = pair.names[f"backbone.patch_embed1.conv.1.{official}"]
        found.assert_close(f"train.stem_bn_running_{key}_after", state[name], atol=1e-5)
