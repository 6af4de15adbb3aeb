"""Trains models through ``wavevit train``, one by one, and notes the results.

    python benchmarks/models/training.py --config RECIPE --data DIR \
        --models wavevit_nano pvt_v2_b0 --seeds 0 1 2 \
        --csv benchmarks/results/imagenette224.csv [-- --optim.epochs 10]
    python benchmarks/models/training.py --task segmentation --config RECIPE --data DIR \
        --models wavevit_nano pvt_v2_b0 --csv benchmarks/results/camvid11.csv

Models are backbones where the task is segmentation. What follows ``--`` goes to the command as it
is. A mean with its spread follows for every model.
"""

import argparse
import csv
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch

# Name of the score in the log, and of the option that takes the model.
TASKS = {"classification": ("top1", "--model"), "segmentation": ("mean_iou", "--backbone")}


def train(task: str, arguments: list[str]) -> tuple[float, float, float]:
    """Best score, and minutes of wall-clock and of CPU time, start-up and pictures included."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        started, used = time.perf_counter(), cpu_seconds()
        command = [sys.executable, "-m", "wavevit", "train", task, *arguments]
        subprocess.run([*command, "--output", str(run)], check=True)
        minutes = (time.perf_counter() - started) / 60
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        best = max(row["score"] for row in rows if row["kind"] == "evaluation")
        return best, minutes, (cpu_seconds() - used) / 60


def cpu_seconds() -> float:
    """Of all commands so far and the processes that they started."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=list(TASKS), default="classification")
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
            score_name, option = TASKS[options.task]
            settings = [option, name, "--seed", str(seed), *options.more]
            given = ["--config", options.config, *settings, "--data", options.data]
            score, minutes, cpu_minutes = train(options.task, given)
            results[name].append(score)
            row = {
                "date": datetime.date.today().isoformat(),
                "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
                "torch": torch.__version__,
                "timm": timm.__version__,
                "model": name,
                "seed": seed,
                score_name: score,
                "minutes": round(minutes, 2),
                "cpu_minutes": round(cpu_minutes, 2),
                "command": f"wavevit train {options.task} --config {Path(options.config).stem} "
                f"--data {Path(options.data).name} {' '.join(settings)}",
            }
            new = not options.csv.exists()
            columns = list(row)
            if not new:
                with options.csv.open(newline="") as file:
                    columns = next(csv.reader(file))
            with options.csv.open("a", newline="") as file:
                # Older files lack a column.
                writer = csv.DictWriter(file, columns, extrasaction="ignore")
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)
    for name, scores in results.items():
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        print(f"{name}: {statistics.mean(scores):.4f} +- {spread:.4f} over {len(scores)} seeds")


if __name__ == "__main__":
    main()
