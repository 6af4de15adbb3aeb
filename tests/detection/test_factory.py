"""Detectors by name, and what is wrong said in one line."""

import inspect

import pytest
import timm

import wavevit
from wavevit.detection import DETECTORS, create_detector
from wavevit.detection.detector import Detector
from wavevit.detection.factory import detector_class


@pytest.mark.parametrize("name", DETECTORS)
def test_every_name_is_a_detector_with_documented_options(name: str) -> None:
    cls = detector_class(name)
    assert issubclass(cls, Detector)
    signature = inspect.signature(cls).parameters
    assert list(signature)[:2] == ["backbone", "num_classes"]
    for option in signature:
        assert f"        {option}: " in (cls.__doc__ or ""), f"{cls.__name__}: {option}"


def test_options_reach_the_backbone_and_the_detector() -> None:
    detector = wavevit.create_detector(
        "retinanet",
        "wavevit_test",
        num_classes=4,
        batch_norm="frozen",
        frozen_stages=1,
        fpn_channels=24,
        score_threshold=0.3,
    )
    assert detector.num_classes == 4
    assert detector.network.neck.out_channels == 24
    assert detector.postprocess.score_threshold == 0.3
    assert not next(detector.network.backbone.parameters()).requires_grad


def test_a_built_network_serves_as_backbone() -> None:
    body = timm.create_model("test_resnet", features_only=True)
    detector = create_detector("gfl", body, num_classes=4, fpn_channels=8, head_channels=8)
    assert detector.network.backbone.body is body


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("yolo", {}, "expected a detector of retinanet, .*, got 'yolo'"),
        ("gfl", {"fpn_chanels": 8}, "gfl has no option 'fpn_chanels'; did you mean fpn_channels?"),
        ("gfl", {"masks": True}, r"gfl has no option 'masks'\. It takes: fpn_channels"),
        ("gfl", {"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_detector(name, "wavevit_test", **{"num_classes": 3} | options)
