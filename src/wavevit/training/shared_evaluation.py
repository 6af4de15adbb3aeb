"""An evaluation that processes share: each measures some images, all have the result."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from lightning_fabric import Fabric
from torch import nn
from torch.distributed.tensor import DTensor

from wavevit.training.processes import gather, together

Rows = TypeVar("Rows")


class SharedMetrics(Protocol[Rows]):
    """Metrics of a part of the images, which take over those of another part."""

    def rows(self) -> Rows:
        """What has been measured so far; can be pickled."""
        ...

    def merge(self, rows: Rows) -> None:
        """Adds what another one has measured."""
        ...


def measure_shares(
    fabric: Fabric,
    model: nn.Module,
    measure_share: Callable[[], None],
    *,
    num_batches: int,
    run_on_nothing: Callable[[], object],
) -> None:
    """Measures this process's share; if that fails in one process, every one raises.

    The forward passes of a sharded network are those of all processes together. So a process with
    fewer batches runs it on nothing as often as the others still have some.

    Args:
        fabric: The processes.
        model: The network, perhaps sharded.
        measure_share: Measures this process's batches.
        num_batches: How many these are.
        run_on_nothing: Runs the network on an image without content.

    Raises:
        SharedError: The work failed on some process.
    """
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        together(fabric, measure_share)
        return
    # Asked before: messages of the last passes and this one would meet.
    num_passes = max(gather(fabric, num_batches))
    measure_share()
    for _ in range(num_passes - num_batches):
        with fabric.autocast():
            run_on_nothing()


def merge_shares(fabric: Fabric, metrics: SharedMetrics[Any]) -> None:
    """Puts together what the processes have measured, on every one of them.

    Args:
        fabric: The processes.
        metrics: Of this process's share; has all afterwards.
    """
    for rank, rows in enumerate(gather(fabric, metrics.rows())):
        if rank != fabric.global_rank:
            metrics.merge(rows)
