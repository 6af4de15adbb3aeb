"""How long one image takes a classifier and its exports, in one run.

    python benchmarks/models/export_speed.py --models model.safetensors exported exported-int8 \
        --csv benchmarks/results/export_speed.csv

The first of the models is what the others are compared with. Each is a process of its own, since
thread pools of several runtimes in one process disturb each other; they wait for their turns,
A B A B, so that a noisy neighbour disturbs all alike. `ratio` is the median over the rounds.
"""

import argparse
import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from wavevit.cli.export_check import load_subject
from wavevit.cli.inference import Classifier
from wavevit.cli.main import keep_freed_memory
from wavevit.export.archive import export_folder, read_manifest
from wavevit.profiling.timing import Summary, append_rows, environment, figures, paired_ratio


def work(link: Connection, model: Path, threads: int) -> None:
    """Classifies one image whenever told to, and says how many seconds it took."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    classifier = load_subject(model, device="cpu").predictor
    assert isinstance(classifier, Classifier)
    image = torch.randn(1, 3, *classifier.card.image_size)
    for _ in range(3):
        classifier.logits(image)
    link.send(0.0)
    while link.recv():
        started = time.perf_counter()
        classifier.logits(image)
        link.send(time.perf_counter() - started)


@contextlib.contextmanager
def started(model: Path, threads: int) -> Iterator[Connection]:
    """A model's process, warmed up."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, model, threads), daemon=True)
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
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="file to append rows to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds: dict[Path, list[float]] = {model: [] for model in options.models}
    with contextlib.ExitStack() as stack:
        links = {
            model: stack.enter_context(started(model, options.threads)) for model in options.models
        }
        for turn in range(options.rounds + 1):
            for model, link in links.items():
                link.send(True)
                taken = link.recv()
                if turn:  # the first only brings all back from their sleep
                    seconds[model].append(taken)
    rows = []
    for model, times in seconds.items():
        found = Summary.of([1e3 * value for value in times])
        rows.append(
            {
                **environment("cpu"),
                **described(model),
                "batch_size": 1,
                "ms": figures(found.median),
                "ms_p20": figures(found.p20),
                "ms_p80": figures(found.p80),
                "ratio": figures(paired_ratio(times, seconds[options.models[0]])),
            }
        )
        print(rows[-1])
    if options.csv:
        append_rows(options.csv, rows)


def described(model: Path) -> dict[str, str]:
    """Name, format and precision."""
    card = load_subject(model, device="cpu").card
    folder = export_folder(model)
    if folder is None:
        return {"model": card.model, "format": "eager", "precision": "fp32"}
    manifest = read_manifest(folder)
    return {"model": card.model, "format": manifest.format, "precision": manifest.precision}


if __name__ == "__main__":
    main()
