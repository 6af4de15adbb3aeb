"""What a classifier is trained towards: labels, a teacher's answers, or token labels.

Legend: B batch, K classes, N patch tokens.
"""

from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from wavevit.data.loader import Batch
from wavevit.models.teacher import Teacher
from wavevit.models.token_label import (
    TokenLabelLoss,
    dense_token_label_targets,
    token_label_targets,
)


class Objective(Protocol):
    """A loss from a batch."""

    def __call__(
        self, model: nn.Module, batch: Batch, autocast: AbstractContextManager[None]
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            model: In training mode.
            batch: On the model's device.
            autocast: The run's precision, for networks beside the model.
        """


class LabelObjective:
    """Cross-entropy with the labels, smoothed, and mixed where images are.

    Args:
        mixing: mixup and cutmix, or None.
        smoothing: Probability mass spread over all classes, where nothing is mixed.
        distillation: A teacher's part in the loss, or None.
    """

    def __init__(
        self,
        mixing: Mixup | None,
        smoothing: float,
        distillation: "DistillationLoss | None" = None,
    ) -> None:
        self.mixing = mixing
        self.smoothing = smoothing
        self.distillation = distillation
        self.soft_loss = SoftTargetCrossEntropy()

    def __call__(
        self, model: nn.Module, batch: Batch, autocast: AbstractContextManager[None]
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            model: In training mode.
            batch: On the model's device.
            autocast: The run's precision, for the teacher.
        """
        images = batch.images
        if self.mixing is not None:
            images, targets = self.mixing(images, batch.labels)
            logits: Tensor = model(images)
            loss: Tensor = self.soft_loss(logits, targets)
        else:
            logits = model(images)
            loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.smoothing)
        if self.distillation is None:
            return loss
        return self.distillation(loss, logits, images, autocast)


class DistillationLoss:
    """Part of the loss that a teacher gives (Hinton et al. 2015; hard: Touvron et al. 2021).

    Args:
        teacher: A trained classifier of the same classes.
        kind: "soft" takes the divergence from the teacher's distribution, "hard" the
            cross-entropy with its first class.
        weight: Of the teacher, in [0, 1]; the labels have the rest.
        temperature: Both distributions are softened by, for "soft".
    """

    def __init__(
        self, teacher: Teacher, kind: Literal["soft", "hard"], weight: float, temperature: float
    ) -> None:
        self.teacher = teacher
        self.kind = kind
        self.weight = weight
        self.temperature = temperature

    def __call__(
        self,
        label_loss: Tensor,
        logits: Tensor,
        images: Tensor,
        autocast: AbstractContextManager[None],
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            label_loss: The loss against the labels, a scalar.
            logits: Of the student, ``(B, K)``.
            images: What the student saw, ``(B, 3, H, W)``.
            autocast: The run's precision.
        """
        with autocast:
            answer = self.teacher.to(images.device)(images).float()
        return (1 - self.weight) * label_loss + self.weight * self._divergence(logits, answer)

    def _divergence(self, logits: Tensor, answer: Tensor) -> Tensor:
        if self.kind == "hard":
            return F.cross_entropy(logits, answer.argmax(dim=1))
        T = self.temperature
        soft = F.kl_div(
            (logits.float() / T).log_softmax(dim=1),
            (answer / T).log_softmax(dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return soft * T * T  # gradients then are of one size for every temperature


class TokenLabelObjective:
    """Token labeling (spec section 4.1) from label maps or from a teacher on the fly.

    Args:
        num_classes: K.
        smoothing: Probability mass of the ground truth spread over all classes.
        loss: Weighs class and token terms.
        teacher: Sees the augmented images; None takes the label maps of the batch.
    """

    def __init__(
        self, num_classes: int, smoothing: float, loss: TokenLabelLoss, teacher: Teacher | None
    ) -> None:
        self.num_classes = num_classes
        self.smoothing = smoothing
        self.loss = loss
        self.teacher = teacher

    def __call__(
        self, model: nn.Module, batch: Batch, autocast: AbstractContextManager[None]
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            model: A token-label network in training mode.
            batch: On the model's device.
            autocast: The run's precision, for the teacher.
        """
        loss: Tensor = self.loss(model(batch.images), self._targets(batch, autocast))
        return loss

    @torch.no_grad()
    def _targets(self, batch: Batch, autocast: AbstractContextManager[None]) -> Tensor:
        """``(B, K, 2 + N)``."""
        if self.teacher is None:
            assert batch.token_logits is not None
            assert batch.token_classes is not None
            return token_label_targets(
                batch.labels,
                batch.token_logits,
                batch.token_classes,
                num_classes=self.num_classes,
                smoothing=self.smoothing,
            )
        H, W = batch.images.shape[-2:]
        with autocast:
            maps = self.teacher.to(batch.images.device).spatial_logits(
                batch.images, (-(-H // 32), -(-W // 32))
            )
        return dense_token_label_targets(batch.labels, maps, smoothing=self.smoothing)
