"""Trains models through ``wavevit train classification``, one by one, and notes the results.

    python benchmarks/models/training.py --config RECIPE --data DIR \
        --models wavevit_nano pvt_v2_b0 --seeds 0 1 2 \
        --csv benchmarks/results/imagenette224.csv [-- --optim.epochs 10]

What follows ``--`` goes to the command as it is. A mean with its spread follows for every model.
"""

import argparse
import csv
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch


def train(arguments: list[str]) -> tuple[float, float]:
    """Best top-1 and minutes of wall-clock time, start-up included."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        started = time.perf_counter()
        command = [sys.executable, "-m", "wavevit", "train", "classification", *arguments]
        subprocess.run([*command, "--output", str(run)], check=True)
        minutes = (time.perf_counter() - started) / 60
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        return max(row["top1"] for row in rows if row["kind"] == "evaluation"), minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--csv", type=Path, required=True, help="file to append rows to")
    parser.add_argument("more", nargs="*", help="further options of the command, after --")
    options = parser.parse_args()
    results: dict[str, list[float]] = {name: [] for name in options.models}
    for seed in options.seeds:
        for name in options.models:
            settings = ["--model", name, "--seed", str(seed), *options.more]
            top1, minutes = train(["--config", options.config, *settings, "--data", options.data])
            results[name].append(top1)
            row = {
                "date": datetime.date.today().isoformat(),
                "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
                "torch": torch.__version__,
                "timm": timm.__version__,
                "model": name,
                "seed": seed,
                "top1": top1,
                "minutes": round(minutes, 2),
                "command": f"wavevit train classification --config {Path(options.config).stem} "
                f"--data {Path(options.data).name} {' '.join(settings)}",
            }
            new = not options.csv.exists()
            with options.csv.open("a", newline="") as file:
                writer = csv.DictWriter(file, row)
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)
    for name, scores in results.items():
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        print(f"{name}: {statistics.mean(scores):.4f} +- {spread:.4f} over {len(scores)} seeds")


if __name__ == "__main__":
    main()
