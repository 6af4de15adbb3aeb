"""What ``wavevit evaluate --output`` writes of a segmenter.

Shape legend: K classes.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import wavevit
from wavevit.data.segmentation.dataset import SegmentationSource
from wavevit.files import write_text
from wavevit.metrics.segmentation import SegmentationResult
from wavevit.pictures.class_iou import draw_class_iou
from wavevit.pictures.confusion import draw_confusion
from wavevit.pictures.segmentation_grids import draw_segmentation_predictions
from wavevit.segmentation.inference import SegmentationPredictor
from wavevit.training.segmentation_examples import choose_segmentation_examples

NAMES = (
    "metrics.json",
    "per_class.csv",
    "per_image.csv",
    "confusion.csv",
    "class_iou.png",
    "confusion.png",
    "predictions.png",
)


def write(
    folder: Path,
    predictor: SegmentationPredictor,
    source: SegmentationSource,
    result: SegmentationResult,
    facts: dict[str, Any],
    title: str,
) -> None:
    """Writes numbers and pictures; metrics.json comes last: it says all are there.

    Args:
        folder: Output folder.
        predictor: Draws examples.
        source: The images.
        result: What was found.
        facts: What was measured and how, for metrics.json.
        title: Line above the pictures.

    Raises:
        OSError: A file cannot be written.
    """
    card = predictor.card
    for name in NAMES:  # leftovers of an older evaluation must not stand beside this one's
        (folder / name).unlink(missing_ok=True)
    write_text(folder / "per_class.csv", _per_class_csv(result))
    write_text(folder / "per_image.csv", _per_image_csv(result))
    write_text(
        folder / "confusion.csv",
        _csv(("truth", *result.class_names), _named(result.class_names, result.confusion.tolist())),
    )
    draw_class_iou(
        result.class_iou,
        result.class_accuracy,
        result.class_counts,
        card.class_names,
        card.palette,
        folder / "class_iou.png",
        title=f"IoU by class: {title}",
    )
    draw_confusion(result.confusion, card.class_names, folder / "confusion.png", title=title)

    def predict(image: Tensor) -> Tensor:
        return predictor([image])[0].labels

    examples = choose_segmentation_examples(source, result.rows, predict)
    draw_segmentation_predictions(
        examples, card.class_names, card.palette, folder / "predictions.png"
    )
    write_text(folder / "metrics.json", _metrics_json(result, facts))


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _named(names: Sequence[str], rows: Sequence[Sequence[int]]) -> Iterable[Sequence[object]]:
    return ([name, *row] for name, row in zip(names, rows, strict=True))


def _per_class_csv(result: SegmentationResult) -> str:
    rows = (
        (label, name, int(count), _shown(float(iou)), _shown(float(accuracy)))
        for label, (name, count, iou, accuracy) in enumerate(
            zip(
                result.class_names,
                result.class_counts,
                result.class_iou,
                result.class_accuracy,
                strict=True,
            )
        )
    )
    return _csv(("index", "class", "pixels", "iou", "accuracy"), rows)


def _per_image_csv(result: SegmentationResult) -> str:
    images = result.rows
    rows = (
        (name, pixels, right, _shown(iou))
        for name, pixels, right, iou in zip(
            images.sample_ids,
            images.num_pixels.tolist(),
            images.num_right.tolist(),
            images.mean_iou.tolist(),
            strict=True,
        )
    )
    return _csv(("image", "pixels", "right", "mean_iou"), rows)


def _shown(value: float) -> str:
    """A fraction, or nothing where there is none."""
    return "" if math.isnan(value) else f"{value:.6f}"


def _metrics_json(result: SegmentationResult, facts: dict[str, Any]) -> str:
    content = {
        **facts,
        "wavevit": wavevit.__version__,
        "num_images": result.num_images,
        "num_pixels": int(result.class_counts.sum()),
        "num_classes": len(result.class_names),
        "metrics": result.summary(),
        "per_class": [
            {
                "class": name,
                "pixels": int(result.class_counts[label]),
                "iou": _number(float(result.class_iou[label])),
                "accuracy": _number(float(result.class_accuracy[label])),
            }
            for label, name in enumerate(result.class_names)
        ],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
