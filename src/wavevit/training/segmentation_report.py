"""What a finished segmentation run leaves behind: pictures and ``report.md``."""

import numpy as np
import torch
from torch import Tensor

from wavevit.data.samplers import TrainSampler
from wavevit.data.segmentation.loader import SegmentationTrainView
from wavevit.metrics.segmentation import SegmentationResult
from wavevit.pictures.class_iou import draw_class_iou
from wavevit.pictures.confusion import draw_confusion
from wavevit.pictures.curves import draw_curves
from wavevit.pictures.segmentation_grids import (
    draw_segmentation_predictions,
    draw_segmentation_samples,
)
from wavevit.segmentation.inference import SegmentationPredictor
from wavevit.training import report_text
from wavevit.training.detection_examples import to_picture
from wavevit.training.loop import Outcome
from wavevit.training.run_directory import RunDirectory
from wavevit.training.segmentation import SegmentationTask
from wavevit.training.segmentation_examples import choose_segmentation_examples

_SAMPLES = 9


def write_samples(run: RunDirectory, task: SegmentationTask) -> None:
    """Draws the first training samples as the segmenter sees them into ``samples.png``.

    Args:
        run: Where.
        task: Data and augmentation.
    """
    sampler = TrainSampler(
        task.num_samples, min(_SAMPLES, task.num_samples), seed=task.seed, start=0, stop=1
    )
    view = SegmentationTrainView(task.splits.train, task.train_transform)
    items = [view[request] for request in next(iter(sampler))]
    draw_segmentation_samples(
        [(to_picture(item.image), item.labels.numpy()) for item in items],
        task.card.class_names,
        task.card.palette,
        run.path / "samples.png",
    )


def write_pictures(run: RunDirectory, task: SegmentationTask) -> None:
    """Draws ``curves.png``, ``predictions.png``, ``class_iou.png`` and ``confusion.png``.

    Args:
        run: Where, with its log and the best network.
        task: After the last evaluation, which was that of the best network.
    """
    title, card = _title(task), task.card
    draw_curves(
        run.rows(),
        run.path / "curves.png",
        title=title,
        scores={"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"},
        scores_title="Validation",
    )
    result = task.result
    assert result is not None, "a finished run has been evaluated"
    predictor = SegmentationPredictor.load(run.path)

    def predict(image: Tensor) -> Tensor:
        return predictor([image])[0].labels

    with torch.random.fork_rng(devices=[]):  # building a network draws from it
        examples = choose_segmentation_examples(task.val_set, result.rows, predict)
    draw_segmentation_predictions(
        examples, card.class_names, card.palette, run.path / "predictions.png"
    )
    draw_class_iou(
        result.class_iou,
        result.class_accuracy,
        result.class_counts,
        card.class_names,
        card.palette,
        run.path / "class_iou.png",
        title=f"IoU by class: {title}",
    )
    draw_confusion(result.confusion, card.class_names, run.path / "confusion.png", title=title)


def write_report(run: RunDirectory, task: SegmentationTask, outcome: Outcome) -> None:
    """Writes ``report.md``.

    Args:
        run: Where.
        task: What was trained, after the last evaluation.
        outcome: How it ended.
    """
    result = task.result
    assert result is not None, "a finished run has been evaluated"
    card, position = task.card, outcome.position
    lines = [
        *report_text.opening(_title(task), outcome),
        *report_text.facts(
            {
                "best mean IoU": f"{result.mean_iou:.4f} (step {position.best_step})",
                "mean class accuracy": f"{result.mean_accuracy:.4f}",
                "pixel accuracy": f"{result.pixel_accuracy:.4f}",
                "frequency-weighted IoU": f"{result.frequency_weighted_iou:.4f}",
                "data": task.splits.description,
                "classes": len(card.class_names),
                "image size": f"short edge {card.short_edge} px, long edge up to {card.long_edge} "
                f"px, {card.size_rule}; trained on crops of "
                f"{' x '.join(map(str, task.augment.crop_size))}",
            },
            task.seed,
        ),
        *_class_table(result),
        *report_text.pictures(
            {
                "curves.png": "learning curves",
                "samples.png": "training samples",
                "predictions.png": "validation predictions beside the truth",
                "class_iou.png": "IoU by class",
                "confusion.png": "confusion matrix",
            }
        ),
        *report_text.usage(
            [
                f"wavevit evaluate --checkpoint {run.path} --data {task.data.path}"
                f"{_evaluation_options(task)}",
                f"wavevit predict --checkpoint {run.path} IMAGES --draw OVERLAYS",
            ]
        ),
        *report_text.listed(
            "training files could not be read and were replaced", position.unreadable
        ),
        *report_text.listed("files held out for validation could not be read", task.left_out),
    ]
    report_text.save(run, lines)


def _evaluation_options(task: SegmentationTask) -> str:
    """What makes ``wavevit evaluate`` measure as the run did."""
    data = task.data
    options = ""
    if task.splits.held_out:
        options += f" --val-fraction {data.val_fraction:g} --split-seed {data.split_seed}"
    elif data.val_split is not None:
        options += f" --split {data.val_split}"
    for name in ("image_folder", "mask_folder", "image_suffix", "mask_suffix"):
        value = getattr(data.pattern, name)
        if value is not None:
            options += f" --{name.replace('_', '-')} {value}"
    return options


def _title(task: SegmentationTask) -> str:
    return f"{task.card.segmenter} on {task.card.backbone}, {task.data.path}"


def _class_table(result: SegmentationResult) -> list[str]:
    total = max(int(result.class_counts.sum()), 1)
    rows = [
        [
            name,
            f"{result.class_counts[label] / total:.2%}",
            _shown(float(result.class_iou[label])),
            _shown(float(result.class_accuracy[label])),
        ]
        for label, name in enumerate(result.class_names)
    ]
    head = ["class", "share of pixels", "IoU", "accuracy"]
    return ["", "## Classes", "", *report_text.table(head, rows)]


def _shown(value: float) -> str:
    """A fraction, or nothing where the class is nowhere."""
    return "" if np.isnan(value) else f"{value:.4f}"
