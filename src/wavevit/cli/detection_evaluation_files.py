"""What ``wavevit evaluate --output`` writes of a detector.

Shape legend: K classes.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import wavevit
from wavevit.files import write_text
from wavevit.metrics.average_precision import iou_thresholds
from wavevit.metrics.detection import DetectionMetrics, DetectionResult
from wavevit.pictures import per_class
from wavevit.pictures.per_class import draw_per_class
from wavevit.pictures.precision_recall import draw_precision_recall

NAMES = (
    "metrics.json",
    "per_class.csv",
    "predictions_boxes.json",
    "predictions_masks.json",
    "precision_recall.png",
    "per_class.png",
)


def write(
    folder: Path,
    metrics: DetectionMetrics,
    result: DetectionResult,
    facts: dict[str, Any],
    title: str,
) -> None:
    """Writes numbers, predictions and pictures; metrics.json comes last: it says all are there.

    Boxes and masks make separate files, as COCO's tools want them.

    Args:
        folder: Output folder.
        metrics: All that was found.
        result: Its numbers.
        facts: What was measured and how, for metrics.json.
        title: Line above the pictures.

    Raises:
        OSError: A file cannot be written.
    """
    for name in NAMES:  # a narrower set of files must not stand beside leftovers of an older one
        (folder / name).unlink(missing_ok=True)
    write_text(folder / "per_class.csv", _per_class_csv(result))
    write_text(folder / "predictions_boxes.json", json.dumps(metrics.to_results_json("box")))
    precision = {"boxes": result.box.precision}
    if result.mask is not None:
        write_text(folder / "predictions_masks.json", json.dumps(metrics.to_results_json("mask")))
        precision["masks"] = result.mask.precision
    draw_precision_recall(
        precision,
        iou_thresholds(),
        result.class_names,
        result.class_counts,
        folder / "precision_recall.png",
        title=title,
    )
    if np.count_nonzero(result.class_counts) <= per_class.MAX_CLASSES:
        draw_per_class(
            result.box.class_ap,
            result.class_counts,
            result.class_names,
            folder / "per_class.png",
            title=f"AP of boxes by class: {title}",
        )
    write_text(folder / "metrics.json", _metrics_json(result, metrics.category_ids, facts))


def _per_class_csv(result: DetectionResult) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = {"box_ap": result.box.class_ap, "box_ap50": result.box.class_ap50}
    if result.mask is not None:
        columns |= {"mask_ap": result.mask.class_ap, "mask_ap50": result.mask.class_ap50}
    writer.writerow(("index", "class", "objects", *columns))
    for index, name in enumerate(result.class_names):
        numbers = [_shown(values, index) for values in columns.values()]
        writer.writerow((index, name, int(result.class_counts[index]), *numbers))
    return text.getvalue()


def _shown(values: NDArray[np.float64], index: int) -> str:
    return "" if np.isnan(values[index]) else f"{values[index]:.6f}"


def _metrics_json(result: DetectionResult, category_ids: list[int], facts: dict[str, Any]) -> str:
    kinds = {"box": result.box} | ({} if result.mask is None else {"mask": result.mask})
    content = {
        **facts,
        "wavevit": wavevit.__version__,
        "num_images": result.num_images,
        "num_objects": int(result.class_counts.sum()),
        "num_classes": len(result.class_names),
        "metrics": result.summary(),
        "per_class": [
            {
                "class": name,
                "category_id": category_ids[index],
                "objects": int(result.class_counts[index]),
                **{
                    f"{kind}_ap": None if np.isnan(ap[index]) else float(ap[index])
                    for kind, ap in ((kind, found.class_ap) for kind, found in kinds.items())
                },
            }
            for index, name in enumerate(result.class_names)
        ],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
