"""Detectors by name, and what is wrong said in one line."""

import inspect

import pytest
import timm
import torch

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


@pytest.mark.parametrize("name", DETECTORS)
def test_values_of_every_option_are_checked(name: str) -> None:
    options = inspect.signature(detector_class(name)).parameters.values()
    for option in (o.name for o in options if o.kind is o.KEYWORD_ONLY):
        for wrong in (-1, "abc", None, float("nan")):
            with pytest.raises(ValueError, match=f"^the option {option}") as raised:
                create_detector(name, "wavevit_test", num_classes=2, **{option: wrong})
            assert str(raised.value).endswith(f"got {wrong!r}")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gfl", {"fpn_channels": 0}, "fpn_channels must be a whole number from 1 on, got 0"),
        ("gfl", {"fpn_channels": 8.0}, "fpn_channels must be a whole number from 1 on, got 8.0"),
        ("gfl", {"detections_per_image": True}, "detections_per_image must be a whole number"),
        ("atss", {"nms_threshold": 7}, r"nms_threshold must be a number in \[0, 1\], got 7"),
        ("retinanet", {"anchor_ratios": [1, 0]}, "anchor_ratios must be a list of numbers above 0"),
        ("mask_rcnn", {"masks": 1}, "masks must be true or false, got 1"),
        ("sparse_rcnn", {"num_heads": 5}, "fpn_channels must be a multiple of num_heads, 5, got"),
        ("cascade_mask_rcnn", {"stages": []}, r"a list of at least 1 stage, got \[\]"),
        ("cascade_mask_rcnn", {"stages": [[0.5, 1]]}, "of each stage, got"),
        ("cascade_mask_rcnn", {"stages": [[0.5, 1, [0.1, 0.1]]]}, "must have 4 stds"),
    ],
)
def test_wrong_values_say_what_is_expected(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create_detector(name, "wavevit_test", num_classes=2, **options)


def test_stages_of_a_model_file_are_lists() -> None:
    rows = [[0.5, 1, [0.1, 0.1, 0.2, 0.2]], [0.6, 0.5, [0.1, 0.1, 0.2, 0.2]]]
    detector = create_detector(
        "cascade_mask_rcnn",
        "wavevit_test",
        num_classes=2,
        stages=rows,
        fpn_channels=8,
        fc_channels=8,
        box_channels=8,
    )
    assert [stage.iou for stage in detector.stages] == [0.5, 0.6]


@pytest.mark.parametrize("name", DETECTORS)
def test_detections_have_no_gradient(name: str) -> None:
    narrow = {"fpn_channels": 16, "fc_channels": 16, "mask_channels": 16, "box_channels": 16}
    known = inspect.signature(detector_class(name)).parameters
    options = {option: value for option, value in narrow.items() if option in known}
    detector = create_detector(name, "wavevit_test", num_classes=2, **options).eval()
    seen: list[bool] = []
    detector.network.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    with torch.enable_grad():
        (found,) = detector([torch.rand(3, 64, 64)])
    assert seen == [False]
    assert not any(value.requires_grad for value in found.values())
