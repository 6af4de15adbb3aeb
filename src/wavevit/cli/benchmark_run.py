"""A benchmark from its first group of cases to its picture."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from wavevit.cli.benchmark_display import Display, result_line
from wavevit.ops.triton_support import use_kernels
from wavevit.profiling.benchmark import Measurement, measure_group
from wavevit.profiling.benchmark_rows import Base, Row, make_rows
from wavevit.profiling.precision import Precision, is_slow_on_cpu
from wavevit.profiling.roofline import Rooflines
from wavevit.profiling.timing import append_rows, check_columns
from wavevit.profiling.workload import Case, Workload

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What is the same for all groups of cases.

    Attributes:
        workload: What the cases have in common.
        base: That throughputs are divided by.
        kernels: Whether our own GPU kernels are on.
        rounds: Timed calls of each case.
        roofline: Whether to tell what the machine allows.
        csv: File that rows are appended to.
    """

    workload: Workload
    base: Base
    kernels: bool
    rounds: int
    roofline: bool
    csv: Path | None


def measure(groups: Sequence[Sequence[Case]], options: RunOptions, display: Display) -> list[Row]:
    """The rows of all groups; each group's are in the CSV file before the next one starts.

    Args:
        groups: Of `plan`.
        options: Of the run.
        display: Where a line is shown for every case.
    """
    rooflines = Rooflines(options.workload, display.note) if options.roofline else None
    rows: list[Row] = []
    with use_kernels(options.kernels):
        for group in groups:
            with display.busy(f"{group[0].setting}: {len(group)} taking turns"):
                found = rooflines.of(group) if rooflines is not None else {}
                measured = measure_group(
                    group, options.workload, rounds=options.rounds, on_prepared=display.prepared
                )
            new = make_rows(
                measured,
                options.workload,
                options.base,
                kernels=options.kernels,
                rooflines=found,
            )
            if options.csv is not None:
                append_rows(options.csv, new)
            for row in new:
                display.note(result_line(row))
            rows += new
    return rows


def check_csv(options: RunOptions, case: Case) -> None:
    """Finds out before hours of work whether the rows will go into the file.

    Args:
        options: Of the run.
        case: Any of its cases.

    Raises:
        OSError: Nothing can be written there.
        ValueError: It has other columns.
    """
    if options.csv is None:
        return
    unmeasured = [Measurement(case, status="")]
    (row,) = make_rows(
        unmeasured, options.workload, options.base, kernels=options.kernels, rooflines={}
    )
    check_columns(options.csv, list(row))


def draw(rows: Sequence[Row], path: Path, display: Display) -> None:
    """Draws the picture of what was measured, if anything was.

    Args:
        rows: Of `measure`.
        path: PNG file to write.
        display: Where to tell.
    """
    from wavevit.pictures.speed import draw_speed

    measured = [row for row in rows if row["images_per_s"] != ""]
    if not measured:
        display.note("no picture: nothing could be measured")
        return
    draw_speed(measured, path)
    display.note(f"picture: {path}")


def warn_of_slow(precisions: Sequence[Precision], device: str) -> None:
    """One line about precisions that this processor has no instructions for.

    Args:
        precisions: Of the run.
        device: "cpu" or "cuda".
    """
    slow = [name for name in dict.fromkeys(precisions) if is_slow_on_cpu(name)]
    if device == "cpu" and slow:
        _LOGGER.warning(
            "this processor has no instructions for %s: it may take up to a hundred times as long "
            "as fp32",
            " and ".join(slow),
        )


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Inside, PyTorch has so many threads on the CPU.

    Args:
        count: None: as many as before.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
