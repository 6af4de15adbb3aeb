"""The training loop, shared by all tasks; steps are its only clock."""

import logging
import math
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import lightning_fabric
import timm
import torch
from lightning_fabric import Fabric
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import wavevit
from wavevit.data.loader import Batch
from wavevit.training.checkpoint import (
    load_newest_checkpoint,
    restore_rng_state,
    rng_state,
    save_checkpoint,
)
from wavevit.training.optimization import Optimization
from wavevit.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16", "bf16-true"]
_FABRIC_PRECISION: dict[str, Any] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "bf16-true": "bf16-true",
}


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the weights are those before the step."""


class Task(Protocol):
    """What the loop needs of a task: a model, batches, a loss and an evaluation."""

    num_samples: int
    """Training samples per epoch."""

    batch_size: int
    """Samples per process and forward pass."""

    def build_model(self) -> nn.Module:
        """The network with its initial or fine-tuned weights."""

    def set_train_mode(self, model: nn.Module) -> None:
        """Puts the network in training mode, frozen parts excepted."""

    def train_batches(self, fabric: Fabric, start: int, stop: int) -> Iterator[Batch]:
        """Batches start..stop of the run, on the device."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar."""

    def sample_ids(self, batch: Batch) -> list[str]:
        """Ids of a batch's samples, for messages."""

    def evaluate(self, fabric: Fabric, model: nn.Module) -> dict[str, float]:
        """Metrics on the validation set, on every process alike; "score" is to be maximised."""

    def save_best(self, run: RunDirectory, model: nn.Module, metrics: dict[str, float]) -> None:
        """Writes the network as a model file."""

    def load_best(self, run: RunDirectory, model: nn.Module) -> None:
        """Loads what `save_best` wrote."""


class Progress(Protocol):
    """Where the loop says how far it is."""

    def step(self, row: dict[str, Any], total_steps: int) -> None:
        """A logged training step."""

    def evaluation(self, row: dict[str, Any], best: bool) -> None:
        """An evaluation."""

    def note(self, text: str) -> None:
        """A message."""


