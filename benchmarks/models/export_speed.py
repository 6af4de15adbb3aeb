"""How long images take a classifier and its exports, in one run.

    python benchmarks/models/export_speed.py --models model.safetensors exported exported-int8 \
        --csv benchmarks/results/export_speed.csv

The first of the models is what the others are compared with. Each is a process of its own
(processes.py). `ratio` is the median over the rounds.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from processes import take_turns

from wavevit.cli.export_check import load_subject
from wavevit.cli.inference import Classifier
from wavevit.cli.main import keep_freed_memory
from wavevit.export.archive import export_folder, read_manifest
from wavevit.profiling.timing import Summary, append_rows, environment, figures, paired_ratio


def prepare(threads: int, batch_size: int, model: Path) -> Callable[[], object]:
    """What classifies images, in the model's process."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    classifier = load_subject(model, device="cpu").predictor
    assert isinstance(classifier, Classifier)
    images = torch.randn(batch_size, 3, *classifier.card.image_size)
    return lambda: classifier.logits(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="file to append rows to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    make = functools.partial(prepare, options.threads, options.batch_size)
    seconds = take_turns(make, options.models, options.rounds)
    rows = []
    for model, times in seconds.items():
        found = Summary.of([1e3 * value for value in times])
        rows.append(
            {
                **environment("cpu"),
                **described(model),
                "batch_size": options.batch_size,
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
