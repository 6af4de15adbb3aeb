"""Pictures of any size through a detector and back, as evaluation does it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from wavevit.data.detection.loader import to_unit_range
from wavevit.data.detection.resize import (
    SIZE_RULES,
    resize_image,
    restore_boxes,
    restore_masks,
)
from wavevit.detection.card import DetectorCard
from wavevit.detection.detector import Detector
from wavevit.detection.inference import DetectionPredictor, input_size
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
def test_sizes_are_those_of_training_and_evaluation(rule: str) -> None:
    rng = np.random.default_rng(0)
    sizes = [tuple(size) for size in rng.integers(1, 3000, (300, 2)).tolist()]
    for short, long in ((800, 1333), (480, 1200), (64, 96)):
        card = card_of("gfl", short_edge=short, long_edge=long, size_rule=rule)
        for size in [*sizes, (1, 2000), (2000, 1), (640, 640)]:
            assert input_size(size, card) == SIZE_RULES[rule](size, short, long)


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
