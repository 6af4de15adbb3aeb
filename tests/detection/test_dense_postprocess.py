"""From maps to detections: threshold, candidates, quality, clipping and NMS."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from wavevit.detection.anchors import AnchorGenerator
from wavevit.detection.box_coder import DeltaBoxCoder
from wavevit.detection.dense_postprocess import DensePostProcess

STRIDES = (8, 16)
SIZES = ((6, 8), (3, 4))
IMAGE = (48, 64)
K = 3


def decode(anchors: Tensor, deltas: Tensor, stride: int) -> Tensor:
    return DeltaBoxCoder().decode(anchors, deltas)


def postprocess(**options: float) -> DensePostProcess:
    defaults = {
        "score_threshold": 0.05,
        "nms_threshold": 0.5,
        "candidates_per_level": 1000,
        "detections_per_image": 100,
    }
    return DensePostProcess(decode, K, **defaults | options)  # type: ignore[arg-type]


def maps(seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Logits, deltas and qualities of two images and two anchors a cell."""
    g = torch.Generator().manual_seed(seed)
    return (
        [torch.randn(2, 2 * K, *size, generator=g) for size in SIZES],
        [torch.randn(2, 2 * 4, *size, generator=g) * 0.2 for size in SIZES],
        [torch.randn(2, 2, *size, generator=g) for size in SIZES],
    )


def anchors() -> list[Tensor]:
    return AnchorGenerator(STRIDES, (2, 3), (1.0,))(SIZES)


def one_by_one(
    module: DensePostProcess, image: int, logits: list[Tensor], deltas: list[Tensor]
) -> dict[str, Tensor]:
    """The same with the obvious steps, class after class."""
    found: list[tuple[float, int, list[float]]] = []
    for level, level_anchors in enumerate(anchors()):
        scores = logits[level][image].sigmoid().permute(1, 2, 0).reshape(-1, K)
        boxes = decode(level_anchors, deltas[level][image].permute(1, 2, 0).reshape(-1, 4), 0)
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, IMAGE[1])
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, IMAGE[0])
        pairs = [(scores[i, k].item(), k, i) for i in range(len(scores)) for k in range(K)]
        pairs = sorted(p for p in pairs if p[0] > module.score_threshold)[::-1]
        found += [(s, k, boxes[i].tolist()) for s, k, i in pairs[: module.candidates_per_level]]
    found = [(s, k, b) for s, k, b in found if b[2] > b[0] and b[3] > b[1]]
    kept = []
    for k in range(K):
        own = [f for f in found if f[1] == k]
        boxes, scores = torch.tensor([f[2] for f in own]), torch.tensor([f[0] for f in own])
        kept += [own[i] for i in nms(boxes, scores, module.nms_threshold).tolist()]
    kept = sorted(kept)[::-1][: module.detections_per_image]
    return {
        "boxes": torch.tensor([f[2] for f in kept]),
        "labels": torch.tensor([f[1] for f in kept]),
        "scores": torch.tensor([f[0] for f in kept]),
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"candidates_per_level": 40, "score_threshold": 0.5}, {"detections_per_image": 7}],
)
def test_detections_equal_the_obvious_steps(options: dict[str, float]) -> None:
    module = postprocess(**options)
    logits, deltas, _ = maps()
    found = module(logits, deltas, None, anchors(), STRIDES, [IMAGE] * 2)
    for image in range(2):
        torch.testing.assert_close(found[image], one_by_one(module, image, logits, deltas))


def test_above_ten_thousand_boxes_classes_are_thinned_one_by_one() -> None:
    g = torch.Generator().manual_seed(0)
    low = torch.rand(6000, 2, generator=g) * 2000
    boxes = torch.cat((low, low + 10 + torch.rand(6000, 2, generator=g) * 400), dim=1)
    logits, labels = torch.randn(1, 2, 60, 100, generator=g), range(2)
    module = DensePostProcess(
        lambda anchors, values, stride: values,
        2,
        score_threshold=0.0,
        nms_threshold=0.5,
        candidates_per_level=12_000,
        detections_per_image=12_000,
    )
    values = boxes.T.reshape(1, 4, 60, 100)
    (found,) = module([logits], [values], None, [boxes], (1,), [(4000, 4000)])
    scores = logits[0].sigmoid().permute(1, 2, 0).reshape(-1, 2)
    for k in labels:
        own = found["labels"] == k
        assert torch.equal(found["boxes"][own], boxes[nms(boxes, scores[:, k], 0.5)])


def test_quality_counts_after_the_threshold() -> None:
    module = postprocess(score_threshold=0.5, nms_threshold=1.0)
    logits, deltas, quality = maps()
    plain = module(logits, deltas, None, anchors(), STRIDES, [IMAGE] * 2)[0]
    weighted = module(logits, deltas, quality, anchors(), STRIDES, [IMAGE] * 2)[0]
    assert len(plain["scores"]) == len(weighted["scores"])
    assert (plain["scores"] > 0.5).all()
    assert (weighted["scores"] < 0.5).any()
    same = [torch.full_like(q, 1e4) for q in quality]
    torch.testing.assert_close(
        module(logits, deltas, same, anchors(), STRIDES, [IMAGE] * 2)[0], plain
    )


def test_boxes_clipped_to_nothing_are_dropped() -> None:
    module = postprocess(score_threshold=0.0, nms_threshold=1.0)
    logits, deltas, _ = maps()
    outside = [d.clone() for d in deltas]
    for d in outside:
        d[:, 0::4] = 100.0  # dx: to the right of the image
    for found in module(logits, outside, None, anchors(), STRIDES, [IMAGE, (20, 30)]):
        assert len(found["boxes"]) == 0
    small = module(logits, deltas, None, anchors(), STRIDES, [IMAGE, (20, 30)])[1]["boxes"]
    assert len(small) > 0
    assert (small[:, 2] <= 30).all()
    assert (small[:, 3] <= 20).all()
    assert (small[:, 2:] > small[:, :2]).all()