@dataclass
class Position:
    """Where a run stands; part of a checkpoint.

    Attributes:
        step: Optimizer steps done.
        best_score: Best validation score so far.
        best_step: Step of the best score.
        evaluations_since_best: Evaluations without a better score.
        log_bytes: Length of the log at this step.
        seconds: Training time so far, evaluation included.
        unreadable: Files that could not be read: sample id to reason.
    """

    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    evaluations_since_best: int = 0
    log_bytes: int = 0
    seconds: float = 0.0
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        finished: False when a signal stopped it.
        position: Where it stood.
        total_steps: Steps of the whole run.
        metrics: Evaluation of the best network; empty when a signal stopped the run.
        early: Whether early stopping ended it.
    """

    finished: bool
    position: Position
    total_steps: int
    metrics: dict[str, float]
    early: bool = False


class Trainer:
    """Settings of the loop that do not depend on the task.

    Args:
        precision: "fp32"; "bf16" or "fp16" mixed precision; "bf16-true" for pure bf16.
        accelerator: "auto", "cpu", "cuda" or "mps".
        accumulate: Forward passes per optimizer step.
        clip_grad: Largest gradient norm; None does not clip.
        ema_decay: Decay of the averaged weights that are evaluated and saved; None for no average.
        evaluate_every: Epochs between evaluations; may be fractional.
        checkpoint_every: Steps between checkpoints; None saves at every evaluation.
        keep_checkpoints: Checkpoints to keep.
        patience: Evaluations without a better score before the run ends early; None never does.
        log_every: Steps between log rows.

    Raises:
        ValueError: A value out of range.
    """

    def __init__(
        self,
        precision: Precision = "fp32",
        accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
        accumulate: int = 1,
        clip_grad: float | None = None,
        ema_decay: float | None = None,
        evaluate_every: float = 1,
        checkpoint_every: int | None = None,
        keep_checkpoints: int = 2,
        patience: int | None = None,
        log_every: int = 10,
    ) -> None:
        for name, value in (
            ("accumulate", accumulate),
            ("evaluate_every", evaluate_every),
            ("checkpoint_every", checkpoint_every),
            ("keep_checkpoints", keep_checkpoints),
            ("patience", patience),
            ("log_every", log_every),
            ("clip_grad", clip_grad),
        ):
            if value is not None and value <= 0:
                raise ValueError(f"trainer.{name} must be above 0, got {value}")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ValueError(f"trainer.ema_decay must be between 0 and 1, got {ema_decay}")
        self.precision = precision
        self.accelerator = accelerator
        self.accumulate = accumulate
        self.clip_grad = clip_grad
        self.ema_decay = ema_decay
        self.evaluate_every = evaluate_every
        self.checkpoint_every = checkpoint_every
        self.keep_checkpoints = keep_checkpoints
        self.patience = patience
        self.log_every = log_every

    def fit(
        self,
        task: Task,
        optim: Optimization,
        run: RunDirectory,
        *,
        seed: int,
        resume: bool,
        progress: Progress,
    ) -> Outcome:
        """Trains until the last step, early stopping or a signal.

        Args:
            task: What to train.
            optim: How.
            run: Where results go.
            seed: Seed of weights, order and augmentation.
            resume: Goes on from the newest checkpoint in the run directory, if there is one.
            progress: Where to report.

        Raises:
            NonFiniteLossError: NaN or infinite loss.
            ValueError: An image of the validation set cannot be read; damaged checkpoints.
        """
        fabric = self._fabric()
        fabric.seed_everything(seed, verbose=False)
        network = task.build_model()
        images_per_step = task.batch_size * self.accumulate * fabric.world_size
        steps_per_epoch = task.num_samples / images_per_step
        total_steps = math.ceil(optim.total_epochs * steps_per_epoch)
        optimizer = optim.optimizer(network, images_per_step)
        model, optimizer = fabric.setup(network, optimizer)  # moves the network to the device
        ema = None if self.ema_decay is None else ModelEmaV3(network, decay=self.ema_decay)
        evaluated_network = network if ema is None else ema.module
        scheduler = optim.scheduler(optimizer, steps_per_epoch)
        position = Position()
        saved_step = -1

        def state() -> dict[str, Any]:
            return {
                "model": network.state_dict(),
                "ema": None if ema is None else ema.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": _scaler_state(fabric),
                "position": asdict(position),
                "rng": rng_state(),
                "config": run.config,
                "versions": versions(),
            }

        def save() -> None:
            nonlocal saved_step
            position.log_bytes = run.log_bytes()
            save_checkpoint(run.checkpoints, position.step, state(), keep=self.keep_checkpoints)
            saved_step = position.step

        if resume and (saved := load_newest_checkpoint(run.checkpoints)):
            run.check_config(saved["config"])
            network.load_state_dict(saved["model"])
            if ema is not None:
                ema.module.load_state_dict(saved["ema"])
            optimizer.load_state_dict(saved["optimizer"])
            _load_scaler_state(fabric, saved["scaler"])
            position = Position(**saved["position"])
            restore_rng_state(saved["rng"])
            progress.note(f"resumed at step {position.step} of {total_steps}")
        run.open_log(position.log_bytes, purge_step=position.step)

        first_batch = position.step * self.accumulate
        batches = task.train_batches(fabric, first_batch, total_steps * self.accumulate)
        metrics: dict[str, float] = {}
        early = self._out_of_patience(position)
        task.set_train_mode(network)
        meter = _Meter()
        with stop_signals() as stop:
            while position.step < total_steps and not early and not stop:
                started = time.perf_counter()
                scheduler.step_update(position.step)
                loss = 0.0
                for pass_ in range(self.accumulate):
                    batch = next(batches)
                    position.unreadable.update(batch.unreadable)
                    last_pass = pass_ == self.accumulate - 1
                    with fabric.no_backward_sync(model, enabled=not last_pass):
                        batch_loss = task.loss(model, batch) / self.accumulate
                        fabric.backward(batch_loss)
                    loss += self._finite(batch_loss, position.step, task, batch)
                grad_norm = self._clip(fabric, model, optimizer)
                optimizer.step()
                optimizer.zero_grad()
                if ema is not None:
                    ema.update(network, step=position.step)
                position.step += 1
                position.seconds += time.perf_counter() - started
                meter.add(loss, images_per_step, time.perf_counter() - started)

                at_end = position.step == total_steps
                if position.step % self.log_every == 0 or at_end:
                    row = {
                        "kind": "train",
                        "step": position.step,
                        "epoch": round(position.step / steps_per_epoch, 4),
                        "lr": max(group["lr"] for group in optimizer.param_groups),
                        "grad_norm": grad_norm,
                        **meter.take(),
                    }
                    run.log(row)
                    progress.step(row, total_steps)
                evaluated = at_end or _crosses(position.step, steps_per_epoch * self.evaluate_every)
                if evaluated:
                    started = time.perf_counter()
                    metrics = task.evaluate(fabric, evaluated_network)
                    task.set_train_mode(network)
                    position.seconds += time.perf_counter() - started
                    early = self._judge(metrics, position)
                    row = {
                        "kind": "evaluation",
                        "step": position.step,
                        "epoch": round(position.step / steps_per_epoch, 4),
                        **metrics,
                    }
                    run.log(row)
                    best = position.best_step == position.step
                    progress.evaluation(row, best)
                    if best and fabric.is_global_zero:
                        task.save_best(run, evaluated_network, metrics)
                due = (
                    evaluated
                    if self.checkpoint_every is None
                    else position.step % self.checkpoint_every == 0
                )
                if (due or at_end or early) and fabric.is_global_zero:
                    save()
            # Inside the context: a signal that comes while this one is handled is no harm.
            if stop and saved_step != position.step and fabric.is_global_zero:
                save()
        run.close_log()
        finished = early or position.step >= total_steps
        if finished and (not metrics or position.best_step != position.step):
            # What is reported and drawn is what was saved: the best network.
            task.load_best(run, evaluated_network)
            metrics = task.evaluate(fabric, evaluated_network)
        return Outcome(finished, position, total_steps, metrics, early)

    def _fabric(self) -> Fabric:
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # not its AMP banner
        try:
            fabric = Fabric(
                accelerator=self.accelerator, devices=1, precision=_FABRIC_PRECISION[self.precision]
            )
            fabric.launch()
        except RuntimeError as error:  # Fabric's MisconfigurationException is one
            reason = " ".join(str(error).split())
            raise ValueError(f"trainer.accelerator {self.accelerator!r}: {reason}") from error
        return fabric

    def _clip(self, fabric: Fabric, model: Any, optimizer: Any) -> float | None:
        if self.clip_grad is None:
            return None
        norm = fabric.clip_gradients(
            model, optimizer, max_norm=self.clip_grad, error_if_nonfinite=False
        )
        return float(norm) if norm is not None else None

    def _finite(self, loss: Tensor, step: int, task: Task, batch: Batch) -> float:
        value = loss.item()
        if not math.isfinite(value):
            ids = task.sample_ids(batch)
            more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
            raise NonFiniteLossError(
                f"the loss is {value} at step {step + 1} on samples {', '.join(ids[:8])}{more}; "
                "the weights are those before the step. Try a lower learning rate, gradient "
                "clipping or fp32"
            )
        return value

    def _judge(self, metrics: dict[str, float], position: Position) -> bool:
        """Updates the best score; True when patience is over."""
        score = metrics["score"]
        if score > position.best_score:
            position.best_score = score
            position.best_step = position.step
            position.evaluations_since_best = 0
        else:
            position.evaluations_since_best += 1
        return self._out_of_patience(position)

    def _out_of_patience(self, position: Position) -> bool:
        return self.patience is not None and position.evaluations_since_best >= self.patience


class _Meter:
    """Mean loss and throughput since the last log row."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.images = 0
        self.seconds = 0.0

    def add(self, loss: float, images: int, seconds: float) -> None:
        self.losses.append(loss)
        self.images += images
        self.seconds += seconds

    def take(self) -> dict[str, float]:
        row = {
            "loss": math.fsum(self.losses) / len(self.losses),
            "images_per_s": round(self.images / self.seconds, 2),
        }
        self.__init__()  # type: ignore[misc]
        return row


def _crosses(step: int, interval: float) -> bool:
    """Whether a multiple of the interval lies in (step - 1, step]."""
    return math.floor(step / interval + 1e-9) > math.floor((step - 1) / interval + 1e-9)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM, SIGUSR1 and Ctrl-C instead of dying of them; a second Ctrl-C does stop."""
    received: list[int] = []

    def remember(number: int, frame: object) -> None:
        if number == signal.SIGINT and signal.SIGINT in received:
            raise KeyboardInterrupt
        received.append(number)

    names = ("SIGTERM", "SIGUSR1", "SIGINT")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    previous = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {
        "wavevit": wavevit.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "lightning_fabric": lightning_fabric.__version__,
    }


def _scaler_state(fabric: Fabric) -> dict[str, Any]:
    state: dict[str, Any] = fabric.strategy.precision.state_dict()
    return state


def _load_scaler_state(fabric: Fabric, state: dict[str, Any]) -> None:
    fabric.strategy.precision.load_state_dict(state)
