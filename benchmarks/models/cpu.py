"""What a user gets on a CPU: Wave-ViT, its paper-literal form and its peers, in one run.

    python benchmarks/models/cpu.py --calibration imagenette224/train \
        --csv benchmarks/results/cpu.csv

Each contestant is a process of its own (processes.py): the paper-literal model
(benchmarks/models/plain.py) has the system's memory allocator, as in a user's script; all others
have what the command line sets, and so do peers, to compare like with like. `onnx` and `int8` are
what `wavevit export` writes, in ONNX Runtime. Images per second are medians with the 20th and 80th
percentile; `ratio_to_plain` and `ratio_to_best_peer` are medians over the rounds, the peers in
whichever of their forms is the fastest, those in int8 left out.
"""

import argparse
import functools
import runpy
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from processes import take_turns

from wavevit.cli.main import keep_freed_memory
from wavevit.cli.main import main as wavevit
from wavevit.export.loading import load_exported
from wavevit.models.card import ModelCard, save_model
from wavevit.profiling.benchmark import check_model
from wavevit.profiling.timing import (
    Summary,
    append_rows,
    check_columns,
    environment,
    figures,
    paired_ratio,
)

PLAIN = Path(__file__).with_name("plain.py")
EXPORTED = ("onnx", "int8")
COLUMNS = (
    *("model", "runtime", "fuse", "allocator", "precision", "batch_size", "image_size"),
    *("images_per_s", "images_per_s_p20", "images_per_s_p80", "ratio_to_plain"),
    "ratio_to_best_peer",
)


@dataclass(frozen=True)
class Contestant:
    """A network in the form that a user runs.

    Attributes:
        model: timm model name.
        runtime: How it is run: a runtime of the command line, or one of `EXPORTED`.
        fuse: With its norms folded.
        allocator: "system", or "kept" as the command line sets it.
    """

    model: str
    runtime: str = "eager"
    fuse: bool = False
    allocator: str = "kept"

    @property
    def is_peer(self) -> bool:
        """Not a Wave-ViT."""
        return "wavevit" not in self.model

    @property
    def is_int8(self) -> bool:
        """Not in the precision of the run."""
        return self.runtime == "int8"

    def folder(self, exports: Path) -> Path:
        """Where its export is."""
        return exports / f"{self.model}-{self.runtime}"


def contestants(model: str, peers: list[str], runtimes: list[str]) -> list[Contestant]:
    """The paper-literal model, ours and the peers, each in every runtime."""
    return [
        Contestant(f"plain_{model}", allocator="system"),
        Contestant(f"plain_{model}"),
        Contestant(model),
        *(Contestant(model, runtime, fuse=True) for runtime in runtimes),
        *(Contestant(peer, runtime) for peer in peers for runtime in runtimes),
    ]


def export(who: Contestant, exports: Path, calibration: list[str]) -> None:
    """Writes a contestant's export with weights of a seed."""
    torch.manual_seed(0)
    card = ModelCard(who.model)
    checkpoint = exports / f"{who.model}.safetensors"
    if not checkpoint.exists():
        save_model(checkpoint, card.build().state_dict(), card)
    words = ["--checkpoint", str(checkpoint), "--output", str(who.folder(exports))]
    if who.is_int8:
        words += ["--int8", "--calibration", *calibration]
    if wavevit(["export", *words]):
        raise SystemExit(f"{who.model} cannot be exported for {who.runtime}")


def prepare(options: argparse.Namespace, exports: Path, who: Contestant) -> Callable[[], object]:
    """What runs one batch, in the contestant's process."""
    if who.allocator == "kept":
        keep_freed_memory()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if who.runtime in EXPORTED:
        model = load_exported(who.folder(exports)).model
        images = torch.randn(options.batch_size, 3, options.image_size, options.image_size)
        return lambda: model(images)
    runpy.run_path(str(PLAIN))
    from wavevit.profiling.workload import Case, Workload

    case = Case(who.model, options.precision, who.runtime, options.batch_size, options.image_size)
    return Workload(fuse=who.fuse).call(case)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="wavevit_s")
    parser.add_argument("--peers", nargs="*", default=["pvt_v2_b2", "swin_tiny_patch4_window7_224"])
    runtimes = ["eager", "compiled", "openvino", *EXPORTED]
    parser.add_argument("--runtimes", nargs="+", default=runtimes, choices=runtimes)
    parser.add_argument("--calibration", nargs="+", help="images, for int8")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="file to append rows to")
    options = parser.parse_args()
    if "int8" in options.runtimes and not options.calibration:
        parser.error("--runtimes int8 needs --calibration IMAGES; or name other --runtimes")
    if options.precision != "fp32" and set(EXPORTED) & set(options.runtimes):
        parser.error(f"--runtimes {' and '.join(EXPORTED)} are for --precision fp32; name others")
    if options.csv:
        try:
            check_columns(options.csv, [*environment("cpu"), *COLUMNS])
        except (OSError, ValueError) as error:
            parser.error(str(error))
    everyone = contestants(options.model, options.peers, options.runtimes)
    runpy.run_path(str(PLAIN))
    try:
        for who in everyone:
            check_model(who.model)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as exports:
        for who in everyone:
            if who.runtime in EXPORTED:
                export(who, Path(exports), options.calibration)
        make = functools.partial(prepare, options, Path(exports))
        seconds = take_turns(make, everyone, options.rounds)
    plain = seconds[everyone[0]]
    peers = [(who, times) for who, times in seconds.items() if who.is_peer and not who.is_int8]
    best_peer = min((times for _, times in peers), key=statistics.median, default=[])
    torch.set_num_threads(options.threads)
    rows = []
    for who, times in seconds.items():
        rate = Summary.of(times).rate(options.batch_size)
        rows.append(
            {
                **environment("cpu"),
                **asdict(who),
                "precision": "int8" if who.is_int8 else options.precision,
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
    return figures(paired_ratio(base, times))


if __name__ == "__main__":
    main()
