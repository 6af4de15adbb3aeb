"""How far a command is: a bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Silence:
    """Says nothing: for all processes of a run but one."""

    def __enter__(self) -> "Silence":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def step(self, row: dict[str, Any], total_steps: int) -> None:
        """Says nothing."""

    def evaluation(self, row: dict[str, Any], best: bool) -> None:
        """Says nothing."""

    def note(self, text: str) -> None:
        """Says nothing."""


class _Console(Console):
    """Falls silent when whoever reads its output has gone: the run's log goes on telling."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class TrainingProgress:
    """Shows the steps and evaluations of a training run.

    Args:
        seconds_between_lines: Away from a terminal, the least time between two step lines.
    """

    def __init__(self, seconds_between_lines: float = 10) -> None:
        self.console = _Console(highlight=False, soft_wrap=True)
        self.seconds_between_lines = seconds_between_lines
        self._last_line = 0.0
        self._bar: Progress | None = None
        self._bar_id: Any = None

    def __enter__(self) -> "TrainingProgress":
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self.console,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, row: dict[str, Any], total_steps: int) -> None:
        """A logged training step.

        Args:
            row: Of the log.
            total_steps: Steps of the run.
        """
        numbers = f"loss {row['loss']:.3f}  lr {row['lr']:.2e}  {row['images_per_s']:.0f} images/s"
        if self._bar is not None:
            if self._bar_id is None:
                self._bar_id = self._bar.add_task("training", total=total_steps, numbers="")
            self._bar.update(self._bar_id, completed=row["step"], numbers=numbers)
            return
        now = time.monotonic()
        if now - self._last_line >= self.seconds_between_lines or row["step"] == total_steps:
            self._last_line = now
            self.note(f"step {row['step']}/{total_steps}  epoch {row['epoch']:.2f}  {numbers}")

    def evaluation(self, row: dict[str, Any], best: bool) -> None:
        """An evaluation.

        Args:
            row: Of the log.
            best: Whether it is the best so far.
        """
        mark = "  (best so far)" if best else ""
        numbers = "  ".join(
            f"{key} {value:.4f}"
            for key, value in row.items()
            if key not in ("kind", "step", "epoch", "score")
        )
        self.note(f"epoch {row['epoch']:.2f}  validation: {numbers}{mark}")

    def note(self, text: str) -> None:
        """A message on a line of its own.

        Args:
            text: One line.
        """
        self.console.print(text, markup=False)
        sys.stdout.flush()
