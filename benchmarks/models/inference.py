"""Images per second of classifiers on the CPU, taking turns, in the settings of the command line.

    python benchmarks/models/inference.py --csv benchmarks/results/inference_cpu.csv

Peers take turns in every round, so that a noisy neighbour disturbs all alike. Times are medians
with the 20th and 80th percentile; `ratio` is the throughput over that of the first model named.
"""

import argparse
import csv
import datetime
import platform
import statistics
import time
from pathlib import Path

import timm
import torch

import wavevit
from wavevit.cli.main import keep_freed_memory


def measure(names: list[str], batch_size: int, size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per batch of every round, by model; "NAME+fuse" is the folded form."""
    torch.manual_seed(0)
    models = {}
    for name in names:
        model = timm.create_model(name.removesuffix("+fuse")).eval()
        models[name] = wavevit.fuse(model) if name.endswith("+fuse") else model
    images = torch.randn(batch_size, 3, size, size)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for turn in range(rounds + 2):
            for name, model in models.items():
                started = time.perf_counter()
                model(images)
                if turn >= 2:  # the first two warm up
                    seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["pvt_v2_b2", "wavevit_s", "wavevit_s+fuse"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="file to append rows to")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    seconds = measure(options.models, options.batch_size, options.size, options.rounds)
    base = statistics.median(seconds[options.models[0]])
    rows = []
    for name, times in seconds.items():
        p20, median, p80 = (sorted(times)[int(q * (len(times) - 1))] for q in (0.2, 0.5, 0.8))
        rows.append(
            {
                "date": datetime.date.today().isoformat(),
                "device": f"{platform.machine()} CPU, {options.threads} threads",
                "torch": torch.__version__,
                "timm": timm.__version__,
                "model": name,
                "dtype": "float32",
                "batch": options.batch_size,
                "size": options.size,
                "images_per_s": round(options.batch_size / median, 2),
                "images_per_s_p20": round(options.batch_size / p80, 2),
                "images_per_s_p80": round(options.batch_size / p20, 2),
                "ratio": round(base / median, 3),
            }
        )
        print(rows[-1])
    if options.csv:
        new = not options.csv.exists()
        with options.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            if new:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
