"""Optimizer and learning-rate schedule: timm's, with the schedule counted in steps."""

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, Literal

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

_MOST_WARMUP_EPOCHS = 5.0
_MOST_WARMUP_SHARE = 0.1  # of the epochs


class Optimization:
    """How weights move: optimizer, weight decay groups, warm-up and schedule.

    Args:
        opt: Optimizer, any name of timm.
        lr: Peak learning rate.
        lr_reference_batch: Images per step that ``lr`` is meant for; the rate is scaled linearly
            to the real number. None: ``lr`` is used as it is.
        weight_decay: Weight decay; what it is not applied to says ``no_decay``.
        no_decay: Patterns of names of parameters without weight decay, such as "*.norm.*"; no
            patterns at all: everything is decayed. None: norms, biases, and what the network
            itself asks for.
        betas: Momentum coefficients of Adam-like optimizers.
        eps: Denominator offset of Adam-like optimizers.
        layer_decay: Factor on the learning rate per layer from the head down, in (0, 1], or None.
        schedule: What the learning rate follows after the warm-up: "cosine" and "poly" fall to
            ``min_lr``, "step" is multiplied by ``step_gamma`` after each of ``step_epochs``.
        epochs: Epochs of warm-up and schedule together; may be fractional.
        warmup_epochs: Epochs of linear warm-up at the start; None takes 5, but no more than a tenth
            of ``epochs``.
        warmup_steps: Steps of it instead, which do not depend on the size of the data; then
            ``warmup_epochs`` is not looked at.
        cooldown_epochs: Epochs after the schedule, at its last learning rate.
        warmup_lr: Learning rate at the first step.
        warmup_factor: Learning rate at the first step instead, as a part of the schedule's.
        min_lr: Learning rate at the end of "cosine" and "poly".
        step_epochs: Epochs after which "step" lowers the rate, rising.
        step_gamma: What "step" multiplies the rate by.
        poly_power: Exponent of "poly", in (1 - part done) ** power; 1 is a straight line.

    Raises:
        ValueError: A value out of range, or an optimizer timm does not have.
    """

    def __init__(
        self,
        opt: str = "adamw",
        lr: float = 1e-3,
        lr_reference_batch: int | None = None,
        weight_decay: float = 0.05,
        no_decay: list[str] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        layer_decay: float | None = None,
        schedule: Literal["cosine", "step", "poly"] = "cosine",
        epochs: float = 50,
        warmup_epochs: float | None = None,
        warmup_steps: int | None = None,
        cooldown_epochs: float = 0,
        warmup_lr: float = 1e-6,
        warmup_factor: float | None = None,
        min_lr: float = 1e-5,
        step_epochs: tuple[float, ...] = (8, 11),
        step_gamma: float = 0.1,
        poly_power: float = 1.0,
    ) -> None:
        if opt.lower() not in list_optimizers():
            near = ", ".join(list_optimizers(f"*{opt.lower()[:4]}*")[:5]) or "adamw, sgd, lamb"
            raise ValueError(f"timm has no optimizer named {opt!r}; near names: {near}")
        if warmup_epochs is None:
            warmup_epochs = min(_MOST_WARMUP_EPOCHS, _MOST_WARMUP_SHARE * epochs)
        for name, value, positive in (
            ("lr", lr, True),
            ("epochs", epochs, True),
            ("weight_decay", weight_decay, False),
            ("warmup_epochs", warmup_epochs, False),
            ("cooldown_epochs", cooldown_epochs, False),
            ("warmup_lr", warmup_lr, False),
            ("warmup_steps", warmup_steps or 0, False),
            ("min_lr", min_lr, False),
            ("step_gamma", step_gamma, True),
            ("poly_power", poly_power, True),
        ):
            if not math.isfinite(value) or value < 0 or (positive and value == 0):
                least = "above" if positive else "at least"
                raise ValueError(f"optim.{name} must be {least} 0, got {value}")
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise ValueError(f"optim.layer_decay must be in (0, 1], got {layer_decay}")
        if layer_decay is not None and no_decay is not None:
            raise ValueError(
                "optim.layer_decay has its own groups of parameters: leave optim.no_decay at null"
            )
        if warmup_epochs >= epochs and warmup_steps is None:
            raise ValueError(
                f"optim.warmup_epochs ({warmup_epochs}) must be below optim.epochs ({epochs})"
            )
        if warmup_factor is not None and not 0 <= warmup_factor <= 1:
            raise ValueError(f"optim.warmup_factor must be in [0, 1], got {warmup_factor}")
        if schedule == "step" and not _rises_within(step_epochs, epochs):
            raise ValueError(
                f"optim.step_epochs must rise from above 0 to below optim.epochs ({epochs:g}), got "
                f"{list(step_epochs)}"
            )
        self.opt = opt.lower()
        self.lr = lr
        self.lr_reference_batch = lr_reference_batch
        self.weight_decay = weight_decay
        self.no_decay = no_decay
        self.betas = betas
        self.eps = eps
        self.layer_decay = layer_decay
        self.schedule = schedule
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.warmup_steps = warmup_steps
        self.cooldown_epochs = cooldown_epochs
        self.warmup_lr = warmup_lr
        self.warmup_factor = warmup_factor
        self.min_lr = min_lr
        self.step_epochs = step_epochs
        self.step_gamma = step_gamma
        self.poly_power = poly_power

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
        if self.no_decay is not None:
            arguments["param_group_fn"] = self._groups
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=self.opt,
            lr=lr,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            **arguments,
        )
        return optimizer

    def _groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Trainable parameters with and without weight decay, by their names alone."""
        patterns = self.no_decay or []
        names = [name for name, _ in model.named_parameters()]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"optim.no_decay: no parameter has a name like {pattern!r}; they are called "
                    f"such as {names[0]} and {names[-1]}"
                )
        groups: dict[float, list[nn.Parameter]] = {self.weight_decay: [], 0.0: []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                is_excluded = any(fnmatchcase(name, pattern) for pattern in patterns)
                groups[0.0 if is_excluded else self.weight_decay].append(parameter)
        return [
            {"params": parameters, "weight_decay": decay}
            for decay, parameters in groups.items()
            if parameters
        ]

    def scheduler(self, optimizer: torch.optim.Optimizer, steps_per_epoch: float) -> Scheduler:
        """The schedule; call ``step_update(step)`` before each step.

        Args:
            optimizer: From `optimizer`.
            steps_per_epoch: Optimizer steps that one pass over the data takes.
        """
        num_steps = max(
            math.ceil(self.epochs * steps_per_epoch - 1e-9), 2
        )  # timm warns of a cosine of 1
        warmup_steps = self.warmup_steps
        if warmup_steps is None:
            warmup_steps = math.ceil(self.warmup_epochs * steps_per_epoch - 1e-9)
        if self.schedule == "cosine":
            peak = max(group["lr"] for group in optimizer.param_groups)
            start = self.warmup_lr if self.warmup_factor is None else self.warmup_factor * peak
            return CosineLRScheduler(
                optimizer,
                t_initial=num_steps,
                lr_min=self.min_lr,
                warmup_t=warmup_steps,
                warmup_lr_init=start,
                t_in_epochs=False,
            )
        drops = [math.ceil(epoch * steps_per_epoch - 1e-9) for epoch in self.step_epochs]

        def by_steps(peak: float, step: int) -> float:
            return peak * self.step_gamma ** sum(step >= drop for drop in drops)

        def polynomial(peak: float, step: int) -> float:
            left = 1 - min(step / num_steps, 1)
            return self.min_lr + (peak - self.min_lr) * left**self.poly_power

        rate = by_steps if self.schedule == "step" else polynomial
        return WarmedUpScheduler(optimizer, rate, warmup_steps, self.warmup_lr, self.warmup_factor)


class WarmedUpScheduler(Scheduler):
    """A rate by step, reached by a linear warm-up that it is multiplied with.

    With `factor`, step t < W of the warm-up has the rate's (factor + (1 - factor) t / W), as in the
    published detectors and segmenters; milestones fall on their very step. timm's own schedules
    warm up to the peak, and their milestones come one step early.

    Args:
        optimizer: Its groups' rates are the peaks.
        rate: Learning rate without warm-up, from a peak and a step.
        warmup_steps: Steps of the warm-up, W.
        warmup_lr: Learning rate of the first step.
        factor: Learning rate of the first step as a part of the rate; None takes `warmup_lr`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rate: Callable[[float, int], float],
        warmup_steps: int,
        warmup_lr: float,
        factor: float | None,
    ) -> None:
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self.rate = rate
        self.warmup_steps = warmup_steps
        self.warmup_lr = warmup_lr
        self.factor = factor

    def _get_lr(self, t: int) -> list[float]:
        rates = [self.rate(peak, t) for peak in self.base_values]
        if t >= self.warmup_steps:
            return rates
        done = t / self.warmup_steps
        starts = [self.warmup_lr if self.factor is None else self.factor * r for r in rates]
        return [start + (r - start) * done for start, r in zip(starts, rates, strict=True)]


def _rises_within(values: Sequence[float], limit: float) -> bool:
    edges = [0.0, *values, limit]
    return len(values) > 0 and all(a < b for a, b in pairwise(edges))
