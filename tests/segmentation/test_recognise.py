"""Checkpoints of mmsegmentation say what they are for, and load."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import wavevit
from wavevit.segmentation import Segmenter, create_segmenter
from wavevit.segmentation.official import is_official, our_state
from wavevit.segmentation.recognise import recognise

HAAR = (".w_ll", ".w_lh", ".w_hl", ".w_hh", ".filters")


def norm(name: str, channels: int) -> dict[str, Tensor]:
    entries = {f"{name}.bn.{leaf}": torch.rand(channels) for leaf in ("weight", "bias")}
    entries |= {f"{name}.bn.running_{leaf}": torch.rand(channels) for leaf in ("mean", "var")}
    return entries | {f"{name}.bn.num_batches_tracked": torch.tensor(7)}


def conv(name: str, channels_out: int, channels_in: int, side: int) -> dict[str, Tensor]:
    weight = torch.rand(channels_out, channels_in, side, side)
    return {f"{name}.conv.weight": weight} | norm(name, channels_out)


def classifier(name: str, num_classes: int, channels: int) -> dict[str, Tensor]:
    weight = torch.rand(num_classes, channels, 1, 1)
    return {f"{name}.conv_seg.weight": weight, f"{name}.conv_seg.bias": torch.rand(num_classes)}


def resnet_upernet(backbone: str = "resnet18", num_classes: int = 4) -> dict[str, Tensor]:
    """Names and shapes of mmsegmentation's UPerNet on a ResNet, narrow."""
    body = timm.create_model(backbone, num_classes=0)
    widths = [info["num_chs"] for info in body.feature_info[1:]]
    state = {f"backbone.{name}": value for name, value in body.state_dict().items()}
    if backbone.endswith("c"):
        deep = {f"backbone.conv1.{i}.": f"backbone.stem.{i}." for i in range(7)}
        deep["backbone.bn1."] = "backbone.stem.7."
        for ours, theirs in deep.items():
            state = {
                theirs + name.removeprefix(ours) if name.startswith(ours) else name: value
                for name, value in state.items()
            }
    head = "decode_head"
    for i in range(4):
        state |= conv(f"{head}.psp_modules.{i}.1", 6, widths[3], 1)
    state |= conv(f"{head}.bottleneck", 6, widths[3] + 4 * 6, 3)
    for i in range(3):
        state |= conv(f"{head}.lateral_convs.{i}", 6, widths[i], 1)
        state |= conv(f"{head}.fpn_convs.{i}", 6, 6, 3)
    state |= conv(f"{head}.fpn_bottleneck", 6, 4 * 6, 3) | classifier(head, num_classes, 6)
    state |= conv("auxiliary_head.convs.0", 5, widths[2], 3)
    return state | classifier("auxiliary_head", num_classes, 5)


def build(state: dict[str, Tensor], **options: Any) -> Segmenter:
    found = recognise(state)
    arguments = {"num_classes": found.num_classes, **found.options, **options}
    return create_segmenter(found.name, found.backbone, **arguments)


