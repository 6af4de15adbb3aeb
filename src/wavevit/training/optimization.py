"""Optimizer and learning-rate schedule: timm's, with the schedule counted in steps."""

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import CosineLRScheduler
from torch import nn


class Optimization:
    """How weights move: optimizer, weight decay groups, warm-up and cosine.

    Args:
        opt: Optimizer, any name of timm.
        lr: Peak learning rate.
        lr_reference_batch: Images per step that ``lr`` is meant for; the rate is scaled linearly
            to the real number. None: ``lr`` is used as it is.
        weight_decay: Weight decay; not applied to norms and biases.
        betas: Momentum coefficients of Adam-like optimizers.
        eps: Denominator offset of Adam-like optimizers.
        layer_decay: Factor on the learning rate per layer from the head down, in (0, 1], or None.
        epochs: Epochs of warm-up and cosine together; may be fractional.
        warmup_epochs: Epochs of linear warm-up at the start.
        cooldown_epochs: Epochs at ``min_lr`` after the cosine.
        warmup_lr: Learning rate at the first step.
        min_lr: Learning rate at the end of the cosine.

    Raises:
        ValueError: A value out of range, or an optimizer timm does not have.
    """

    def __init__(
        self,
        opt: str = "adamw",
        lr: float = 1e-3,
        lr_reference_batch: int | None = None,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        layer_decay: float | None = None,
        epochs: float = 50,
        warmup_epochs: float = 5,
        cooldown_epochs: float = 0,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
    ) -> None:
        if opt.lower() not in list_optimizers():
            near = ", ".join(list_optimizers(f"*{opt.lower()[:4]}*")[:5]) or "adamw, sgd, lamb"
            raise ValueError(f"timm has no optimizer named {opt!r}; near names: {near}")
        for name, value, positive in (
            ("lr", lr, True),
            ("epochs", epochs, True),
            ("weight_decay", weight_decay, False),
            ("warmup_epochs", warmup_epochs, False),
            ("cooldown_epochs", cooldown_epochs, False),
            ("warmup_lr", warmup_lr, False),
            ("min_lr", min_lr, False),
        ):
            if not math.isfinite(value) or value < 0 or (positive and value == 0):
                least = "above" if positive else "at least"
                raise ValueError(f"optim.{name} must be {least} 0, got {value}")
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise ValueError(f"optim.layer_decay must be in (0, 1], got {layer_decay}")
        if warmup_epochs >= epochs:
            raise ValueError(
                f"optim.warmup_epochs ({warmup_epochs}) must be below optim.epochs ({epochs})"
            )
        self.opt = opt.lower()
        self.lr = lr
        self.lr_reference_batch = lr_reference_batch
        self.weight_decay = weight_decay
        self.betas = betas
        self.eps = eps
        self.layer_decay = layer_decay
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.cooldown_epochs = cooldown_epochs
        self.warmup_lr = warmup_lr
        self.min_lr = min_lr

    @property
    def total_epochs(self) -> float:
        """Epochs with the cool-down."""
        return self.epochs + self.cooldown_epochs

    def optimizer(self, model: nn.Module, images_per_step: int) -> torch.optim.Optimizer:
        """The optimizer over the trainable parameters.

        Args:
            model: The network.
            images_per_step: Images of one step over all processes.
        """
        lr = self.lr
        if self.lr_reference_batch is not None:
            lr *= images_per_step / self.lr_reference_batch
        info = get_optimizer_info(self.opt)
        arguments: dict[str, Any] = {}
        if info.has_betas:
            arguments["betas"] = tuple(self.betas)
        if info.has_eps:
            arguments["eps"] = self.eps
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=self.opt,
            lr=lr,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            **arguments,
        )
        return optimizer

    def scheduler(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: float
    ) -> CosineLRScheduler:
        """The schedule; call ``step_update(step)`` before each step.

        Args:
            optimizer: From `optimizer`.
            steps_per_epoch: Optimizer steps that one pass over the data takes.
        """
        return CosineLRScheduler(
            optimizer,
            t_initial=max(
                math.ceil(self.epochs * steps_per_epoch), 2
            ),  # timm warns of a cosine of 1
            lr_min=self.min_lr,
            warmup_t=math.ceil(self.warmup_epochs * steps_per_epoch),
            warmup_lr_init=self.warmup_lr,
            t_in_epochs=False,
        )
