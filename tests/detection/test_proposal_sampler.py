"""The sampler's numbers, order and fairness."""

import pytest
import torch

from wavevit.detection.max_iou_assigner import MaxIoUAssigner
from wavevit.detection.proposal_sampler import RandomSampler
from wavevit.detection.regions import RegionSampler


def marks(num_positive: int, num_negative: int, num_ignored: int) -> tuple[torch.Tensor, ...]:
    kind = torch.tensor([1] * num_positive + [0] * num_negative + [-1] * num_ignored)
    kind = kind[torch.randperm(len(kind), generator=torch.Generator().manual_seed(0))]
    return kind == 1, kind == 0


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (50, 500, (16, 48)),  # positives are bounded, negatives fill up
        (5, 500, (5, 59)),
        (50, 7, (16, 7)),  # positives do not fill up
        (0, 500, (0, 64)),
        (3, 0, (3, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_positives_are_bounded_and_negatives_fill_up(
    positives: int, negatives: int, expected: tuple[int, int]
) -> None:
    is_positive, is_negative = marks(positives, negatives, 9)
    sample = RandomSampler(64, 0.25)(is_positive, is_negative)
    assert (len(sample.positive), len(sample.negative)) == expected
    assert is_positive[sample.positive].all()
    assert is_negative[sample.negative].all()
    for indices in sample:
        assert (indices.diff() > 0).all()


def test_every_candidate_is_drawn_equally_often() -> None:
    torch.manual_seed(0)
    is_positive, is_negative = marks(20, 40, 0)
    counts = torch.zeros(60)
    for _ in range(2000):
        for indices in RandomSampler(20, 0.5)(is_positive, is_negative):
            counts[indices] += 1
    # 10 of 20 and 10 of 40; five standard deviations of a binomial.
    assert (counts[is_positive] / 2000 - 0.5).abs().max() < 0.056
    assert (counts[is_negative] / 2000 - 0.25).abs().max() < 0.05


@pytest.mark.parametrize("arguments", [(0, 0.5), (8, 0.0), (8, 1.5)])
def test_impossible_numbers_are_refused(arguments: tuple[int, float]) -> None:
    with pytest.raises(ValueError, match=r"num >= 1 and positive_fraction in \(0, 1\]"):
        RandomSampler(*arguments)


def test_ground_truths_are_regions_too_and_positives_come_first() -> None:
    sampler = RegionSampler(MaxIoUAssigner(0.5, 0.5), RandomSampler(100, 1.0), num_classes=7)
    proposals = torch.tensor([[0.0, 0, 9, 9], [50, 50, 60, 60], [0, 0, 20, 19], [1, 0, 11, 10]])
    target = {
        "boxes": torch.tensor([[0.0, 0, 20, 20], [0, 0, 10, 10]]),
        "labels": torch.tensor([5, 3]),
    }
    sample = sampler(proposals, target)
    assert sample.num_positive == 5
    assert sample.gt_index.tolist() == [0, 1, 1, 0, 1]
    assert sample.labels.tolist() == [5, 3, 3, 5, 3, 7]
    assert sample.is_gt.tolist() == [True, True, False, False, False, False]
    assert torch.equal(sample.boxes[:2], target["boxes"])
    assert torch.equal(sample.boxes[2:5], proposals[[0, 2, 3]])
    assert torch.equal(sample.boxes[5:], proposals[1:2])


def test_an_image_without_objects_gives_background() -> None:
    sampler = RegionSampler(MaxIoUAssigner(0.5, 0.5), RandomSampler(3, 0.25), num_classes=7)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    sample = sampler(torch.rand(8, 4), nothing)
    assert sample.num_positive == 0
    assert sample.labels.tolist() == [7, 7, 7]
    assert not sample.is_gt.any()
