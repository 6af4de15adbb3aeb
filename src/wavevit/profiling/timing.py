"""Times and memory of functions that are compared, and tables that measurements are kept in."""

import contextlib
import csv
import datetime
import importlib.metadata
import io
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import wavevit
from wavevit.files import check_place, write_file

Call = Callable[[], object]
Device = torch.device | str


@dataclass(frozen=True)
class Summary:
    """What is told of several measurements of one thing.

    Attributes:
        median: Half of the values lie below.
        p20: A fifth of the values lies below.
        p80: Four fifths of the values lie below.
    """

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        """The summary of values in any order; between two neighbours it is interpolated.

        Args:
            values: One or more.

        Raises:
            ValueError: There are none.
        """
        if not values:
            raise ValueError("expected one measurement or more, got none")
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        return cls(statistics.median(values), fifths[0], fifths[-1])

    def rate(self, count: float) -> "Summary":
        """Things per second where this says how many seconds they take together.

        Args:
            count: Things that are done in the time.
        """
        return Summary(count / self.median, count / self.p80, count / self.p20)


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median over the rounds of one time over another: both of a round met the same conditions.

    Args:
        numerators: Seconds of each round.
        denominators: Seconds of the same rounds.

    Raises:
        ValueError: They are not of the same number of rounds.
    """
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def figures(value: float) -> float:
    """The value in five significant figures: measured times have not more.

    Args:
        value: Measured.
    """
    return float(f"{value:.5g}")


def time_in_turns(
    calls: Mapping[str, Call],
    rounds: int,
    device: Device,
    warm_up: int = 2,
    *,
    settle: int = 0,
    repeats: int = 1,
) -> dict[str, list[float]]:
    """Seconds per call of every round, by name.

    The calls take turns in every round, A B A B, so that a noisy neighbour or a hot device disturbs
    all alike. A time runs from an idle device to an idle device, on a GPU by its own clock.

    Args:
        calls: What is timed, by name; results are dropped at once.
        rounds: Timed turns of each.
        device: Device that the calls use.
        warm_up: Untimed calls of each before the first round.
        settle: Untimed calls right before each timed turn, for calls so short that finding the
            caches full of a peer's data would count.
        repeats: Calls in one timed turn, for calls that take less than about a millisecond on a
            GPU: the time is that of all over their number.

    Raises:
        ValueError: `rounds` or `repeats` is less than 1.
    """
    if rounds < 1 or repeats < 1:
        raise ValueError(f"expected 1 or more, got rounds={rounds}, repeats={repeats}")
    for call in calls.values():
        for _ in range(warm_up):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(settle):
                call()
            seconds[name].append(time_once(call, device, repeats))
    return seconds


def time_once(call: Call, device: Device, repeats: int = 1) -> float:
    """Seconds per call, from an idle device to an idle device.

    Args:
        call: What is timed.
        device: Device that it uses.
        repeats: Calls that are timed together.
    """
    device = torch.device(device)
    synchronize(device)
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - started) / repeats
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def synchronize(device: Device) -> None:
    """Waits until a device has nothing left to do.

    Args:
        device: A GPU, or the CPU, which has nothing to wait for.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(call: Call, device: Device) -> int:
    """Bytes held at once beyond those held before the call, its result included.

    Counted is what PyTorch's allocators hand out; what a library takes from the system itself is
    not seen.

    Args:
        call: Called once.
        device: Device that it uses.
    """
    device = torch.device(device)
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    profile = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    )
    with _silent_stderr():
        profile.start()
    try:
        result = call()
        del result  # only now: it counts
    finally:
        with _silent_stderr():
            profile.stop()
    results: Any = profile.profiler.kineto_results if profile.profiler is not None else None
    assert results is not None
    held = peak = 0
    for event in results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler's library writes past Python that it starts, stops and sees no GPU."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def device_name(device: Device) -> str:
    """A GPU's name, or the processor's with the number of threads that PyTorch uses.

    Args:
        device: The device.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or f"{platform.machine()} CPU"


def environment(device: Device) -> dict[str, str]:
    """The columns that every row of measurements starts with: date, device and versions.

    Args:
        device: Device that is measured.
    """
    return {
        "date": datetime.date.today().isoformat(),
        "device": device_name(device),
        "torch": torch.__version__,
        "timm": _version("timm"),
        "triton": _version("triton"),
        "wavevit": wavevit.__version__,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def append_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Appends rows to a CSV file, which starts with the names of its columns.

    Rows of a new file start with the columns of `environment`, so that they can be understood later
    on.

    Args:
        path: File; made if there is none.
        rows: All with the same columns in the same order.

    Raises:
        ValueError: The file, or one of the rows, has other columns; nothing is written then.
        OSError: The file cannot be read or written.
    """
    if not rows:
        return
    columns = list(rows[0])
    check_columns(path, columns)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    old = path.read_bytes() if path.exists() else b""
    if not old:
        writer.writeheader()
    for row in rows:
        if list(row) != columns:
            raise ValueError(
                f"expected rows with the columns {', '.join(columns)}, got one with "
                f"{', '.join(row)}"
            )
        writer.writerow(row)
    new = text.getvalue().encode()
    if old.endswith(b"\r\n"):  # as older files have it
        new = new.replace(b"\n", b"\r\n")
    elif old and not old.endswith(b"\n"):
        old += b"\n"
    write_file(path.resolve(), old + new)


def check_columns(path: Path, columns: Sequence[str]) -> None:
    """Refuses a CSV file that rows cannot be appended to, before they are measured.

    Args:
        path: File, which need not exist; its folder must.
        columns: Of the rows.

    Raises:
        OSError: It is a folder, or nothing can be written in its place.
        ValueError: It has other columns, or is none.
    """
    check_place(path)
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        found = next(csv.reader(file), list(columns))
    if found == list(columns):
        return
    missing = [name for name in columns if name not in found]
    extra = [name for name in found if name not in columns]
    how = [f"lacks {', '.join(missing[:4])}"] if missing else []
    how += [f"has {', '.join(extra[:4])}"] if extra else []
    raise ValueError(
        f"{path} has other columns than these rows ({'; '.join(how) or 'in another order'}): "
        "name a new file"
    )
