"""What the comparisons of kernels share: the three things that are timed, and how they are told.

Times are medians with the 20th and 80th percentile, of peers that take turns (`time_in_turns`).
`speedup` is the median over the rounds of the base's time over the peer's. `of_copy` is the time
that a copy would need for the bytes which have to be read and written at least, over the time
taken: 1.0 is as fast as memory allows. Peak memory counts what a call allocates and holds at once,
its result included. `launch_us` is how long the CPU is busy with one call on a GPU: where that is
more than the time, a GPU waits for work.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
import torch._functorch.config
from torch import Tensor

from wavevit.profiling.machine import copy_bandwidth
from wavevit.profiling.timing import (
    Call,
    Summary,
    append_rows,
    check_columns,
    environment,
    paired_ratio,
    peak_memory,
    synchronize,
    time_in_turns,
)

WHAT = ("forward", "backward", "both")
DTYPES = ("float16", "bfloat16", "float32")
_MEASURED = (
    *("what", "peer", "median_ms", "p20_ms", "p80_ms", "peak_mib", "speedup", "of_copy"),
    "launch_us",
)
_COPIED_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}  # far more than a cache holds


def make_cases(run: Callable[..., object], inputs: Sequence[Tensor]) -> dict[str, Call]:
    """Forward without a graph, backward alone, and both."""
    leaves = [x.detach().requires_grad_() for x in inputs]

    def outputs() -> tuple[Tensor, ...]:
        result = run(*leaves)
        return result if isinstance(result, tuple) else (result,)  # type: ignore[return-value]

    kept = outputs()
    grads = [torch.randn_like(output) for output in kept]

    def forward() -> object:
        with torch.no_grad():
            return run(*inputs)

    def backward() -> object:
        return torch.autograd.grad(kept, leaves, grads, retain_graph=True)

    def both() -> object:
        return torch.autograd.grad(outputs(), leaves, grads)

    return {"forward": forward, "backward": backward, "both": both}


def with_constants(module: ModuleType, constants: Mapping[str, object], call: Call) -> Call:
    """The call with other launch constants of a kernel's module."""

    def changed() -> object:
        before = {name: getattr(module, name) for name in constants}
        vars(module).update(constants)
        try:
            return call()
        finally:
            vars(module).update(before)

    return changed


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every comparison."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--rounds", type=int, help="timed turns of each peer")
    parser.add_argument("--sweep", action="store_true", help="try launch constants of the kernels")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")


def prepare(args: argparse.Namespace, parser: argparse.ArgumentParser, columns: list[str]) -> None:
    """Checks what was asked for before anything is measured, and sets threads and seed."""
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs an NVIDIA GPU, and there is none")
    args.rounds = args.rounds or (60 if args.device == "cpu" else 15)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    # "backward" runs a graph many times; a compiled one gives its memory away at the first.
    torch._functorch.config.donated_buffer = False
    if args.csv:
        try:
            check_columns(args.csv, [*environment(args.device), *columns, *_MEASURED])
        except (OSError, ValueError) as error:
            parser.error(str(error))


def launch_us(call: Call, device: str, calls: int = 20) -> float:
    """Microseconds that the CPU takes to launch a call; 0 where it computes it, too."""
    if device == "cpu":
        return 0.0
    synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        call()
    seconds = time.perf_counter() - started
    synchronize(device)
    return round(1e6 * seconds / calls, 1)


def compare(
    cases: Mapping[str, Mapping[str, Call]],
    floor_bytes: Mapping[str, int],
    columns: Mapping[str, object],
    args: argparse.Namespace,
) -> None:
    """Times the cases of every peer, prints a line for each, and appends rows to the CSV file.

    `cases` holds forward, backward and both by peer; the first peer is the base of the speedup, and
    a peer may lack some. `columns` says what is compared.
    """
    bandwidth = copy_bandwidth(args.device, _COPIED_BYTES[args.device])
    # A turn of several calls hides how long it takes to launch a kernel.
    turn = {"settle": 3} if args.device == "cpu" else {"repeats": 10}
    rows = []
    for what in WHAT:
        calls = {peer: case[what] for peer, case in cases.items() if what in case}
        times = time_in_turns(calls, args.rounds, args.device, **turn)
        base = next(iter(times.values()))
        for peer, seconds in times.items():
            summary = Summary.of(seconds)
            measured = (
                what,
                peer,
                *(round(1e3 * s, 4) for s in (summary.median, summary.p20, summary.p80)),
                round(peak_memory(calls[peer], args.device) / 2**20, 2),
                round(paired_ratio(base, seconds), 2),
                round(floor_bytes[what] / bandwidth / summary.median, 3),
                launch_us(calls[peer], args.device),
            )
            row = dict(zip(_MEASURED, measured, strict=True))
            rows.append({**environment(args.device), **columns, **row})
            print(
                f"{' '.join(map(str, columns.values()))} {what:8} {peer:28} "
                f"{row['median_ms']:9.4f} ms ({row['p20_ms']:.4f} to {row['p80_ms']:.4f})  "
                f"{row['peak_mib']:8.2f} MiB  {row['speedup']:5.2f}x  "
                f"{100 * row['of_copy']:3.0f} % of a copy  {row['launch_us']} us to launch",
                flush=True,
            )
    if args.csv:
        append_rows(args.csv, rows)
