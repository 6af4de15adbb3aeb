"""Pictures of any size through a detector and back, as evaluation does it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wavevit.data.detection.loader import to_unit_range
from wavevit.data.detection.resize import (
    SIZE_RULES,
    resize_image,
    restore_boxes,
    restore_masks,
)
from wavevit.detection.card import DetectorCard
from wavevit.detection.detector import Detector
from wavevit.detection.inference import DetectionPredictor
from wavevit.models.card import save_model

NARROW = {"fpn_channels": 32, "score_threshold": 0.0, "detections_per_image": 20}
SIZES = [(60, 81), (96, 64), (30, 30), (150, 90)]


def card_of(name: str, **values: object) -> DetectorCard:
    more = {"fc_channels": 32, "num_mask_convs": 1, "mask_channels": 16}
    options = NARROW | (more if name == "mask_rcnn" else {"head_channels": 32})
    return DetectorCard(
        name,
        "wavevit_test",
        options,
        class_names=["a", "b", "c"],
        category_ids=[1, 2, 3],
        **{"short_edge": 64, "long_edge": 96, **values},
    )


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return card_of("mask_rcnn").build()


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    rng = np.random.default_rng(0)
    return [
        torch.from_numpy(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).permute(2, 0, 1)
        for size in SIZES
    ]


@pytest.mark.parametrize("rule", SIZE_RULES)
def test_a_batch_of_mixed_sizes_gives_what_evaluation_gives(
    detector: Detector, images: list[Tensor], rule: str
) -> None:
    predictor = DetectionPredictor(detector, card_of("mask_rcnn", size_rule=rule))
    resized = [resize_image(image, SIZE_RULES[rule](size, 64, 96)) for image, size in pairs(images)]
    with torch.inference_mode():
        expected = detector([to_unit_range(image) for image in resized])
    for found, wanted, image, (original, size) in zip(
        predictor(images), expected, resized, pairs(images), strict=True
    ):
        assert found.size == size == tuple(original.shape[1:])
        boxes = restore_boxes(wanted["boxes"], tuple(image.shape[1:]), size)
        assert torch.equal(found.boxes_xyxy, boxes)
        assert torch.equal(found.labels, wanted["labels"])
        assert torch.equal(found.scores, wanted["scores"])
        assert found.masks is not None
        assert len(found) == len(found.masks) > 0
        masks = torch.cat(list(restore_masks(wanted["masks"], size))).numpy()
        pasted = np.stack([mask.pasted(size) for mask in found.masks])
        assert masks.any()
        # Interpolation sums in another order: a probability of one half may fall on either side.
        assert (masks != pasted).mean() < 1e-4


def pairs(images: Sequence[Tensor]) -> list[tuple[Tensor, tuple[int, int]]]:
    return list(zip(images, SIZES, strict=True))


def test_floats_are_taken_as_well(detector: Detector, images: list[Tensor]) -> None:
    predictor = DetectionPredictor(detector, card_of("mask_rcnn"))
    for found, other in zip(
        predictor(images), predictor([to_unit_range(image) for image in images]), strict=True
    ):
        # Resized bytes are rounded, floats are not.
        assert (len(found), found.size) == (len(other), other.size)
        torch.testing.assert_close(found.scores, other.scores, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["mask_rcnn", "gfl"])
def test_a_model_file_or_a_run_and_a_threshold(
    name: str, images: list[Tensor], tmp_path: Path
) -> None:
    card = card_of(name)
    torch.manual_seed(1)
    save_model(tmp_path / "best.safetensors", card.build().state_dict(), card)
    everything = DetectionPredictor.load(tmp_path)(images)
    scores = torch.cat([found.scores for found in everything])
    threshold = float(scores.median())
    some = DetectionPredictor.load(tmp_path / "best.safetensors", score_threshold=threshold)
    for found, expected in zip(some(images), everything, strict=True):
        chosen = expected.scores >= threshold
        assert torch.equal(found.boxes_xyxy, expected.boxes_xyxy[chosen])
        assert torch.equal(found.labels, expected.labels[chosen])
        if name == "mask_rcnn":
            assert expected.masks is not None
            kept = [mask for mask, take in zip(expected.masks, chosen, strict=True) if take]
            assert list(found.masks or ()) == kept
        else:
            assert found.masks is None
    assert 0 < sum(map(len, some(images))) < len(scores)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_picture_that_gives_nan_says_so_and_the_others_are_found(
    detector: Detector, images: list[Tensor], precision: str
) -> None:
    predictor = DetectionPredictor(detector, card_of("mask_rcnn"), precision=precision)
    broken = to_unit_range(images[0])
    broken[0, 10, 10] = torch.nan
    found = predictor([broken, *(to_unit_range(image) for image in images[1:])])
    assert [each.is_finite for each in found] == [False, True, True, True]
    assert all(len(each) for each in found[1:])
    assert not predictor.detector.network._forward_hooks


SMALL = {
    "retinanet": {"head_channels": 16, "num_tower_convs": 1},
    "atss": {"head_channels": 16, "num_tower_convs": 1},
    "gfl": {"head_channels": 16, "num_tower_convs": 1},
    "mask_rcnn": {"fc_channels": 16, "num_mask_convs": 1, "mask_channels": 16},
    "cascade_mask_rcnn": {
        "fc_channels": 16,
        "num_box_convs": 1,
        "box_channels": 16,
        "num_mask_convs": 1,
        "mask_channels": 16,
    },
    "sparse_rcnn": {"num_proposals": 5, "num_stages": 2, "ffn_channels": 16, "inner_channels": 4},
}


def predictor_of(name: str) -> DetectionPredictor:
    options = SMALL[name] | {"fpn_channels": 16, "detections_per_image": 5}
    if name != "sparse_rcnn":
        options["score_threshold"] = 0.0
    torch.manual_seed(0)
    card = DetectorCard(
        name, "wavevit_test", options, ["a", "b"], [1, 2], short_edge=64, long_edge=64
    )
    return DetectionPredictor(card.build(), card)


@pytest.mark.parametrize("name", SMALL)
def test_nan_of_any_head_is_known(name: str) -> None:
    predictor = predictor_of(name)
    detector = predictor.detector
    heads: list[nn.Module] = []
    for child in detector.children():
        heads += child if isinstance(child, nn.ModuleList) else [child]
    heads = [head for head in heads if next(head.parameters(), None) is not None]
    assert len(heads) == {"mask_rcnn": 3, "cascade_mask_rcnn": 7, "sparse_rcnn": 4}.get(name, 1)
    image = torch.rand(3, 64, 64)
    assert predictor([image])[0].is_finite
    for head in heads:
        parameter = next(head.parameters())
        kept = parameter.detach().clone()
        parameter.data.fill_(torch.nan)
        assert not predictor([image])[0].is_finite
        parameter.data.copy_(kept)
    assert predictor([image])[0].is_finite
    assert not any(module._forward_hooks for module in detector.modules())


def test_nan_of_a_head_is_that_of_its_image() -> None:
    predictor = predictor_of("cascade_mask_rcnn")
    head = predictor.detector.box_heads[1]

    def overflow(module: nn.Module, pooled: object, outputs: tuple[Tensor, Tensor]) -> None:
        # A region of the last image: regions are image after image.
        outputs[1][-1, 0, 0] = torch.inf

    head.register_forward_hook(overflow)
    found = predictor([torch.rand(3, 64, 64) for _ in range(3)])
    assert [each.is_finite for each in found] == [True, True, False]


def test_boxes_of_which_nothing_is_in_the_picture_are_left_out() -> None:
    predictor = predictor_of("sparse_rcnn")

    def beside(module: nn.Module, images: object, detections: list[dict[str, Tensor]]) -> None:
        boxes = [[-9.0, 5, -1, 9], [-5, 5, 9, 9], [70, 0, 90, 9], [5, 5, 9, 5], [3, 3, 3.5, 80]]
        detections[0]["boxes"] = torch.tensor(boxes)
        detections[0]["scores"] = torch.linspace(0.9, 0.5, 5)

    predictor.detector.register_forward_hook(beside)
    [found] = predictor([torch.rand(3, 128, 128)])
    assert found.boxes_xyxy.tolist() == [[0, 10, 18, 18], [6, 6, 7, 128]]
    torch.testing.assert_close(found.scores, torch.tensor([0.8, 0.5]))
    assert len(found.labels) == 2


def test_pictures_without_any_object(detector: Detector, images: list[Tensor]) -> None:
    predictor = DetectionPredictor(detector, card_of("mask_rcnn"), score_threshold=1.0)
    for found in predictor(images):
        assert len(found) == 0
        assert found.boxes_xyxy.shape == (0, 4)
        assert found.masks == ()


def test_mistakes_are_named(detector: Detector, images: list[Tensor], tmp_path: Path) -> None:
    card = card_of("mask_rcnn")
    predictor = DetectionPredictor(detector, card)
    with pytest.raises(ValueError, match=r"a picture \(3, H, W\), got \(1, 8, 8\)"):
        predictor([torch.zeros(1, 8, 8)])
    with pytest.raises(ValueError, match=r"uint8, or float in \[0, 1\], got torch.int64"):
        predictor([images[0].long()])
    with pytest.raises(ValueError, match=r"threshold lies in \[0, 1\], got 30"):
        DetectionPredictor(detector, card, score_threshold=30)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        DetectionPredictor.load(tmp_path / "no.safetensors")
    unknown = DetectionPredictor(detector, card_of("mask_rcnn", size_rule="golden"))
    with pytest.raises(ValueError, match="size rule 'golden', which is not known"):
        unknown(images)
