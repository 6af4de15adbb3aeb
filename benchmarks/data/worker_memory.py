"""Memory of loader workers over the number of samples, for image files and for tar shards.

    OMP_NUM_THREADS=1 python benchmarks/data/worker_memory.py

Labels, names and places in shards are looked up in the data sets' own arrays, for random samples
spread over all of them; only the picture itself is a stand-in. Private memory is what the system
would get back if a worker ended (USS). Each row is measured in a fresh process.
"""

import argparse
import datetime
import gc
import multiprocessing
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wavevit.data.image_files import ImageFileDataset, PathTable
from wavevit.data.loader import train_loader
from wavevit.data.samplers import TrainSampler
from wavevit.data.shards.dataset import ShardDataset
from wavevit.data.shards.index import Shard, ShardIndex
from wavevit.data.shards.store import ShardStore
from wavevit.data.shared_array import SharedArray
from wavevit.profiling.timing import append_rows

CLASSES = [f"n{number:08d}" for number in range(1000)]
LOOK_UPS_PER_IMAGE = 20
BATCH_SIZE = 64
CSV_FILE = Path(__file__).parents[1] / "results" / "worker_memory.csv"


def stand_in() -> Image.Image:
    return Image.new("RGB", (8, 8))


class Files(ImageFileDataset):
    """Real look-ups of random samples, and a picture that is no file."""

    def load(self, index: int, *, min_size: int | None = None) -> Image.Image:
        for _ in range(LOOK_UPS_PER_IMAGE):
            assert str(self.path(index)).endswith(".JPEG")
            assert 0 <= self.labels[index] < 1000
            index = random.randrange(len(self))
        return stand_in()


class Shards(ShardDataset):
    """Real look-ups of random samples, and a picture out of no shard."""

    def load(self, index: int, *, min_size: int | None = None) -> Image.Image:
        for _ in range(LOOK_UPS_PER_IMAGE):
            assert self.sample_id(index).endswith(".JPEG")
            assert 0 <= self.labels[index] < 1000
            assert self.place(index).size > 0
            index = random.randrange(len(self))
        return stand_in()


class ListOfPairs(Files):
    """What most loaders do: a Python list of (path, label); for comparison."""

    def __init__(self, paths: Iterator[str], labels: Any) -> None:
        super().__init__(Path("/data"), PathTable(()), labels[:0], CLASSES)
        self.samples = list(zip(paths, labels.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int, *, min_size: int | None = None) -> Image.Image:
        for _ in range(LOOK_UPS_PER_IMAGE):
            path, label = self.samples[index]
            assert path.endswith(".JPEG")
            assert 0 <= label < 1000
            index = random.randrange(len(self))
        return stand_in()

    @property
    def labels(self) -> Any:
        return np.zeros(len(self), np.int64)


def names(count: int) -> Iterator[str]:
    for number in range(count):
        name = CLASSES[number % 1000]
        yield f"train/{name}/{name}_{number}.JPEG"


def make(kind: str, count: int) -> Any:
    labels = np.arange(count) % 1000
    if kind == "files":
        return Files(Path("/data"), PathTable(names(count)), labels, CLASSES)
    if kind == "list":
        return ListOfPairs(names(count), labels)
    per_shard = 2000
    index = ShardIndex(
        shards=SharedArray((np.arange(count) // per_shard).astype(np.int32)),
        offsets=SharedArray(np.arange(count) % per_shard * 110_000),
        sizes=SharedArray(np.full(count, 109_000)),
        crc32s=SharedArray(np.arange(count, dtype=np.uint32)),
        labels=SharedArray(labels.astype(np.int32)),
        sample_ids=PathTable(names(count)),
    )
    shards = [
        Shard(f"train-{number:06d}.tar", 220_000_000, per_shard)
        for number in range(count // per_shard + 1)
    ]
    return Shards(ShardStore("/data"), shards, index, None, CLASSES)


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.zeros(3, image.height, image.width)


def mib(process: int, *fields: str) -> float:
    """Sum of fields of /proc/PID/smaps_rollup."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return sum(kib[field] for field in fields) / 1024


def measure(kind: str, method: str, count: int, num_workers: int, num_batches: int) -> None:
    torch.multiprocessing.set_start_method(method)
    torch.set_num_threads(1)
    dataset = make(kind, count)
    gc.collect()
    sampler = TrainSampler(count, BATCH_SIZE, seed=0, start=0, stop=num_batches + 4 * num_workers)
    loader = iter(train_loader(dataset, to_tensor, sampler, num_workers=num_workers))
    for _ in range(num_batches):
        next(loader)
    time.sleep(1)  # for the batches that are on their way
    workers = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    assert len(workers) == num_workers, workers
    private = [mib(pid, "Private_Clean", "Private_Dirty") for pid in workers]
    share = [mib(pid, "Pss") for pid in workers]
    row = {
        "date": datetime.date.today().isoformat(),
        "device": f"{platform.machine()} {platform.system()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "data_set": kind,
        "start_method": method,
        "entries": count,
        "workers": num_workers,
        "look_ups_per_worker": num_batches * BATCH_SIZE * LOOK_UPS_PER_IMAGE // num_workers,
        "private_mib_per_worker": round(sum(private) / num_workers, 1),
        "private_mib_largest": round(max(private), 1),
        "pss_mib_per_worker": round(sum(share) / num_workers, 1),
        "main_mib": round(mib(multiprocessing.current_process().pid or 0, "Rss"), 1),
        "command": f"python benchmarks/data/worker_memory.py --kinds {kind} --methods {method} "
        f"--entries {count} --workers {num_workers} --batches {num_batches}",
    }
    append_rows(CSV_FILE, [row])
    print(row, flush=True)
    for child in multiprocessing.active_children():
        child.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=["files", "shards"], help="also: list")
    parser.add_argument("--methods", nargs="+", default=["fork", "forkserver"])
    parser.add_argument("--entries", nargs="+", type=int, default=[10_000, 10_000_000])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--batches", type=int, default=200, help="read by all workers together")
    parser.add_argument("--one", action="store_true", help="measure in this process")
    options = parser.parse_args()
    if options.one:
        measure(
            options.kinds[0],
            options.methods[0],
            options.entries[0],
            options.workers,
            options.batches,
        )
        return
    for kind in options.kinds:
        for method in options.methods:
            for count in options.entries:
                words = ["--one", "--kinds", kind, "--methods", method, "--entries", str(count)]
                words += ["--workers", str(options.workers), "--batches", str(options.batches)]
                subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
