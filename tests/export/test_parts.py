"""A model is cut into tensor-only parts, and files in their place give what the model gives."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wavevit.detection import create_detector
from wavevit.detection.detector import Detector
from wavevit.detection.finite_outputs import finite_outputs
from wavevit.export.archive import ExportedPart
from wavevit.export.loading import FilePart
from wavevit.export.parts import Flat, Part, parts_of
from wavevit.models.card import create_model
from wavevit.segmentation import create_segmenter

NARROW: dict[str, Any] = {"fpn_channels": 16, "score_threshold": 0.0, "detections_per_image": 10}
DENSE = NARROW | {"head_channels": 16, "num_tower_convs": 1}
REGIONS = NARROW | {"num_mask_convs": 1, "mask_channels": 8, "fc_channels": 8}
DETECTORS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "retinanet": (DENSE, ["network"]),
    "atss": (DENSE, ["network"]),
    "gfl": (DENSE, ["network"]),
    "mask_rcnn": (REGIONS, ["network", "box_head", "mask_head"]),
    "cascade_mask_rcnn": (
        REGIONS | {"box_channels": 8, "num_box_convs": 1},
        ["network", *(f"box_heads.{i}" for i in range(3)), *(f"mask_heads.{i}" for i in range(3))],
    ),
    "sparse_rcnn": (
        {"fpn_channels": 16, "num_proposals": 6, "num_stages": 2, "ffn_channels": 16},
        ["network", "heads.0", "heads.1"],
    ),
}


def build(name: str) -> Detector:
    torch.manual_seed(0)
    return create_detector(name, "wavevit_test", num_classes=3, **DETECTORS[name][0]).eval()


def as_file(module: nn.Module, part: Part, least: int = 1) -> FilePart:
    """What a file of the part would be, computed by the part itself, which refuses too little."""
    flat = Flat(module, part.outputs)
    with torch.no_grad():
        names = [name for name, _ in flat.named(*part.example)]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        assert len(inputs[0]) >= (1 if part.inputs == ("images",) else 2)
        if part.inputs == ("images",):
            assert min(inputs[0].shape[2:]) >= least
        return list(flat(*inputs))

    shapes: list[list[int | str]] = [
        [axes.get(axis, length) for axis, length in enumerate(example.shape)]
        for example, axes in zip(part.example, part.axes, strict=True)
    ]
    sides = {"height": least, "width": least} if part.inputs == ("images",) else {}
    described = ExportedPart(part.path, part.name, list(part.inputs), shapes, names, sides)
    return FilePart(run, described, type(module), pads=bool(part.path))


def replace_parts(model: nn.Module, **options: Any) -> None:
    for part in parts_of(model, (64, 64)):
        parent, _, name = part.path.rpartition(".")
        module = model.get_submodule(part.path)
        setattr(model.get_submodule(parent), name, as_file(module, part, **options))


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_of_files_finds_what_the_detector_finds(name: str) -> None:
    detector, other = build(name), build(name)
    assert [part.path for part in parts_of(detector, (0, 0))] == DETECTORS[name][1]
    replace_parts(other)
    for size in ((96, 160), (64, 64)):
        images = [torch.rand(3, *size)]  # of a batch of one, Sparse R-CNN's heads see one image
        (expected,), (found,) = detector(images), other(images)
        assert expected.keys() == found.keys()
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)


def test_heads_see_no_region_at_all() -> None:
    detector = build("mask_rcnn")
    replace_parts(detector)
    detector.settings = detector.settings._replace(score_threshold=1.0)
    (found,) = detector([torch.rand(3, 64, 64)])
    assert found["masks"].shape == (0, 64, 64)


def test_nothing_but_parts_and_the_rest_has_weights() -> None:
    for name in DETECTORS:
        detector = build(name)
        paths = tuple(f"{path}." for path in DETECTORS[name][1])
        rest = [key for key in detector.state_dict() if not key.startswith(paths)]
        expected = ["proposals.boxes", "proposals.features"] if name == "sparse_rcnn" else []
        assert rest == expected


def test_images_too_small_for_the_file_are_padded_with_the_mean_colour() -> None:
    detector = build("gfl")
    replace_parts(detector, least=129)
    (found,) = detector([torch.rand(3, 40, 70)])
    assert found["boxes"].max() <= 70
    torch.manual_seed(0)
    segmenter = create_segmenter("upernet", "wavevit_test", num_classes=3, channels=8).eval()
    replace_parts(segmenter, least=33)
    assert segmenter(torch.rand(1, 3, 32, 40)).shape == (1, 3, 32, 40)


def test_a_classifier_refuses_images_that_its_file_does_not_take() -> None:
    model = create_model("wavevit_test", num_classes=3).eval()
    (part,) = parts_of(model, (64, 64))
    with pytest.raises(
        ValueError, match="takes images from 40x40 pixels, got 32x64; take a larger"
    ):
        as_file(model, part, least=40)(torch.rand(1, 3, 32, 64))


@pytest.mark.parametrize("name", ["gfl", "mask_rcnn", "sparse_rcnn"])
def test_numbers_that_are_not_finite_are_noticed_in_every_part(name: str) -> None:
    images = [torch.rand(3, 64, 64)] * 2
    for part in parts_of(build(name), (0, 0)):
        detector = build(name)
        replace_parts(detector)
        watched = detector.get_submodule(part.path)
        watched.register_forward_pre_hook(
            lambda module, inputs: (torch.full_like(inputs[0], torch.nan), *inputs[1:])
        )
        with finite_outputs(detector) as watch:
            detector(images)
        assert watch.per_image() == [False, False], part.path
