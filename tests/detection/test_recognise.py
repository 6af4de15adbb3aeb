"""Checkpoints of mmdetection say which detector, backbone and sizes they are for."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import wavevit
from wavevit.detection import create_detector
from wavevit.detection.official import is_official, our_state
from wavevit.detection.recognise import recognise

TOWER = {"num_tower_convs": 4, "head_channels": 256}
EXPECTED: dict[str, dict[str, Any]] = {
    "retinanet": TOWER,
    "atss": TOWER,
    "gfl": TOWER | {"max_distance": 16},
    "mask_rcnn": {"masks": True},
    "cascade_mask_rcnn": {"masks": True},
    "sparse_rcnn": {"num_proposals": 300},
}
HAAR = (".w_ll", ".w_lh", ".w_hl", ".w_hh", ".filters")


def zeros(*shape: int) -> Tensor:
    return torch.zeros(()).expand(shape)


@pytest.mark.parametrize("name", EXPECTED)
def test_recorded_detectors_are_recognised(name: str, golden: Path) -> None:
    facts = json.loads((golden / "detection" / f"{name}_s_seed0.json").read_text())
    state = {n: zeros(*s) for n, s, _ in facts["state_dict"] if not n.endswith(HAAR)}
    assert is_official(state)
    found = recognise(state)
    assert found == (name, "wavevit_s", 80, EXPECTED[name] | {"fpn_channels": 256})


def resnet_retinanet() -> dict[str, Tensor]:
    """Names and shapes of mmdetection's RetinaNet of 5 classes on a ResNet-18, narrow."""
    body = timm.create_model("resnet18", num_classes=0)
    state = {f"backbone.{name}": value for name, value in body.state_dict().items()}
    for i, channels in enumerate((128, 256, 512)):
        state[f"neck.lateral_convs.{i}.conv.weight"] = torch.rand(32, channels, 1, 1)
        state[f"neck.lateral_convs.{i}.conv.bias"] = torch.rand(32)
    for i, channels in enumerate((32, 32, 32, 512, 32)):
        state[f"neck.fpn_convs.{i}.conv.weight"] = torch.rand(32, channels, 3, 3)
        state[f"neck.fpn_convs.{i}.conv.bias"] = torch.rand(32)
    for tower in ("cls", "reg"):
        for i, channels in enumerate((32, 16)):
            state[f"bbox_head.{tower}_convs.{i}.conv.weight"] = torch.rand(16, channels, 3, 3)
            state[f"bbox_head.{tower}_convs.{i}.conv.bias"] = torch.rand(16)
    for layer, rows in (("retina_cls", 45), ("retina_reg", 36)):
        state[f"bbox_head.{layer}.weight"] = torch.rand(rows, 16, 3, 3)
        state[f"bbox_head.{layer}.bias"] = torch.rand(rows)
    return state


def test_a_detector_on_a_resnet_moves_over() -> None:
    state = resnet_retinanet()
    found = recognise(state)
    assert (found.name, found.backbone, found.num_classes) == ("retinanet", "resnet18", 5)
    detector = create_detector(
        found.name, found.backbone, num_classes=found.num_classes, **found.options
    )
    ours = our_state(detector, state)
    detector.load_state_dict(ours, strict=True)
    network = detector.network
    assert torch.equal(
        network.neck.extra[0].weight, state["neck.fpn_convs.3.conv.weight"]
    )  # on the backbone's last map
    assert torch.equal(
        network.head.box_tower[1].conv.bias, state["bbox_head.reg_convs.1.conv.bias"]
    )
    assert torch.equal(
        network.backbone.body.layer4[1].bn2.weight, state["backbone.layer4.1.bn2.weight"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox_head.retina_cls.weight": None}, "expected the weights of retinanet, gfl, .* such"),
        ({"bbox_head.retina_reg.weight": zeros(4, 16, 3, 3)}, "9 anchors a cell, got 1"),
        ({"neck.fpn_convs.0.conv.weight": None}, "lacks neck.fpn_convs.0.conv.weight"),
        ({"backbone.layer1.0.conv1.weight": zeros(128, 64, 1, 1)}, "a Wave-ViT or a plain ResNet"),
    ],
)
def test_what_we_do_not_have_is_refused(change: dict[str, Any], message: str) -> None:
    changed = resnet_retinanet() | change
    state = {name: value for name, value in changed.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        recognise(state)


def test_mmdetections_names_load_directly_and_other_classes_are_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = resnet_retinanet()
    detector = create_detector(
        "retinanet",
        "resnet18",
        num_classes=2,
        fpn_channels=32,
        head_channels=16,
        num_tower_convs=2,
    )
    before = detector.network.head.cls_logits.weight.clone()
    detector.load_state_dict(state)
    assert "other classes: dropped network.head.cls_logits.weight" in caplog.text
    assert torch.equal(detector.network.head.cls_logits.weight, before)
    assert torch.equal(detector.network.head.box_output.bias, state["bbox_head.retina_reg.bias"])
    with pytest.raises(RuntimeError, match=r"Missing key.*network.head.box_output.bias"):
        detector.load_state_dict({n: v for n, v in state.items() if "retina_reg.bias" not in n})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*bbox_head.retina_iou.bias"):
        detector.load_state_dict(state | {"bbox_head.retina_iou.bias": torch.zeros(9)})


def test_our_own_weights_load_back() -> None:
    options = {"num_classes": 2, "fpn_channels": 32, "head_channels": 16}
    first, second = (create_detector("gfl", "wavevit_test", **options) for _ in range(2))
    second.load_state_dict(first.state_dict())
    wrapped = torch.nn.ModuleDict({"detector": second})
    wrapped.load_state_dict({f"detector.{n}": v for n, v in first.state_dict().items()})
    for name, value in second.state_dict().items():
        assert torch.equal(value, first.state_dict()[name]), name


def test_other_checkpoints_are_not_taken_for_mmdetections() -> None:
    assert not is_official(timm.create_model("test_resnet").state_dict())


def test_load_weights_reads_mmdetection_files_and_reports_every_key(tmp_path: Path) -> None:
    """With other classes the layers that depend on them are left out, and all else is loaded."""
    source = create_detector(
        "gfl", "wavevit_test", num_classes=3, fpn_channels=32, head_channels=32
    )
    torch.save({"state_dict": source.state_dict()}, tmp_path / "weights.pth")
    target = create_detector(
        "gfl", "wavevit_test", num_classes=5, fpn_channels=32, head_channels=32
    )
    report = wavevit.load_weights(target, tmp_path / "weights.pth")
    assert report.complete
    assert report.dropped == ["network.head.cls_logits.weight", "network.head.cls_logits.bias"]
    assert report.loaded == len(source.state_dict()) - 2
    one, other = (d.network.neck.laterals[0].weight for d in (source, target))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.save(source.state_dict() | {"surplus": torch.ones(1)}, tmp_path / "surplus.pth")
    with pytest.raises(ValueError, match=r"does not fit GFL: .*unexpected: surplus"):
        wavevit.load_weights(target, tmp_path / "surplus.pth")
