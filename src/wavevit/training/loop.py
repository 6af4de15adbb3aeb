"""The training loop, shared by all tasks; steps are its only clock."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from lightning_fabric import Fabric
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from wavevit.data.samplers import mix_seeds
from wavevit.data.worker_failures import worker_failures_explained
from wavevit.training.batch_norm import (
    BatchNormStatistics,
    shared_statistics,
    synchronise_batch_norm,
)
from wavevit.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from wavevit.training.optimization import Optimization
from wavevit.training.processes import (
    EarlyStop,
    Precision,
    gather,
    launch_fabric,
    on_first,
    sum_over_processes,
    together,
)
from wavevit.training.run_directory import RunDirectory
from wavevit.training.sharding import load_whole, number, shard, whole
from wavevit.training.state import Position, TrainingState


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the weights are those before the step."""


class TrainBatch(Protocol):
    """What the loop looks at of a task's batches."""

    indices: Tensor
    """Of the samples in the data set, int64 ``(B,)``, on the CPU."""

    unreadable: dict[str, str]
    """Files that could not be read on the way here: sample id to reason."""


AnyBatch = TypeVar("AnyBatch", bound=TrainBatch)


class Task(Protocol[AnyBatch]):
    """What the loop needs of a task: a model, batches, a loss and an evaluation."""

    num_samples: int
    """Training samples per epoch."""

    batch_size: int
    """Samples per process and forward pass."""

    def build_model(self) -> nn.Module:
        """The network with its initial or fine-tuned weights."""

    def set_train_mode(self, model: nn.Module) -> None:
        """Puts the network in training mode, frozen parts excepted."""

    def compiled_part(self, model: nn.Module) -> nn.Module:
        """The network, or the part of it that takes and returns nothing but tensors."""

    def train_batches(
        self, fabric: Fabric, *, start: int, stop: int, accumulate: int, timeout_s: float
    ) -> Iterator[AnyBatch]:
        """This process's batches of steps start..stop, ``accumulate`` a step, on the device."""

    def loss(self, fabric: Fabric, model: nn.Module, batch: AnyBatch) -> Tensor | dict[str, Tensor]:
        """The loss of a batch, a scalar, or the parts that it is the sum of, by name.

        The parts are logged beside their sum. Every batch of a run has the same ones.
        """

    def sample_ids(self, indices: Tensor) -> list[str]:
        """Ids of training samples, for messages."""

    def evaluate(self, fabric: Fabric, model: nn.Module) -> dict[str, float]:
        """Metrics on the validation set, on every process alike; "score" is to be maximised."""

    def save_best(
        self, run: RunDirectory, state: dict[str, Tensor], metrics: dict[str, float]
    ) -> None:
        """Writes the network's weights as a model file."""

    def load_best(self, run: RunDirectory) -> dict[str, Tensor]:
        """The weights that `save_best` wrote."""


