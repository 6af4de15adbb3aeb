"""Which anchors answer for which objects, against the obvious loops."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from wavevit.detection import atss_assigner, max_iou_assigner
from wavevit.detection.anchors import AnchorGenerator
from wavevit.detection.atss_assigner import ATSSAssigner
from wavevit.detection.max_iou_assigner import IGNORED, NEGATIVE, MaxIoUAssigner


def random_boxes(count: int, seed: int, grid: int = 1) -> Tensor:
    """Boxes with whole coordinates, so that equal overlaps occur."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 40, (count, 2), generator=generator)
    size = torch.randint(1, 24, (count, 2), generator=generator)
    return (torch.cat((low, low + size), dim=1) // grid * grid).float() + torch.tensor(
        [0, 0, grid, grid]
    )


def loops(
    assigner: MaxIoUAssigner, boxes: Tensor, gt_boxes: Tensor
) -> tuple[list[int], list[float]]:
    """The rules of the assignment, one box at a time."""
    iou = box_iou(gt_boxes, boxes)
    matched = []
    for column in iou.T:
        best = column.max().item()
        if best >= assigner.positive_iou:
            matched.append(column.tolist().index(best))
        else:
            matched.append(NEGATIVE if best < assigner.negative_iou else IGNORED)
    for gt, row in enumerate(iou):
        if assigner.match_low_quality and row.max() >= assigner.min_positive_iou:
            for box in (row == row.max()).nonzero().flatten().tolist():
                matched[box] = gt
    return matched, iou.amax(dim=0).tolist()


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_pairs", [2**23, 250])
def test_max_iou_equals_the_loops(
    monkeypatch: pytest.MonkeyPatch, seed: int, low_quality: bool, max_pairs: int
) -> None:
    """Also when the ground truth is compared in several parts."""
    monkeypatch.setattr(max_iou_assigner, "_MAX_PAIRS", max_pairs)
    assigner = MaxIoUAssigner(0.5, 0.4, min_positive_iou=0.2, match_low_quality=low_quality)
    boxes, gt_boxes = random_boxes(80, seed, grid=4), random_boxes(12, seed + 10, grid=4)
    matched, iou = assigner(boxes, gt_boxes)
    expected, expected_iou = loops(assigner, boxes, gt_boxes)
    assert matched.tolist() == expected
    assert iou.tolist() == pytest.approx(expected_iou)


def test_of_two_claims_the_later_object_wins() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    gt_boxes = torch.tensor([[0.0, 0, 10, 30], [0, 0, 30, 10]])
    assert MaxIoUAssigner(0.7, 0.3)(boxes, gt_boxes).matched.tolist() == [1, NEGATIVE]


@pytest.mark.parametrize("positive", [0.5, 0.0])
def test_without_objects_or_boxes_nothing_matches(positive: float) -> None:
    assigner, none = MaxIoUAssigner(positive, 0.4), torch.zeros(0, 4)
    matched, iou = assigner(random_boxes(5, 0), none)
    assert matched.tolist() == [NEGATIVE] * 5
    assert iou.tolist() == [0] * 5
    assert len(assigner(none, random_boxes(5, 0)).matched) == 0


def atss_loops(levels: list[Tensor], gt_boxes: Tensor, k: int) -> list[int]:
    """Algorithm 1 of the paper, one object at a time."""
    anchors = torch.cat(levels)
    iou = box_iou(gt_boxes, anchors)
    matched, best = [NEGATIVE] * len(anchors), [-1.0] * len(anchors)
    for gt, box in enumerate(gt_boxes):
        candidates, first = [], 0
        for level in levels:
            centres = (level[:, :2] + level[:, 2:]) / 2
            distance = (centres - (box[:2] + box[2:]) / 2).norm(dim=1)
            candidates += (distance.argsort()[:k] + first).tolist()
            first += len(level)
        overlaps = iou[gt, candidates]
        threshold = overlaps.mean() + overlaps.std()
        for i in candidates:
            x, y = (anchors[i, :2] + anchors[i, 2:]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if iou[gt, i] >= threshold and inside and iou[gt, i] > best[i]:
                matched[i], best[i] = gt, iou[gt, i].item()
    return matched


@pytest.mark.parametrize("max_pairs", [2**23, 100])
@pytest.mark.parametrize("seed", range(3))
def test_atss_equals_the_loops(monkeypatch: pytest.MonkeyPatch, seed: int, max_pairs: int) -> None:
    monkeypatch.setattr(atss_assigner, "_MAX_PAIRS", max_pairs)
    levels = AnchorGenerator((8, 16, 32), (4,), (1.0,))([(9, 12), (5, 6), (3, 3)])
    # No ties between distances, whose order would be nobody's choice.
    gt_boxes = random_boxes(8, seed) * torch.tensor([1.7, 1.3, 1.7, 1.3]) + 0.137
    matched, iou = ATSSAssigner(9)(levels, gt_boxes)
    assert matched.tolist() == atss_loops(levels, gt_boxes, 9)
    assert (matched >= 0).any()
    positives = (matched >= 0).nonzero().squeeze(1)
    expected = box_iou(gt_boxes, torch.cat(levels))[matched[positives], positives]
    torch.testing.assert_close(iou[positives], expected)


def test_atss_without_objects_finds_only_negatives() -> None:
    levels = AnchorGenerator((8, 16), (4,), (1.0,))([(2, 2), (1, 1)])
    matched, iou = ATSSAssigner()(levels, torch.zeros(0, 4))
    assert matched.tolist() == [NEGATIVE] * 5
    assert iou.tolist() == [0] * 5
