"""The dense detectors compute what the official ones were recorded to compute."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wavevit.detection.dense_targets import match_cells, own_cells
from wavevit.detection.factory import create_detector

# Observed: 1e-5. Relative to the largest value of a map.
MAP_ATOL = 1e-4
# Rounding moves single values of a gradient, behind twenty blocks, more than its norm: 0.3 %.
GRADIENT_ATOL = 1e-2
# The bar; observed: 3e-6 of losses, 5e-4 of gradient norms.
RTOL = 1e-3


@pytest.fixture(scope="module", params=["retinanet", "atss", "gfl"])
def pair(
    request: pytest.FixtureRequest,
    recording: Callable[[str], Any],
    load_official: Callable[..., None],
    our_names: Callable[..., dict[str, str]],
) -> SimpleNamespace:
    """A detector with the recorded weights, and the recording."""
    found = recording(f"{request.param}_s_seed0")
    detector = create_detector(request.param, "wavevit_s", num_classes=80)
    load_official(detector, found.facts)
    return SimpleNamespace(
        name=request.param,
        detector=detector,
        recording=found,
        names=our_names(detector, found.facts),
        weights={name: value.clone() for name, value in detector.state_dict().items()},
    )


def losses_by_kind(record: dict[str, Any]) -> dict[str, float]:
    ours = {"loss_bbox": "loss_box"}
    return {ours.get(name, name): sum(levels) for name, levels in record["losses"].items()}


def test_state_dict_has_the_official_entries_one_by_one(pair: SimpleNamespace) -> None:
    state = pair.detector.state_dict()
    assert len(pair.names) == len(state)
    assert set(pair.names.values()) == set(state)
    # Within the backbone's blocks our order is another one.
    behind = [ours for ours in pair.names.values() if ".backbone." not in ours]
    assert behind == [name for name in state if ".backbone." not in name]
    shapes = {name: shape for name, shape, _ in pair.recording.facts["state_dict"]}
    for official, ours in pair.names.items():
        shape = [side for i, side in enumerate(shapes[official]) if i < state[ours].ndim]
        # A level's factor is a single number there.
        shape = [1] if official.endswith(".scale") else shape
        assert list(state[ours].shape) == shape, official


def test_parameter_counts_are_the_official_ones(pair: SimpleNamespace) -> None:
    facts, detector = pair.recording.facts, pair.detector
    assert sum(p.numel() for p in detector.parameters()) == facts["n_params"]
    trainable = [p for p in detector.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) == facts["n_params_trainable"]
    by_part = facts["n_params_by_part"]
    for part, official in (("backbone", "backbone"), ("neck", "neck"), ("head", "bbox_head")):
        module = getattr(detector.network, part)
        assert sum(p.numel() for p in module.parameters()) == by_part[official]


def test_maps_and_detections_equal_the_recorded_ones(pair: SimpleNamespace) -> None:
    detector, found = pair.detector.eval(), pair.recording
    network = detector.network
    with torch.inference_mode():
        features = network.backbone(found.batch.tensor)
        levels = network.neck(features)
        maps = network.head(levels)
        detections = detector.detect(found.batch)
    for i, feature in enumerate(features):
        found.assert_close(f"eval.backbone.{i}", feature, atol=MAP_ATOL)
    for i, level in enumerate(levels):
        found.assert_close(f"eval.neck.{i}", level, atol=MAP_ATOL)
    for kind, per_level in zip(("cls", "bbox", "ctr"), maps, strict=False):
        for i, values in enumerate(per_level):
            found.assert_close(f"eval.head.{kind}.{i}", values, atol=MAP_ATOL)
    found.assert_detections("eval.det.", detections)


def test_losses_gradients_and_statistics_equal_the_recorded_ones(pair: SimpleNamespace) -> None:
    detector, found = pair.detector.train(), pair.recording
    detector.load_state_dict(pair.weights)
    losses = detector.compute_losses(found.batch, found.targets)
    expected = losses_by_kind(found.record)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=RTOL), name
    sum(losses.values()).backward()

    parameters = dict(detector.named_parameters())
    norms = found.gradient_norms()
    trainable = {name for name, p in parameters.items() if p.requires_grad}
    without = trainable - {pair.names[official] for official in norms}
    assert all(name.endswith((".attn.reduce.bias", ".attn.filter.bias")) for name in without)
    for official, norm in norms.items():
        gradient = parameters[pair.names[official]].grad
        assert gradient.norm().item() == pytest.approx(norm, rel=RTOL), official
    for key, (official, _) in found.record["grad_norm_named"].items():
        gradient = parameters[pair.names[official]].grad
        found.assert_close(f"train.grad.{key}", gradient, atol=GRADIENT_ATOL)
    state = detector.state_dict()
    for key, official in (("mean", "running_mean"), ("var", "running_var")):
        name = pair.names[f"backbone.patch_embed1.conv.1.{official}"]
        found.assert_close(f"train.stem_bn_running_{key}_after", state[name], atol=1e-5)


def test_assignments_equal_the_recorded_ones(pair: SimpleNamespace) -> None:
    detector, found = pair.detector, pair.recording
    assign = getattr(detector, "assign", detector.assigner)
    height, width = found.batch.tensor.shape[-2:]
    anchors = detector.anchors(detector.anchors.cells_inside((height, width)))
    for i, target in enumerate(found.targets):
        matched, iou = assign(anchors, target["boxes"])
        counts = found.record["assign"][f"assign.call{i}"]
        assert len(matched) == counts["total"]
        assert (matched == -2).sum() == counts["ignored"]
        positives = (matched >= 0).nonzero().squeeze(1)
        assert positives.tolist() == found.array(f"train.assign.call{i}.pos_inds").tolist()
        assert matched[positives].tolist() == found.array(f"train.assign.call{i}.pos_gt").tolist()
        torch.testing.assert_close(iou[positives], found.array(f"train.assign.call{i}.pos_iou"))


def test_padded_batch_equals_the_recorded_one(
    pair: SimpleNamespace, recording: Callable[[str], Any]
) -> None:
    """Cells beyond an image's own padding are not trained; boxes are clipped to each image."""
    if pair.name == "gfl":
        pytest.skip("no padded batch was recorded for GFL")
    detector, found = pair.detector, recording(f"{pair.name}_s_padded")
    detector.load_state_dict(pair.weights)
    with torch.inference_mode():
        found.assert_detections("det.", detector.eval().detect(found.batch))
        losses = detector.train().compute_losses(found.batch, found.targets)
    for name, value in losses_by_kind(found.record).items():
        assert losses[name].item() == pytest.approx(value, rel=RTOL), name

    sizes = detector.anchors.cells_inside(found.batch.tensor.shape[-2:])
    maps = [torch.zeros(2, 1, *size) for size in sizes]
    cells = own_cells(maps, found.batch, detector.anchors)
    assign = getattr(detector, "assign", detector.assigner)
    for i, target in enumerate(found.targets):
        truth = match_cells(detector.anchors, assign, [cells[i]], [target])
        counts = found.record["assign"][f"assign.image{i}"]
        assert len(truth.labels) == counts["total"]
        assert len(truth.positives) == counts["pos"]
        assert (truth.labels == -2).sum() == counts["ignored"]
