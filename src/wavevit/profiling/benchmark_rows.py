"""What a benchmark tells of its cases: one row each, in numbers with units in their names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wavevit.profiling.benchmark import OK, Measurement
from wavevit.profiling.roofline import ROOFLINE_COLUMNS, Roofline
from wavevit.profiling.timing import Summary, environment, figures, paired_ratio
from wavevit.profiling.workload import Case, Workload

Row = dict[str, object]


@dataclass(frozen=True)
class Base:
    """What throughputs are divided by.

    Attributes:
        model: timm model name.
        runtime: Its runtime; None: each case's own.
    """

    model: str
    runtime: str | None = None

    @classmethod
    def parse(cls, text: str, cases: Sequence[Case]) -> "Base":
        """The base that "MODEL" or "MODEL:RUNTIME" names.

        Args:
            text: As a user writes it.
            cases: That are measured.

        Raises:
            ValueError: It is not measured.
        """
        model, _, runtime = text.partition(":")
        base = cls(model, runtime or None)
        if not any(base.is_for(case) for case in cases):
            names = ", ".join(dict.fromkeys(case.model for case in cases))
            runtimes = ", ".join(dict.fromkeys(case.runtime for case in cases))
            raise ValueError(
                f"can compare only with what is measured, {names} in {runtimes}; got {text!r}"
            )
        return base

    def is_for(self, case: Case, runtime: str | None = None) -> bool:
        """Whether a case is the base, of cases in a runtime if one is given.

        Args:
            case: That may be the base.
            runtime: Of the case that is compared with it.
        """
        return case.model == self.model and case.runtime == (
            self.runtime or runtime or case.runtime
        )


def make_rows(
    measurements: Sequence[Measurement],
    workload: Workload,
    base: Base,
    *,
    kernels: bool,
    rooflines: Mapping[str, Roofline],
) -> list[Row]:
    """The rows of one group of cases, all with the same columns.

    Args:
        measurements: Of `measure_group`.
        workload: What the cases have in common.
        base: That the group's throughputs are divided by.
        kernels: Whether our own GPU kernels were on.
        rooflines: By model; columns stay empty for the others.
    """
    rows = []
    for measurement in measurements:
        case = measurement.case
        row: Row = {
            **environment(workload.device),
            "mode": workload.mode,
            "model": case.model,
            "runtime": case.runtime,
            "precision": case.precision,
            "autocast": workload.uses_autocast(case.precision),
            "batch_size": case.batch_size,
            "image_size": case.image_size,
            "fused": workload.mode == "inference" and workload.fuse,
            "channels_last": "all" if workload.channels_last else "ours",
            "kernels": kernels,
            "grad_checkpointing": workload.mode == "training" and workload.grad_checkpointing,
            **_speed(measurement),
            **_ratio(measurement, measurements, base),
            "peak_mib": _rounded(measurement.peak_bytes, 2**20, 2),
            "first_call_s": _rounded(measurement.first_call_s, 1, 3),
        }
        seconds = Summary.of(measurement.seconds).median if measurement.seconds else None
        row |= dict.fromkeys(ROOFLINE_COLUMNS, "")
        if case.model in rooflines:
            row |= rooflines[case.model].columns(case.batch_size, seconds)
        rows.append(row | {"status": measurement.status})
    return rows


def _speed(measurement: Measurement) -> Row:
    names = ["images_per_s", "images_per_s_p20", "images_per_s_p80"]
    names += ["ms_per_batch", "ms_per_batch_p20", "ms_per_batch_p80"]
    if measurement.status != OK:
        return {"rounds": 0} | dict.fromkeys(names, "")
    batch = Summary.of(measurement.seconds)
    images = batch.rate(measurement.case.batch_size)
    values = [figures(value) for value in (images.median, images.p20, images.p80)]
    values += [figures(1e3 * value) for value in (batch.median, batch.p20, batch.p80)]
    return {"rounds": len(measurement.seconds)} | dict(zip(names, values, strict=True))


def _ratio(measurement: Measurement, group: Sequence[Measurement], base: Base) -> Row:
    case = measurement.case
    bases = [other for other in group if base.is_for(other.case, case.runtime)]
    row: Row = {"ratio": "", "ratio_to": ""}
    if bases:
        row["ratio_to"] = f"{bases[0].case.model} {bases[0].case.runtime}"
        if bases[0].seconds and measurement.seconds:
            row["ratio"] = round(paired_ratio(bases[0].seconds, measurement.seconds), 4)
    return row


def _rounded(value: float | None, unit: float, digits: int) -> object:
    return "" if value is None else round(value / unit, digits)