def test_the_recorded_segmenter_is_recognised(golden: Path) -> None:
    facts = json.loads((golden / "segmentation" / "upernet_s_seed0.json").read_text())
    state = {
        name: torch.zeros(()).expand(shape)
        for name, shape, _ in facts["state_dict"]
        if not name.endswith(HAAR)
    }
    assert is_official(state)
    found = recognise(state)
    assert found == ("upernet", "wavevit_s", 150, {"channels": 512, "auxiliary_channels": 256})


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50c"])
def test_a_segmenter_on_a_resnet_moves_over(backbone: str) -> None:
    """With its stem of one convolution, or of three as in mmsegmentation's own models."""
    state = resnet_upernet(backbone)
    found = recognise(state)
    options = {"channels": 6, "auxiliary_channels": 5}
    assert found == ("upernet", backbone, 4, options)
    segmenter = build(state)
    segmenter.load_state_dict(our_state(segmenter, state), strict=True)
    head, auxiliary = segmenter.network.head, segmenter.network.auxiliary
    for ours, theirs in (
        (
            head.pooling.projections[2].norm.running_var,
            "decode_head.psp_modules.2.1.bn.running_var",
        ),
        (head.pooling.merge.conv.weight, "decode_head.bottleneck.conv.weight"),
        (head.laterals[1].conv.weight, "decode_head.lateral_convs.1.conv.weight"),
        (head.outputs[0].norm.bias, "decode_head.fpn_convs.0.bn.bias"),
        (head.fusion.conv.weight, "decode_head.fpn_bottleneck.conv.weight"),
        (head.classifier.bias, "decode_head.conv_seg.bias"),
        (auxiliary.conv.norm.weight, "auxiliary_head.convs.0.bn.weight"),
        (auxiliary.classifier.weight, "auxiliary_head.conv_seg.weight"),
        (segmenter.network.backbone.body.layer4[1].bn2.weight, "backbone.layer4.1.bn2.weight"),
    ):
        assert torch.equal(ours, state[theirs]), theirs


def test_without_an_auxiliary_head_none_is_built() -> None:
    state = {n: v for n, v in resnet_upernet().items() if not n.startswith("auxiliary_head.")}
    assert recognise(state).options == {"channels": 6, "auxiliary": False}
    build(state).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode_head.fpn_bottleneck.conv.weight": None}, "expected the weights of a UPerNet"),
        (
            {f"decode_head.psp_modules.4.1.{leaf}": torch.rand(6) for leaf in ("bn.bias",)},
            "pools to 1, 2, 3 and 6 cells, got one of 5 pools",
        ),
        ({"decode_head.conv_seg.weight": None}, "lacks decode_head.conv_seg.weight"),
        ({"backbone.conv1.weight": None}, "a Wave-ViT or a plain ResNet"),
    ],
)
def test_what_we_do_not_have_is_refused(change: dict[str, Any], message: str) -> None:
    changed = resnet_upernet() | change
    with pytest.raises(ValueError, match=message):
        recognise({name: value for name, value in changed.items() if value is not None})


def test_official_names_load_directly_and_other_classes_are_dropped(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    state = resnet_upernet()
    segmenter = build(state, num_classes=2)
    fresh = segmenter.network.head.classifier.weight.clone()
    segmenter.load_state_dict(state)
    assert "other classes: dropped network.head.classifier.weight" in caplog.text
    assert torch.equal(segmenter.network.head.classifier.weight, fresh)
    with pytest.raises(RuntimeError, match=r"Missing key.*network.head.fusion.norm.bias"):
        segmenter.load_state_dict(
            {name: v for name, v in state.items() if name != "decode_head.fpn_bottleneck.bn.bias"}
        )
    with pytest.raises(RuntimeError, match=r"Unexpected key.*decode_head.extra"):
        segmenter.load_state_dict(state | {"decode_head.extra": torch.zeros(9)})

    torch.save({"state_dict": state}, tmp_path / "a.pth")
    report = wavevit.load_weights(segmenter, tmp_path / "a.pth")
    assert report.complete
    parts = [f"network.{part}.classifier" for part in ("head", "auxiliary")]
    assert sorted(report.dropped) == sorted(f"{p}.{x}" for p in parts for x in ("weight", "bias"))
    assert report.loaded == len(segmenter.state_dict()) - 4


def test_our_own_weights_load_back() -> None:
    options = {"num_classes": 2, "channels": 8, "auxiliary_channels": 8}
    first, second = (create_segmenter("upernet", "test_resnet", **options) for _ in range(2))
    wrapped = torch.nn.ModuleDict({"segmenter": second})
    wrapped.load_state_dict({f"segmenter.{n}": v for n, v in first.state_dict().items()})
    for name, value in second.state_dict().items():
        assert torch.equal(value, first.state_dict()[name]), name
