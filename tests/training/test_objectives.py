"""What a classifier is trained towards."""

from contextlib import nullcontext
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavevit.data.loader import Batch
from wavevit.models.token_label import TokenLabelLoss
from wavevit.training.objectives import DistillationLoss, LabelObjective, TokenLabelObjective

B, K = 4, 5


class FakeTeacher(nn.Module):
    """Answers with fixed numbers, and remembers what it saw."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return self.logits

    def spatial_logits(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        self.seen.append(images)
        return self.logits[:, :, None, None].expand(-1, -1, *grid)


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(0)
    return Batch(torch.randn(B, 3, 64, 96), torch.arange(B) % K, torch.arange(B), {})


@pytest.fixture
def teacher() -> Any:
    torch.manual_seed(1)
    return FakeTeacher(torch.randn(B, K) * 3)


def linear() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, K))


def test_soft_distillation_is_zero_for_a_student_that_agrees(teacher: Any, batch: Batch) -> None:
    loss = DistillationLoss(teacher, "soft", weight=1.0, temperature=3.0)
    agreed = loss(torch.tensor(7.0), teacher.logits + 5, batch.images, nullcontext())
    torch.testing.assert_close(agreed, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_soft_distillation_is_the_divergence_of_the_softened_distributions(
    teacher: Any, batch: Batch
) -> None:
    T, logits = 2.0, torch.randn(B, K)
    found = DistillationLoss(teacher, "soft", weight=0.25, temperature=T)(
        torch.tensor(8.0), logits, batch.images, nullcontext()
    )
    p, q = (teacher.logits / T).softmax(1), (logits / T).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean() * T * T
    torch.testing.assert_close(found, 0.75 * 8.0 + 0.25 * divergence)


def test_hard_distillation_takes_the_teachers_class_for_a_label(teacher: Any, batch: Batch) -> None:
    logits = torch.randn(B, K)
    found = DistillationLoss(teacher, "hard", weight=0.5, temperature=1.0)(
        torch.tensor(2.0), logits, batch.images, nullcontext()
    )
    torch.testing.assert_close(found, 1.0 + 0.5 * F.cross_entropy(logits, teacher.logits.argmax(1)))


def test_the_teacher_sees_what_the_student_sees_also_when_mixed(teacher: Any, batch: Batch) -> None:
    from timm.data import Mixup

    model = linear()
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    objective = LabelObjective(
        Mixup(mixup_alpha=0.8, num_classes=K),
        0.1,
        DistillationLoss(teacher, "hard", weight=0.5, temperature=1.0),
    )
    objective(model, batch, nullcontext()).backward()
    assert torch.equal(teacher.seen[0], seen[0])
    assert model[2].weight.grad is not None


def test_a_teacher_on_the_fly_gives_the_loss_of_maps_that_say_the_same(
    teacher: Any, batch: Batch
) -> None:
    """Uniform maps: every token and the class token have the teacher's logits."""
    rows, columns = 2, 3
    batch.token_logits = teacher.logits[:, None].expand(-1, 1 + rows * columns, -1).contiguous()
    batch.token_classes = torch.arange(K).expand(B, -1).contiguous()
    torch.manual_seed(3)
    model = timm.create_model("wavevit_test", token_label=True, num_classes=K).train()
    losses = []
    for source in (None, teacher):
        objective = TokenLabelObjective(K, 0.1, TokenLabelLoss(), source)
        torch.manual_seed(4)  # the mix box
        losses.append(objective(model, batch, nullcontext()))
    torch.testing.assert_close(losses[0], losses[1])
    losses[1].backward()
    assert all(p.grad is not None for p in model.parameters())
