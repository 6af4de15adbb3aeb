"""What a user gets on a CPU: Wave-ViT, its paper-literal form and its peers, in one run.

    python benchmarks/models/cpu.py --csv benchmarks/results/inference_cpu.csv

Each contestant is a process of its own, since the memory allocator is set for a whole process: the
paper-literal model (benchmarks/models/plain.py) has the system's, as in a user's script; all others
have what the command line sets, and so do peers, to compare like with like. The processes wait for
their turns, A B A B, so that a noisy neighbour disturbs all alike. Images per second are medians
with the 20th and 80th percentile; `ratio_to_plain` and `ratio_to_best_peer` are medians over the
rounds, the peers in whichever of their forms is the fastest.
"""

import argparse
import contextlib
import multiprocessing
import runpy
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from wavevit.cli.main import keep_freed_memory
from wavevit.models.runtimes import Runtime
from wavevit.profiling.benchmark import check_model
from wavevit.profiling.timing import Summary, append_rows, environment, figures

PLAIN = Path(__file__).with_name("plain.py")


@dataclass(frozen=True)
class Contestant:
    """A network in the form that a user runs.

    Attributes:
        model: timm model name.
        runtime: How it is run.
        fuse: With its norms folded.
        allocator: "system", or "kept" as the command line sets it.
    """

    model: str
    runtime: Runtime = "eager"
    fuse: bool = False
    allocator: str = "kept"

    @property
    def is_peer(self) -> bool:
        """Not a Wave-ViT."""
        return "wavevit" not in self.model


def contestants(model: str, peers: list[str], runtimes: list[Runtime]) -> list[Contestant]:
    """The paper-literal model, ours and the peers, each in every runtime."""
    return [
        Contestant(f"plain_{model}", allocator="system"),
        Contestant(f"plain_{model}"),
        Contestant(model),
        *(Contestant(model, runtime, fuse=True) for runtime in runtimes),
        *(Contestant(peer, runtime) for peer in peers for runtime in runtimes),
    ]


def work(link: Connection, who: Contestant, options: argparse.Namespace) -> None:
    """Runs one batch whenever told to, and says how many seconds it took."""
    if who.allocator == "kept":
        keep_freed_memory()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    runpy.run_path(str(PLAIN))
    from wavevit.profiling.workload import Case, Workload

    case = Case(who.model, options.precision, who.runtime, options.batch_size, options.image_size)
    call = Workload(fuse=who.fuse).call(case)
    for _ in range(3):
        call()
    link.send(0.0)
    while link.recv():
        started = time.perf_counter()
        call()
        link.send(time.perf_counter() - started)


@contextlib.contextmanager
def started(who: Contestant, options: argparse.Namespace) -> Iterator[Connection]:
    """A contestant's process, warmed up."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, who, options), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield ours
        ours.send(False)
        process.join()
    finally:
        process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="wavevit_s")
    parser.add_argument("--peers", nargs="*", default=["pvt_v2_b2", "swin_tiny_patch4_window7_224"])
    parser.add_argument("--runtimes", nargs="+", default=["eager", "compiled", "openvino"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="file to append rows to")
    options = parser.parse_args()
    everyone = contestants(options.model, options.peers, options.runtimes)
    runpy.run_path(str(PLAIN))
    try:
        for who in everyone:
            check_model(who.model)
    except ValueError as error:
        parser.error(str(error))
    seconds: dict[Contestant, list[float]] = {who: [] for who in everyone}
    with contextlib.ExitStack() as stack:
        links = {who: stack.enter_context(started(who, options)) for who in everyone}
        for turn in range(options.rounds + 1):
            for who, link in links.items():
                link.send(True)
                if turn:  # the first only brings all back from their sleep
                    seconds[who].append(link.recv())
                else:
                    link.recv()
    plain = seconds[everyone[0]]
    best_peer = min(
        (times for who, times in seconds.items() if who.is_peer), key=statistics.median, default=[]
    )
    torch.set_num_threads(options.threads)
    rows = []
    for who, times in seconds.items():
        rate = Summary.of(times).rate(options.batch_size)
        rows.append(
            {
                **environment("cpu"),
                **asdict(who),
                "precision": options.precision,
                "batch_size": options.batch_size,
                "image_size": options.image_size,
                "images_per_s": figures(rate.median),
                "images_per_s_p20": figures(rate.p20),
                "images_per_s_p80": figures(rate.p80),
                "ratio_to_plain": ratio(plain, times),
                "ratio_to_best_peer": ratio(best_peer, times),
            }
        )
        print(
            f"{who.model:32} {who.runtime:9} {'fused' if who.fuse else '':6} {who.allocator:7}"
            f"{rate.median:8.2f} images/s ({rate.p20:.2f} to {rate.p80:.2f})  "
            f"{rows[-1]['ratio_to_plain']} x plain  {rows[-1]['ratio_to_best_peer']} x best peer"
        )
    if options.csv:
        append_rows(options.csv, rows)


def ratio(base: list[float], times: list[float]) -> float | str:
    """How many times faster than the base, the median over the rounds; "" without a base."""
    if not base:
        return ""
    return figures(statistics.median(a / b for a, b in zip(base, times, strict=True)))


if __name__ == "__main__":
    main()
