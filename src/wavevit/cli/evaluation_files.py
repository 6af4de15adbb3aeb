"""What ``wavevit evaluate --output`` writes.

Shape legend: K classes.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import wavevit
from wavevit.data.classification import ClassificationDataset
from wavevit.files import write_text
from wavevit.metrics.classification import ClassificationResult
from wavevit.pictures import per_class
from wavevit.pictures.confusion import draw_confusion, draw_reliability
from wavevit.pictures.grids import draw_predictions
from wavevit.pictures.per_class import draw_per_class
from wavevit.training.examples import choose_examples

NAMES = (
    "metrics.json",
    "per_class.csv",
    "per_class.png",
    "confusion.png",
    "reliability.png",
    "predictions.png",
)
_MAX_CLASSES_IN_JSON = 100  # of the confusion matrix, which grows with the square


def prepare(folder: Path, overwrite: bool, names: Sequence[str] = NAMES) -> None:
    """Makes the output folder and finds out, before any work, whether it can be written.

    Args:
        folder: Output folder.
        overwrite: Whether results in it may be replaced.
        names: Of the files that will be written.

    Raises:
        FileExistsError: It has results already.
        NotADirectoryError: It is a file.
        OSError: It cannot be made or written.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output names a folder, but {folder} is a file")
    existing = [name for name in names if (folder / name).exists()]
    if existing and not overwrite:
        raise FileExistsError(
            f"{folder} already has {', '.join(existing)}; choose another --output or pass "
            "--overwrite"
        )
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".writable"
    probe.touch()
    probe.unlink()


def write(
    folder: Path,
    result: ClassificationResult,
    dataset: ClassificationDataset,
    facts: dict[str, Any],
    title: str,
) -> None:
    """Writes numbers and pictures; metrics.json comes last, so it stands for a complete set.

    Args:
        folder: Output folder.
        result: What evaluation found.
        dataset: The images, for those that are shown.
        facts: What was measured and how, for metrics.json.
        title: Line above the pictures.

    Raises:
        OSError: A file cannot be written.
    """
    names = dataset.class_names
    for name in NAMES:  # a narrower set of files must not stand beside leftovers of an older one
        (folder / name).unlink(missing_ok=True)
    write_text(folder / "per_class.csv", _per_class_csv(result, names))
    # Of a thousand classes of the model, the data may have ten.
    used = (result.confusion.sum(axis=0) + result.confusion.sum(axis=1)) > 0
    draw_confusion(
        result.confusion[np.ix_(used, used)],
        [names[int(i)] for i in np.flatnonzero(used)],
        folder / "confusion.png",
        title=title,
    )
    bins = result.bins
    draw_reliability(
        bins.edges,
        bins.counts,
        bins.confidence,
        bins.accuracy,
        folder / "reliability.png",
        ece=result.ece,
        title=f"Reliability: {title}",
    )
    if np.count_nonzero(result.class_counts) <= per_class.MAX_CLASSES:
        path = folder / "per_class.png"
        draw_per_class(result.class_accuracy, result.class_counts, names, path, title=title)
    draw_predictions(choose_examples(result, dataset), folder / "predictions.png", title=title)
    write_text(folder / "metrics.json", _metrics_json(result, names, facts))


def _per_class_csv(result: ClassificationResult, names: list[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("index", "class", "images", "right", "top1", "taken_for", "taken_for_images"))
    for index, name in enumerate(names):
        mistakes = result.confusion[index].copy()
        right = int(mistakes[index])
        mistakes[index] = 0
        count, most = int(result.class_counts[index]), int(mistakes.max())
        accuracy = f"{right / count:.6f}" if count else ""
        other = names[int(mistakes.argmax())] if most else ""
        writer.writerow((index, name, count, right, accuracy, other, most))
    return text.getvalue()


def _metrics_json(result: ClassificationResult, names: list[str], facts: dict[str, Any]) -> str:
    bins = result.bins
    content = {
        **facts,
        "wavevit": wavevit.__version__,
        "num_images": len(result.rows),
        "num_classes": result.num_classes,
        "metrics": result.summary(),
        "reliability": {
            "edges": bins.edges.tolist(),
            "counts": bins.counts.tolist(),
            "confidence": [
                None if np.isnan(value) else value for value in bins.confidence.tolist()
            ],
            "accuracy": [None if np.isnan(value) else value for value in bins.accuracy.tolist()],
        },
    }
    if result.num_classes <= _MAX_CLASSES_IN_JSON:
        content["class_names"] = names
        content["confusion"] = result.confusion.tolist()
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
