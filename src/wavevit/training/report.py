"""What a finished run leaves behind: pictures and ``report.md``."""

import torch

from wavevit.data.loader import TrainView
from wavevit.data.samplers import TrainSampler
from wavevit.pictures.confusion import draw_confusion
from wavevit.pictures.curves import draw_curves
from wavevit.pictures.grids import draw_predictions, draw_samples
from wavevit.training import report_text
from wavevit.training.classification import ClassificationTask
from wavevit.training.examples import choose_examples
from wavevit.training.loop import Outcome
from wavevit.training.run_directory import RunDirectory

_SAMPLES = 32


def write_samples(run: RunDirectory, task: ClassificationTask) -> None:
    """Draws the first training samples as the network sees them into ``samples.png``.

    Args:
        run: Where.
        task: Data and augmentation.
    """
    sampler = TrainSampler(
        task.num_samples,
        min(_SAMPLES, task.num_samples),
        seed=task.seed,
        start=0,
        stop=1,
        repeats=task.augment.repeats,
    )
    view = TrainView(task.splits.train, task.train_transform, task.label_maps)
    samples = [view[request] for request in next(iter(sampler))]
    draw_samples(
        torch.stack([sample.image for sample in samples]),
        [task.card.class_names[sample.label] for sample in samples],
        run.path / "samples.png",
        mean=task.card.mean,
        std=task.card.std,
    )


def write_pictures(run: RunDirectory, task: ClassificationTask) -> None:
    """Draws ``curves.png``, ``predictions.png`` and ``confusion.png``.

    Args:
        run: Where, with its log.
        task: After the last evaluation.
    """
    title = f"{task.card.model} on {task.data.path}"
    draw_curves(run.rows(), run.path / "curves.png", title=title)
    result = task.result
    assert result is not None, "a finished run has been evaluated"
    examples = choose_examples(result, task.val_set)
    draw_predictions(examples, run.path / "predictions.png", title=title)
    draw_confusion(result.confusion, task.card.class_names, run.path / "confusion.png", title=title)


def write_report(run: RunDirectory, task: ClassificationTask, outcome: Outcome) -> None:
    """Writes ``report.md``.

    Args:
        run: Where.
        task: What was trained.
        outcome: How it ended.
    """
    metrics = outcome.metrics
    lines = [
        *report_text.opening(f"{task.card.model} on {task.data.path}", outcome),
        *report_text.facts(
            {
                "best top-1": f"{metrics['top1']:.4f} (step {outcome.position.best_step})",
                "top-5": f"{metrics['top5']:.4f}",
                "validation loss": f"{metrics['loss']:.4f}",
                "calibration error (ECE)": f"{metrics['ece']:.4f}",
                "data": task.splits.description,
                "classes": len(task.card.class_names),
                "image size": f"{task.card.image_size[0]} x {task.card.image_size[1]} px",
            },
            task.seed,
        ),
        *report_text.pictures(
            {
                "curves.png": "learning curves",
                "samples.png": "training samples",
                "predictions.png": "validation predictions",
                "confusion.png": "confusion matrix",
            }
        ),
        *report_text.usage(
            [
                f"wavevit evaluate --checkpoint {run.path} --data {task.data.path}"
                f"{_split_options(task)}",
                f"wavevit predict --checkpoint {run.path} IMAGES",
            ]
        ),
        *report_text.listed(
            "training files could not be read and were replaced", outcome.position.unreadable
        ),
        *report_text.listed("files held out for validation could not be read", task.left_out),
    ]
    report_text.save(run, lines)


def _split_options(task: ClassificationTask) -> str:
    """What makes ``wavevit evaluate`` draw the split that this run held out."""
    if not task.splits.held_out:
        return ""
    return f" --val-fraction {task.data.val_fraction:g} --split-seed {task.data.split_seed}"
