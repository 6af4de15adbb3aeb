"""One-to-one matching at the least cost."""

import itertools

import pytest
import torch
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

from wavevit.detection.hungarian import HungarianMatcher, focal_cost


def test_the_cheapest_of_all_matchings_is_found() -> None:
    costs = [torch.rand(6, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for cost, matching in zip(costs, HungarianMatcher()(costs), strict=True):
        best = min(
            sum(float(cost[p, g]) for g, p in enumerate(chosen))
            for chosen in itertools.permutations(range(6), 4)
        )
        found = cost[matching.predictions, matching.targets].sum().item()
        assert found == pytest.approx(best)
        assert sorted(matching.targets.tolist()) == [0, 1, 2, 3]
        assert (matching.predictions.diff() > 0).all()


def test_the_cost_is_the_published_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator)
    boxes = torch.rand(5, 4, generator=generator) * 20
    boxes[:, 2:] += boxes[:, :2] + 1
    gt_boxes, labels = boxes[[1, 3]] + 2, torch.tensor([2, 0])
    cost = HungarianMatcher(2.0, 5.0, 3.0).cost(logits, boxes, labels, gt_boxes, (40, 80))
    for p, g in itertools.product(range(5), range(2)):
        logit = logits[p, labels[g]]
        positive, negative = (
            sigmoid_focal_loss(logit, torch.tensor(t), alpha=0.25, gamma=2.0) for t in (1.0, 0.0)
        )
        scale = torch.tensor([80.0, 40, 80, 40])
        expected = (
            2 * (positive - negative)
            + 5 * (boxes[p] / scale - gt_boxes[g] / scale).abs().sum()
            - 3 * generalized_box_iou(boxes[p : p + 1], gt_boxes[g : g + 1])[0, 0]
        )
        torch.testing.assert_close(cost[p, g], expected)


def test_focal_cost_stays_finite_for_sure_predictions() -> None:
    cost = focal_cost(torch.tensor([-200.0, 200.0]))
    torch.testing.assert_close(cost, torch.tensor([50.0, -150.0]))


@pytest.mark.parametrize(("predictions", "targets"), [(3, 0), (2, 5), (1, 1)])
def test_more_or_fewer_targets_than_predictions(predictions: int, targets: int) -> None:
    (matching,) = HungarianMatcher()([torch.rand(predictions, targets)])
    assert len(matching.predictions) == len(matching.targets) == min(predictions, targets)
    assert matching.targets.dtype == torch.int64


def test_costs_that_are_no_numbers_are_no_error() -> None:
    """The loss tells of a network that diverged."""
    cost = torch.tensor([[torch.nan, 1.0], [torch.inf, 2.0], [0.0, -torch.inf]])
    (matching,) = HungarianMatcher()([cost])
    assert len(matching.targets) == 2
    assert HungarianMatcher()([]) == []
