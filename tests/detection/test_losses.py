"""The losses equal the formulas of their papers, and torchvision's where it has them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from wavevit.detection.losses import (
    distribution_focal_loss,
    focal_loss,
    giou_loss,
    mean_over_processes,
    paired_iou,
    quality_focal_loss,
)

LABELS = torch.tensor([2, -1, 0, -2, -1, 2, -2, 1])
POSITIVES = torch.tensor([0, 2, 5, 7])


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 3, generator=generator, dtype=torch.float64) * 3
    return logits.requires_grad_()


def one_hot(values: Tensor) -> Tensor:
    target = torch.zeros(8, 3, dtype=torch.float64)
    target[POSITIVES, LABELS[POSITIVES]] = values
    return target


def paired_boxes() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(2, 20, 2, generator=generator) * 10
    boxes = torch.cat((low, low + 0.1 + torch.rand(2, 20, 2, generator=generator) * 10), dim=2)
    return boxes[0], boxes[1]


def test_focal_loss_equals_torchvisions(logits: Tensor) -> None:
    loss = focal_loss(logits, LABELS, POSITIVES)
    (gradient,) = torch.autograd.grad(loss, logits)
    counts = (LABELS != -2)[:, None]
    expected = (sigmoid_focal_loss(logits, one_hot(torch.ones(4).double())) * counts).sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


def test_gradients_are_the_derivatives(logits: Tensor) -> None:
    quality = torch.tensor([0.3, 0.0, 1.0, 0.8], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: focal_loss(x, LABELS, POSITIVES, gamma=1.5), (logits,)
    )
    assert torch.autograd.gradcheck(
        lambda x: quality_focal_loss(x, LABELS, POSITIVES, quality), (logits,)
    )


def test_quality_focal_loss_equals_the_formula(logits: Tensor) -> None:
    quality = torch.tensor([0.3, 0.0, 1.0, 0.8], dtype=torch.float64)
    target = one_hot(quality)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    expected = (target - logits.sigmoid()).abs() ** 2 * cross_entropy
    expected = (expected * (LABELS != -2)[:, None]).sum()
    torch.testing.assert_close(quality_focal_loss(logits, LABELS, POSITIVES, quality), expected)


def test_extreme_logits_have_finite_losses_and_gradients() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 80.0]]).requires_grad_()
    labels, positives = torch.tensor([1, -1]), torch.tensor([0])
    (
        focal_loss(logits, labels, positives)
        + quality_focal_loss(logits, labels, positives, torch.tensor([0.5]))
    ).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_no_positives_still_reach_the_graph(logits: Tensor) -> None:
    labels, none = torch.full((8,), -2), torch.zeros(0, dtype=torch.int64)
    loss = focal_loss(logits, labels, none)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, logits)[0], torch.zeros(8, 3).double())


def test_distribution_focal_loss_is_least_at_the_two_bins_around_a_distance() -> None:
    """Equation 6: the minimum has the weights of linear interpolation."""
    distances = torch.tensor([[0.25, 2.0, 1.9, 0.0]])
    weights = torch.tensor([[0.75, 0.25, 0, 0], [0, 0, 1, 0], [0, 0.1, 0.9, 0], [1, 0, 0, 0]])[None]
    logits = weights.clamp(min=1e-20).log()
    loss = distribution_focal_loss(logits, distances)
    entropy = -(weights * weights.clamp(min=1e-20).log()).sum(dim=-1)
    torch.testing.assert_close(loss, entropy)
    other = logits + torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert (distribution_focal_loss(other, distances) >= loss).all()


def test_paired_overlaps_equal_torchvisions() -> None:
    boxes, others = paired_boxes()
    torch.testing.assert_close(paired_iou(boxes, others), box_iou(boxes, others).diagonal())
    torch.testing.assert_close(
        giou_loss(boxes, others), generalized_box_iou_loss(boxes, others), rtol=1e-5, atol=1e-5
    )
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert paired_iou(point, point).item() == 0  # not a division of zeros


def test_divisors_are_means_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    value = torch.tensor(3.0)
    assert mean_over_processes(value) is value
    # As one of four processes, whose numbers sum to 3 + 11.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(11))
    assert mean_over_processes(value).item() == 3.5
    assert value.item() == 3.0
