"""How near a network comes to what the machine allows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from wavevit.profiling.counting import Count, count
from wavevit.profiling.machine import Machine, measure_machine
from wavevit.profiling.precision import Precision, dtype_of
from wavevit.profiling.timing import figures
from wavevit.profiling.workload import NOT_RUNNABLE, Case, Workload, one_line


@dataclass(frozen=True)
class Roofline:
    """The least time that a machine needs for a network.

    Attributes:
        machine: Limits of the device in the case's precision.
        each_op: Counted with every operation reading and writing memory once.
        fused: Counted with operations together that one kernel can do.
    """

    machine: Machine
    each_op: Count
    fused: Count

    def columns(self, batch_size: int, seconds: float | None) -> dict[str, object]:
        """What a row says of it.

        Args:
            batch_size: Images of a call.
            seconds: That the call took; None if it has failed.
        """
        floors = [self._floor_s(count, batch_size) for count in (self.each_op, self.fused)]
        floor, fused_floor = floors
        return {
            "gflop_per_image": figures(self.each_op.flops / 1e9),
            "mb_per_image": figures(self.each_op.activation_bytes / 1e6),
            "fused_mb_per_image": figures(self.fused.activation_bytes / 1e6),
            "weights_mb": figures(self.each_op.parameter_bytes / 1e6),
            "machine_gb_per_s": figures(self.machine.bytes_per_s / 1e9),
            "machine_tflop_per_s": figures(self.machine.flops_per_s / 1e12),
            "floor_images_per_s": figures(batch_size / floor),
            "fused_floor_images_per_s": figures(batch_size / fused_floor),
            "reached": "" if seconds is None else round(floor / seconds, 4),
            "fused_reached": "" if seconds is None else round(fused_floor / seconds, 4),
        }

    def _floor_s(self, count: Count, batch_size: int) -> float:
        moved = batch_size * count.activation_bytes + count.parameter_bytes
        return self.machine.floor_s(moved, batch_size * count.flops)


ROOFLINE_COLUMNS = (
    "gflop_per_image",
    "mb_per_image",
    "fused_mb_per_image",
    "weights_mb",
    "machine_gb_per_s",
    "machine_tflop_per_s",
    "floor_images_per_s",
    "fused_floor_images_per_s",
    "reached",
    "fused_reached",
)


class Rooflines:
    """The rooflines of a run's cases; a machine is measured once in each precision.

    Args:
        workload: What the cases have in common.
        on_failure: Called with a line about a network that cannot be counted.
    """

    def __init__(self, workload: Workload, on_failure: Callable[[str], None]) -> None:
        # Computing a second time what was thrown away is not what is asked for.
        self.workload = replace(workload, grad_checkpointing=False)
        self.on_failure = on_failure
        self._counts: dict[tuple[str, int, int], tuple[Count, Count] | None] = {}
        self._machines: dict[Precision, Machine] = {}

    def of(self, cases: Sequence[Case]) -> dict[str, Roofline]:
        """Rooflines by model; a network that cannot be counted has none.

        Args:
            cases: Of one precision and image size.
        """
        precision, size = cases[0].precision, cases[0].image_size
        if precision not in self._machines:
            self._machines[precision] = measure_machine(self.workload.device, precision)
        found = {}
        for name in dict.fromkeys(case.model for case in cases):
            counts = self._count(name, size, dtype_of(precision).itemsize)
            if counts is not None:
                found[name] = Roofline(self._machines[precision], *counts)
        return found

    def _count(self, name: str, size: int, dtype_bytes: int) -> tuple[Count, Count] | None:
        key = (name, size, dtype_bytes)
        if key not in self._counts:
            try:
                model = self.workload.network(name, size)
                is_training = self.workload.mode == "training"
                each_op, fused = (
                    count(model, (3, size, size), dtype_bytes, fused=fuses, training=is_training)
                    for fuses in (False, True)
                )
                self._counts[key] = each_op, fused
            except NOT_RUNNABLE as error:
                self.on_failure(f"{name} at {size} px has no roofline: {one_line(error)}")
                self._counts[key] = None
        return self._counts[key]
