"""What a finished detection run leaves behind: pictures and ``report.md``."""

import numpy as np

from wavevit.data.detection.loader import DetectionTrainView
from wavevit.data.samplers import TrainSampler
from wavevit.metrics.average_precision import NUMBERS, iou_thresholds
from wavevit.metrics.detection import DetectionResult
from wavevit.pictures.curves import draw_curves
from wavevit.pictures.detection import DrawnObjects
from wavevit.pictures.detection_grids import draw_detection_predictions, draw_detection_samples
from wavevit.pictures.precision_recall import draw_precision_recall
from wavevit.training import report_text
from wavevit.training.detection import DetectionTask
from wavevit.training.detection_examples import best_f1, choose_detection_examples, to_picture
from wavevit.training.loop import Outcome
from wavevit.training.run_directory import RunDirectory

_SAMPLES = 15
_NUMBER_NAMES = {
    "ap": "AP (IoU 0.50 to 0.95)",
    "ap50": "AP at IoU 0.50",
    "ap75": "AP at IoU 0.75",
    "ap_small": "AP, objects up to 32 x 32 px",
    "ap_medium": "AP, up to 96 x 96 px",
    "ap_large": "AP, larger",
    "ar1": "recall with 1 detection an image",
    "ar10": "recall with 10",
    "ar100": "recall with 100",
    "ar_small": "recall with 100, objects up to 32 x 32 px",
    "ar_medium": "recall with 100, up to 96 x 96 px",
    "ar_large": "recall with 100, larger",
}


def write_samples(run: RunDirectory, task: DetectionTask) -> None:
    """Draws the first training samples as the detector sees them into ``samples.png``.

    Args:
        run: Where.
        task: Data and augmentation.
    """
    sampler = TrainSampler(
        task.num_samples, min(_SAMPLES, task.num_samples), seed=task.seed, start=0, stop=1
    )
    view = DetectionTrainView(task.splits.train, task.train_transform)
    samples = []
    for request in next(iter(sampler)):
        item = view[request]
        masks = item.target.get("masks")
        objects = DrawnObjects(
            boxes_xyxy=item.target["boxes"].numpy(),
            labels=item.target["labels"].numpy(),
            class_names=task.card.class_names,
            masks=None if masks is None else masks.numpy(),
        )
        samples.append((to_picture(item.image), objects))
    draw_detection_samples(samples, run.path / "samples.png")


def write_pictures(run: RunDirectory, task: DetectionTask) -> None:
    """Draws ``curves.png``, ``predictions.png`` and ``precision_recall.png``.

    Args:
        run: Where, with its log.
        task: After the last evaluation.
    """
    title = _title(task)
    scores = {"box_ap": "box AP", "box_ap50": "box AP50"}
    if task.model.with_masks:
        scores |= {"mask_ap": "mask AP", "mask_ap50": "mask AP50"}
    draw_curves(
        run.rows(),
        run.path / "curves.png",
        title=title,
        scores=scores,
        scores_title="Validation AP",
    )
    result, metrics = task.result, task.metrics
    assert result is not None, "a finished run has been evaluated"
    assert metrics is not None
    examples = choose_detection_examples(task.val_set, metrics.rows(), result.box)
    draw_detection_predictions(examples, run.path / "predictions.png")
    precision = {"boxes": result.box.precision}
    if result.mask is not None:
        precision["masks"] = result.mask.precision
    draw_precision_recall(
        precision,
        iou_thresholds(),
        result.class_names,
        result.class_counts,
        run.path / "precision_recall.png",
        title=title,
    )


def write_report(run: RunDirectory, task: DetectionTask, outcome: Outcome) -> None:
    """Writes ``report.md``.

    Args:
        run: Where.
        task: What was trained, after the last evaluation.
        outcome: How it ended.
    """
    result = task.result
    assert result is not None, "a finished run has been evaluated"
    card, position = task.card, outcome.position
    best = {"best box AP": f"{result.box.numbers['ap']:.4f} (step {position.best_step})"}
    if result.mask is not None:
        best["mask AP"] = f"{result.mask.numbers['ap']:.4f}"
    lines = [
        *report_text.opening(_title(task), outcome),
        *report_text.facts(
            {
                **best,
                "data": task.splits.description,
                "classes": len(card.class_names),
                "image size": f"short edge {card.short_edge} px, long edge up to {card.long_edge} "
                f"px, {card.size_rule}",
            },
            task.seed,
        ),
        *_number_table(result),
        *_class_table(result),
        *report_text.pictures(
            {
                "curves.png": "learning curves",
                "samples.png": "training samples",
                "predictions.png": "validation predictions beside the truth",
                "precision_recall.png": "precision over recall",
            }
        ),
        *report_text.usage(
            [
                f"wavevit evaluate --checkpoint {run.path} --data {task.data.path}"
                f"{_evaluation_options(task)}",
                f"wavevit predict --checkpoint {run.path} IMAGES",
            ]
        ),
        *report_text.listed(
            "training files could not be read and were replaced", position.unreadable
        ),
        *report_text.listed("files held out for validation could not be read", task.left_out),
    ]
    report_text.save(run, lines)


def _evaluation_options(task: DetectionTask) -> str:
    """What makes ``wavevit evaluate`` measure as the run did."""
    data = task.data
    options = ""
    if task.splits.held_out:
        options += f" --val-fraction {data.val_fraction:g} --split-seed {data.split_seed}"
    elif data.val_split is not None:
        options += f" --split {data.val_split}"
    if data.format is not None:
        options += f" --format {data.format}"
    if data.clip_boxes:
        options += " --clip-boxes"
    if data.eval_batch_size > 1:
        options += f" --batch-size {data.eval_batch_size}"
    return options


def _title(task: DetectionTask) -> str:
    return f"{task.card.detector} on {task.card.backbone}, {task.data.path}"


def _number_table(result: DetectionResult) -> list[str]:
    """COCO's twelve numbers."""
    kinds = {"boxes": result.box, **({} if result.mask is None else {"masks": result.mask})}
    rows = [
        [_NUMBER_NAMES[name], *(_shown(kind.numbers[name]) for kind in kinds.values())]
        for name in NUMBERS
    ]
    return ["", "## COCO's numbers", "", *report_text.table(["", *kinds], rows)]


def _class_table(result: DetectionResult) -> list[str]:
    """AP of every class, and from which score on detections are best taken."""
    f1, threshold = best_f1(result.box)
    columns = [result.box.class_ap, result.box.class_ap50]
    head = ["class", "objects", "box AP", "box AP50"]
    if result.mask is not None:
        columns += [result.mask.class_ap, result.mask.class_ap50]
        head += ["mask AP", "mask AP50"]
    rows = []
    for label, name in enumerate(result.class_names):
        f1_and_score = ["", ""]
        if f1[label] > 0:
            f1_and_score = [f"{f1[label]:.3f}", f"{threshold[label]:.3f}"]
        values = [_shown(float(column[label])) for column in columns]
        rows.append([name, f"{result.class_counts[label]:,}", *values, *f1_and_score])
    title = [*head, "best F1", "from score"]
    return ["", "## Classes", "", *report_text.table(title, rows)]


def _shown(value: float) -> str:
    """A fraction, or nothing where there were no objects."""
    return "" if np.isnan(value) or value < 0 else f"{value:.4f}"