class Progress(Protocol):
    """Where the loop says how far it is."""

    def step(self, row: dict[str, Any], total_steps: int) -> None:
        """A logged training step."""

    def evaluation(self, row: dict[str, Any], best: bool) -> None:
        """An evaluation."""

    def note(self, text: str) -> None:
        """A message."""


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
        precision: "fp32"; "bf16" or "fp16" mixed precision; "bf16-true" for pure bf16; "fp64".
        accelerator: "auto", "cpu", "cuda" or "mps".
        strategy: How several processes share the work: "ddp" keeps the whole network on each,
            "fsdp" a part of it.
        batch_norm: Running statistics of BatchNorm with several processes: "broadcast" takes
            those of process 0 at every evaluation, "reduce" their mean, "local" leaves each its
            own (process 0's are evaluated and saved); "sync" takes batch statistics over all
            processes.
        images_per_step: Images of an optimizer step over all processes; gives the number of
            forward passes per step. None: `accumulate` says it.
        accumulate: Forward passes per optimizer step, where images_per_step is None.
        clip_grad: Largest gradient norm; None does not clip.
        ema_decay: Decay of the averaged weights that are evaluated and saved; None for no average.
        evaluate_every: Epochs between evaluations; may be fractional.
        checkpoint_every: Steps between checkpoints; None saves at every evaluation.
        keep_checkpoints: Checkpoints to keep.
        patience: Evaluations without a better score before the run ends early; None never does.
        log_every: Steps between log rows.
        compile: Compile the network (torch.compile): its first steps then take minutes, the others
            less than before. What is computed differs by rounding.
        timeout_s: Longest wait for another process or for a loader's worker, seconds.

    Raises:
        ValueError: A value out of range.
    """

    def __init__(
        self,
        precision: Precision = "fp32",
        accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
        strategy: Literal["ddp", "fsdp"] = "ddp",
        batch_norm: BatchNormStatistics = "broadcast",
        images_per_step: int | None = None,
        accumulate: int = 1,
        clip_grad: float | None = None,
        ema_decay: float | None = None,
        evaluate_every: float = 1,
        checkpoint_every: int | None = None,
        keep_checkpoints: int = 2,
        patience: int | None = None,
        log_every: int = 10,
        compile: bool = False,
        timeout_s: float = 600,
    ) -> None:
        for name, value in (
            ("images_per_step", images_per_step),
            ("accumulate", accumulate),
            ("evaluate_every", evaluate_every),
            ("checkpoint_every", checkpoint_every),
            ("keep_checkpoints", keep_checkpoints),
            ("patience", patience),
            ("log_every", log_every),
            ("clip_grad", clip_grad),
            ("timeout_s", timeout_s),
        ):
            if value is not None and value <= 0:
                raise ValueError(f"trainer.{name} must be above 0, got {value}")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ValueError(f"trainer.ema_decay must be between 0 and 1, got {ema_decay}")
        if images_per_step is not None and accumulate != 1:
            raise ValueError(
                "give trainer.images_per_step or trainer.accumulate, not both: the one follows "
                "from the other"
            )
        self.precision = precision
        self.accelerator = accelerator
        self.strategy = strategy
        self.batch_norm = batch_norm
        self.images_per_step = images_per_step
        self.accumulate = accumulate
        self.clip_grad = clip_grad
        self.ema_decay = ema_decay
        self.evaluate_every = evaluate_every
        self.checkpoint_every = checkpoint_every
        self.keep_checkpoints = keep_checkpoints
        self.patience = patience
        self.log_every = log_every
        self.compile = compile
        self.timeout_s = timeout_s

    def launch(self) -> Fabric:
        """Joins the processes of the run; see `launch_fabric`.

        Raises:
            ValueError: No such device, or settings that do not go together.
            LostProcessError: The others did not come.
        """
        return launch_fabric(
            precision=self.precision,
            accelerator=self.accelerator,
            strategy=self.strategy,
            timeout_s=self.timeout_s,
        )

    def passes_per_step(self, batch_size: int, num_processes: int) -> int:
        """Forward passes of each process per optimizer step.

        Args:
            batch_size: Images per process and forward pass.
            num_processes: Processes.

        Raises:
            ValueError: ``images_per_step`` cannot be had with such batches.
        """
        if self.images_per_step is None:
            return self.accumulate
        at_once = batch_size * num_processes
        if self.images_per_step % at_once:
            raise ValueError(
                f"trainer.images_per_step is {self.images_per_step}, but {num_processes} "
                f"processes take {at_once} images at once (data.batch_size {batch_size} each): "
                "choose a batch size that divides it"
            )
        return self.images_per_step // at_once

    def fit(
        self,
        fabric: Fabric,
        task: Task[AnyBatch],
        optim: Optimization,
        run: RunDirectory,
        *,
        seed: int,
        resume: bool,
        progress: Progress,
        signals: "StopSignals",
    ) -> Outcome:
        """Trains until the last step, early stopping or a signal; called on every process.

        Args:
            fabric: From `launch`.
            task: What to train.
            optim: How.
            run: Where results go.
            seed: Seed of weights, order and augmentation.
            resume: Goes on from the newest checkpoint in the run directory, if there is one.
            progress: Where to report.
            signals: From `stop_signals`, which the caller is inside of.

        Raises:
            EarlyStop: A signal came before the first step or after the last.
            NonFiniteLossError: NaN or infinite loss.
            LoaderError: A process that loads images died.
            LostProcessError: Another process of the run died.
            OSError: A checkpoint cannot be written; older ones are whole.
            ValueError: An image of the validation set cannot be read; damaged checkpoints.
        """
        with (
            worker_failures_explained(),
            # Fabric returns a network's outputs in the default type, and so would halve fp64.
            _default_dtype(torch.float64 if self.precision == "fp64" else None),
        ):
            return self._fit(fabric, task, optim, run, seed, resume, progress, signals)

    def _fit(
        self,
        fabric: Fabric,
        task: Task[AnyBatch],
        optim: Optimization,
        run: RunDirectory,
        seed: int,
        resume: bool,
        progress: Progress,
        signals: "StopSignals",
    ) -> Outcome:
        accumulate = together(
            fabric, lambda: self.passes_per_step(task.batch_size, fabric.world_size)
        )
        images_per_step = task.batch_size * accumulate * fabric.world_size
        steps_per_epoch = task.num_samples / images_per_step
        total_steps = math.ceil(optim.total_epochs * steps_per_epoch - 1e-9)
        model, state = self._set_up(fabric, task, optim, run, seed, images_per_step)
        position = state.position
        evaluated_network = state.network if state.ema is None else state.ema.module
        scheduler = optim.scheduler(state.optimizer, steps_per_epoch)
        saved_step = -1
        if resume and self._resume(fabric, task, run, state, seed, progress):
            progress.note(f"resumed at step {position.step} of {total_steps}")
        elif run.log_bytes():
            progress.note(f"no checkpoint in {run.checkpoints}: starting again from step 0")
        run.open_log(position.log_bytes, purge_step=position.step)

        batches = task.train_batches(
            fabric,
            start=position.step,
            stop=total_steps,
            accumulate=accumulate,
            timeout_s=self.timeout_s,
        )
        metrics: dict[str, float] = {}
        early, stopping = self._out_of_patience(position), False
        task.set_train_mode(state.network)
        meter = _Meter()
        with signals.held():
            while position.step < total_steps and not early and not stopping:
                started = time.perf_counter()
                scheduler.step_update(position.step)
                losses: list[dict[str, Tensor]] = []
                indices: list[Tensor] = []
                for pass_ in range(accumulate):
                    batch = next(batches)
                    position.unreadable.update(batch.unreadable)
                    last_pass = pass_ == accumulate - 1
                    with fabric.no_backward_sync(model, enabled=not last_pass):
                        loss, parts = _with_parts(task.loss(fabric, model, batch), accumulate)
                        fabric.backward(loss)
                    losses.append({"loss": loss.detach(), **parts})
                    indices.append(batch.indices)
                mean_losses, stopping = _agree(
                    fabric, task, state, losses, indices, bool(signals.received)
                )
                grad_norm = self._clip(fabric, model, state.optimizer)
                state.optimizer.step()
                state.optimizer.zero_grad()
                if state.ema is not None:
                    state.ema.update(state.network, step=position.step)
                position.step += 1
                position.seconds += time.perf_counter() - started
                meter.add(mean_losses, images_per_step, time.perf_counter() - started)

                at_end = position.step == total_steps
                row: dict[str, Any] = {
                    "step": position.step,
                    "epoch": round(position.step / steps_per_epoch, 4),
                }
                if position.step % self.log_every == 0 or at_end:
                    lr = max(group["lr"] for group in state.optimizer.param_groups)
                    numbers = {"lr": lr, "grad_norm": grad_norm, **meter.take()}
                    run.log({"kind": "train", **row, **numbers})
                    progress.step({**row, **numbers}, total_steps)
                evaluated = at_end or _crosses(position.step, steps_per_epoch * self.evaluate_every)
                if evaluated:
                    started = time.perf_counter()
                    metrics = self._evaluate(fabric, task, run, state, evaluated_network)
                    position.seconds += time.perf_counter() - started
                    early = self._out_of_patience(position)
                    run.log({"kind": "evaluation", **row, **metrics})
                    progress.evaluation(
                        {**row, **metrics}, best=position.best_step == position.step
                    )
                due = (
                    evaluated
                    if self.checkpoint_every is None
                    else position.step % self.checkpoint_every == 0
                )
                if due or at_end or early:
                    self._save(fabric, run, state)
                    saved_step = position.step
            # Inside the context: a signal that comes while this one is handled is no harm.
            if stopping and saved_step != position.step:
                self._save(fabric, run, state)
        run.close_log()
        finished = early or position.step >= total_steps
        if finished and position.best_step == 0:  # it was lost after the last step
            metrics = self._evaluate(fabric, task, run, state, evaluated_network)
            self._save(fabric, run, state)
        elif finished and (not metrics or position.best_step != position.step):
            # What is reported and drawn is what was saved: the best network.
            best = fabric.broadcast(on_first(fabric, lambda: task.load_best(run)))
            load_whole(evaluated_network, best)
            metrics = task.evaluate(fabric, evaluated_network)
        state.collect_unreadable()
        return Outcome(finished, position, total_steps, metrics, early)

    def _set_up(
        self,
        fabric: Fabric,
        task: Task[AnyBatch],
        optim: Optimization,
        run: RunDirectory,
        seed: int,
        images_per_step: int,
    ) -> tuple[nn.Module, TrainingState]:
        """The network as wrapped for training, and what of a run changes as it goes."""
        fabric.seed_everything(seed, verbose=False)
        network = together(fabric, task.build_model)
        if self.batch_norm == "sync" and fabric.world_size > 1:
            network = synchronise_batch_norm(network, fabric.device)
        kinds = {"bf16-true": torch.bfloat16, "fp64": torch.float64}
        is_sharded = fabric.world_size > 1 and self.strategy == "fsdp"
        # What is sharded goes to the device block by block: it may not fit there as a whole.
        network.to(None if is_sharded else fabric.device, kinds.get(self.precision))
        ema = None if self.ema_decay is None else ModelEmaV3(network, decay=self.ema_decay)
        if ema is not None and is_sharded:
            shard(ema.module, fabric.strategy.device_mesh["data_parallel"])
            ema.foreach = False  # torch has no such kernels for sharded tensors
        if self.compile:
            # In place, which leaves the names of weights alone; a copy, as the averaged network
            # is, runs uncompiled.
            task.compiled_part(network).compile()
        model = fabric.setup_module(network, move_to_device=not is_sharded)
        # After the set-up, because sharding makes other parameters of a network's own.
        optimizer = fabric.setup_optimizers(optim.optimizer(network, images_per_step))
        if fabric.global_rank > 0:  # weights are drawn alike, drop path and mixing are not
            fabric.seed_everything(mix_seeds(seed, fabric.global_rank) % 2**32, verbose=False)
        state = TrainingState(
            fabric,
            network,
            optimizer,
            ema,
            run.config,
            images_per_step,
            statistics_differ=fabric.world_size > 1 and self.batch_norm != "sync",
        )
        return model, state

    def _resume(
        self,
        fabric: Fabric,
        task: Task[Any],
        run: RunDirectory,
        state: TrainingState,
        seed: int,
        progress: Progress,
    ) -> bool:
        def load() -> dict[str, Any] | None:
            if not (all_see_it or fabric.is_global_zero):
                return None
            saved = load_checkpoint(path)
            state.check(saved)
            run.check_config(saved["config"])
            return saved

        def why_lost() -> str | None:
            try:
                task.load_best(run)
            except ValueError as error:
                return str(error)
            return None

        path = fabric.broadcast(on_first(fabric, lambda: newest_checkpoint(run.checkpoints)))
        if path is None:
            return False
        # Its name tells its content, so a file of this name is the same for all.
        all_see_it = all(gather(fabric, path.is_file()))
        saved = together(fabric, load)
        if not all_see_it:
            saved = fabric.broadcast(saved)
        assert saved is not None
        state.restore(saved, seed)
        position = state.position
        lost = fabric.broadcast(on_first(fabric, why_lost)) if position.best_step > 0 else None
        if lost is not None:
            # Otherwise the run would end without a network to show, if none after it is better.
            position.best_score, position.best_step = -math.inf, 0
            position.evaluations_since_best = 0
            progress.note(f"{lost}; the next evaluation's becomes the best one")
        return True

    def _evaluate(
        self,
        fabric: Fabric,
        task: Task[Any],
        run: RunDirectory,
        state: TrainingState,
        evaluated_network: nn.Module,
    ) -> dict[str, float]:
        position = state.position
        with ExitStack() as stack:
            averages = [] if state.ema is None else [state.ema.module]
            for network in (state.network, *averages):
                stack.enter_context(shared_statistics(fabric, network, self.batch_norm))
            metrics = task.evaluate(fabric, evaluated_network)
            if metrics["score"] > position.best_score:
                position.best_score, position.best_step = metrics["score"], position.step
                position.evaluations_since_best = 0
                weights = whole(evaluated_network.state_dict(), keep=fabric.is_global_zero)
                on_first(fabric, lambda: task.save_best(run, weights, metrics))
            else:
                position.evaluations_since_best += 1
        task.set_train_mode(state.network)
        return metrics

    def _save(self, fabric: Fabric, run: RunDirectory, state: TrainingState) -> None:
        state.position.log_bytes = run.log_bytes()
        content = state.capture()
        on_first(
            fabric,
            lambda: save_checkpoint(
                run.checkpoints, state.position.step, content, keep=self.keep_checkpoints
            ),
        )

    def _clip(self, fabric: Fabric, model: Any, optimizer: Any) -> float | None:
        if self.clip_grad is None:
            return None
        norm = fabric.clip_gradients(
            model, optimizer, max_norm=self.clip_grad, error_if_nonfinite=False
        )
        return number(norm) if norm is not None else None

    def _out_of_patience(self, position: Position) -> bool:
        return self.patience is not None and position.evaluations_since_best >= self.patience


def _with_parts(
    loss: Tensor | dict[str, Tensor], accumulate: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """A pass's share of the step's loss, to go backward from, and the parts of it, if any."""
    if isinstance(loss, Tensor):
        return loss / accumulate, {}
    parts = {name: part.detach() / accumulate for name, part in loss.items()}
    return torch.stack(list(loss.values())).sum() / accumulate, parts


def _agree(
    fabric: Fabric,
    task: Task[Any],
    state: TrainingState,
    losses: list[dict[str, Tensor]],
    indices: list[Tensor],
    wants_to_stop: bool,
) -> tuple[dict[str, float], bool]:
    """Means over the processes, by name, and whether any of them was told to stop."""
    names = list(losses[0])
    # The step's one wait for the device.
    rows = torch.stack([of_pass[name] for of_pass in losses for name in names])
    values = rows.view(len(losses), len(names)).tolist()
    bad = [i for i, row in enumerate(values) if not math.isfinite(row[0])]
    sums = [0.0 if bad else math.fsum(column) for column in zip(*values, strict=True)]
    *sums, num_bad, num_stopping = sum_over_processes(
        fabric, [*sums, float(len(bad)), float(wants_to_stop)]
    )
    if num_bad:
        found = [(values[i][0], task.sample_ids(indices[i])) for i in bad]
        everywhere = [pair for part in gather(fabric, found) for pair in part]
        ids = [name for _, names in everywhere for name in names]
        more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
        raise NonFiniteLossError(
            f"the loss is {everywhere[0][0]} at step {state.position.step + 1} on samples "
            f"{', '.join(ids[:8])}{more}; the weights are those before the step. Try a lower "
            "learning rate, gradient clipping or fp32"
        )
    means = {name: total / fabric.world_size for name, total in zip(names, sums, strict=True)}
    return means, num_stopping > 0


class _Meter:
    """Mean losses and throughput since the last log row."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.images = 0
        self.seconds = 0.0

    def add(self, losses: dict[str, float], images: int, seconds: float) -> None:
        self.losses.append(losses)
        self.images += images
        self.seconds += seconds

    def take(self) -> dict[str, float]:
        count = len(self.losses)
        row = {
            name: math.fsum(of_step[name] for of_step in self.losses) / count
            for name in self.losses[0]
        }
        row["images_per_s"] = round(self.images / self.seconds, 2)
        self._restart()
        return row


def _crosses(step: int, interval: float) -> bool:
    """Whether a multiple of the interval lies in (step - 1, step]."""
    return math.floor(step / interval + 1e-9) > math.floor((step - 1) / interval + 1e-9)


@contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class StopSignals:
    """SIGTERM, SIGUSR1 and Ctrl-C: what to do about them now, and those that have come.

    Before the first step and after the last nothing needs saving: a signal raises `EarlyStop`
    wherever the process is. In between it only becomes known; a second Ctrl-C does stop.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._is_held = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, signals only become known."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def handle(self, number: int, frame: object) -> None:
        """Called by Python when a signal comes.

        Args:
            number: Which.
            frame: Where the program is.
        """
        if number == signal.SIGINT and signal.SIGINT in self.received:
            raise KeyboardInterrupt
        self.received.append(number)
        if not self._is_held:
            raise EarlyStop(f"{signal.Signals(number).name} came where there is nothing to save")


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Inside, SIGTERM, SIGUSR1 and Ctrl-C do as `StopSignals` says."""
    signals = StopSignals()
    names = ("SIGTERM", "SIGUSR1", "SIGINT")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    previous = {number: signal.signal(number, signals.handle) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
