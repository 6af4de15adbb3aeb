"""The processes that share an evaluation."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TIMEOUT_S = 600.0
"""Without an answer of another process, or of a loader's worker."""

T = TypeVar("T")


@contextmanager
def processes(device: str) -> "Iterator[Fabric | None]":
    """The processes that torchrun or SLURM started; None for a single one, which needs nothing.

    Args:
        device: "auto", "cpu" or "cuda".

    Yields:
        What connects them.
    """
    if os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")) == "1":
        yield None
        return
    from wavevit.training.processes import launch_fabric, leave

    fabric = launch_fabric(
        precision="fp32", accelerator=device, strategy="ddp", timeout_s=TIMEOUT_S
    )
    yield fabric if fabric.world_size > 1 else None
    leave()  # not after an error: the others may be waiting in the middle of something


def together(fabric: "Fabric | None", work: Callable[[], T]) -> T:
    """Does work in every process; if it fails in one of them, every one raises.

    Args:
        fabric: The processes; None for this one alone.
        work: What to do.
    """
    if fabric is None:
        return work()
    from wavevit.training import processes as training

    return training.together(fabric, work)


def place(fabric: "Fabric | None") -> tuple[int, int]:
    """Rank of this process, and how many there are.

    Args:
        fabric: The processes; None for this one alone.
    """
    return (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)


def ignore(count: int) -> None:
    """Takes the place of the progress in a process that does not speak.

    Args:
        count: How many more are done.
    """


def check_loading(batch_size: int, num_workers: int) -> None:
    """Refuses numbers out of range, before any work.

    Args:
        batch_size: Images per forward pass.
        num_workers: Processes that decode images.

    Raises:
        ValueError: One is out of range.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(
            "--batch-size must be at least 1 and --num-workers at least 0, got "
            f"{batch_size} and {num_workers}"
        )
