"""Times the wavelet transforms against depthwise convolutions, forward, backward and both.

    python benchmarks/kernels/dwt.py --csv benchmarks/results/dwt_cpu.csv
    python benchmarks/kernels/dwt.py --allocator keep

Letters: B batch, C channels, H W rows and columns.

Peers take turns in every round, so that a noisy neighbour disturbs all alike; times are medians
with the 20th and 80th percentile. `speedup` compares medians with the convolution's, `speedup_p20`
20th percentiles, which a busy machine disturbs less. Peak memory counts what a call allocates and
holds at once, its result included. On Linux, glibc may hand large tensors back to the system after
each operation, and page faults then cost more than the sums; `--allocator keep` tells it not to.
"""

import argparse
import csv
import ctypes
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from wavevit.ops.dwt import dwt2, haar_dwt2

Transform = Callable[[Tensor], Tensor]
WARM_UP_CALLS = 3
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def make_convolution(x: Tensor) -> Transform:
    """The usual way: four strided depthwise convolutions and a `cat`; x is (B, C, H, W)."""
    signs = [[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]
    C = x.shape[1]
    filters = [0.5 * torch.tensor(s).to(x).view(1, 1, 2, 2).repeat(C, 1, 1, 1) for s in signs]
    return lambda x: torch.cat([F.conv2d(x, f, stride=2, groups=C) for f in filters], 1)


def slices(x: Tensor) -> Tensor:
    """The plain expression on four strided views; x is (B, C, H, W)."""
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    bands = (a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d)
    return torch.cat(bands, 1) * 0.5


def pyramid(x: Tensor) -> Tensor:
    """`dwt2`, its bands left where they are; ll stands for them in the timings."""
    return dwt2(x)[0]


def make_cases(x: Tensor, run: Transform) -> dict[str, Callable[[], object]]:
    """Forward without a graph, backward alone, and both."""
    leaf = x.detach().requires_grad_()
    result = run(leaf)
    grad = torch.randn_like(result)

    def forward() -> object:
        with torch.no_grad():
            return run(x)

    def backward() -> object:
        return torch.autograd.grad(result, leaf, grad, retain_graph=True)

    def both() -> object:
        return torch.autograd.grad(run(leaf), leaf, grad)

    return {"forward": forward, "backward": backward, "both": both}


def time_in_turns(
    peers: dict[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, list[float]]:
    """Milliseconds of each peer in each round, after untimed calls that settle caches and heap."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, call in peers.items():
            for _ in range(WARM_UP_CALLS):
                call()
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def peak_memory(call: Callable[[], object], device: str) -> int:
    """Bytes held at once beyond those held before the call."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = call()
    del result
    held = peak = 0
    assert profile.profiler is not None
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def synchronize(device: str) -> None:
    """Waits for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def percentile(values: list[float], share: float) -> float:
    """The value below which this share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def keep_memory() -> None:
    """Stops glibc from returning freed tensors to the system."""
    libc = ctypes.CDLL("libc.so.6")
    if not (libc.mallopt(M_MMAP_THRESHOLD, 1 << 30) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)):
        raise SystemExit("this C library does not take mallopt; leave out --allocator keep")


def main() -> None:
    """Runs the comparison and prints, or appends, one row per timing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", type=int, nargs=4, default=[8, 64, 56, 56], metavar="N")
    parser.add_argument("--dtype", default="float32", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=60, help="timed calls of each peer")
    parser.add_argument("--allocator", default="default", choices=["default", "keep"])
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    if args.allocator == "keep":
        keep_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = [row for layout in ("NCHW", "NHWC") for row in measure(layout, args)]
    if args.csv:
        is_new = not args.csv.exists()
        with args.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            if is_new:
                writer.writeheader()
            writer.writerows(rows)


def measure(layout: str, args: argparse.Namespace) -> list[dict[str, object]]:
    """The rows of one memory layout; (B, C, H, W) in either."""
    B, C, H, W = args.shape
    x = torch.randn(B, C, H, W, device=args.device, dtype=getattr(torch, args.dtype))
    peers: dict[str, Transform] = {"conv": make_convolution(x), "slices": slices}
    if layout == "NHWC":
        x = x.contiguous(memory_format=torch.channels_last)
        peers["haar_dwt2"] = lambda x: haar_dwt2(x.permute(0, 2, 3, 1), True).permute(0, 3, 1, 2)
    else:
        peers["haar_dwt2"] = haar_dwt2
    for name, run in peers.items():
        torch.testing.assert_close(run(x), peers["conv"](x), rtol=2e-2, atol=2e-2, msg=name)
    cases = {name: make_cases(x, run) for name, run in peers.items()}
    cases["dwt2"] = make_cases(x, pyramid)
    rows: list[dict[str, object]] = []
    for what in ("forward", "backward", "both"):
        if what != "forward":
            cases.pop("dwt2", None)  # ll alone is not the whole gradient
        calls = {name: case[what] for name, case in cases.items()}
        times = time_in_turns(calls, args.rounds, args.device)
        for name, own in times.items():
            row: dict[str, object] = {
                "date": datetime.date.today().isoformat(),
                "device": torch.cuda.get_device_name() if args.device == "cuda" else cpu_name(),
                "threads": args.threads,
                "torch": torch.__version__,
                "allocator": args.allocator,
                "layout": layout,
                "shape_bchw": "x".join(map(str, args.shape)),
                "dtype": args.dtype,
                "what": what,
                "peer": name,
                "median_ms": round(statistics.median(own), 4),
                "p20_ms": round(percentile(own, 0.2), 4),
                "p80_ms": round(percentile(own, 0.8), 4),
                "peak_mib": round(peak_memory(calls[name], args.device) / 2**20, 2),
                "speedup": round(statistics.median(times["conv"]) / statistics.median(own), 2),
                "speedup_p20": round(percentile(times["conv"], 0.2) / percentile(own, 0.2), 2),
            }
            rows.append(row)
            print(
                f"{layout} {what:8} {name:9} {row['median_ms']:8.3f} ms "
                f"({row['p20_ms']:.3f} to {row['p80_ms']:.3f})  {row['peak_mib']:6.2f} MiB  "
                f"{row['speedup']:5.2f}x conv ({row['speedup_p20']:.2f}x at the 20th percentile)"
            )
    return rows


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
