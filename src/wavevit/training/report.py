"""What a finished run leaves behind: pictures and ``report.md``."""

import platform
import time

import torch

from wavevit.data.loader import TrainView
from wavevit.data.samplers import TrainSampler
from wavevit.pictures.confusion import draw_confusion
from wavevit.pictures.curves import draw_curves
from wavevit.pictures.grids import draw_predictions, draw_samples
from wavevit.pictures.style import write_atomically
from wavevit.training.classification import ClassificationTask
from wavevit.training.examples import choose_examples
from wavevit.training.loop import Outcome
from wavevit.training.run_directory import RunDirectory
from wavevit.training.state import versions

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
    view = TrainView(task.train_set, task.train_transform, task.label_maps)
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
    position, metrics = outcome.position, outcome.metrics
    ending = "stopped early: no better score" if outcome.early else "finished"
    lines = [
        f"# {task.card.model} on {task.data.path}",
        "",
        f"{ending.capitalize()} at step {position.step} of {outcome.total_steps} after "
        f"{position.seconds / 60:.1f} minutes of training, {time.strftime('%Y-%m-%d')}.",
        "",
        "| | |",
        "|---|---|",
        f"| best top-1 | {metrics['top1']:.4f} (step {position.best_step}) |",
        f"| top-5 | {metrics['top5']:.4f} |",
        f"| validation loss | {metrics['loss']:.4f} |",
        f"| calibration error (ECE) | {metrics['ece']:.4f} |",
        f"| data | {task.splits.description} |",
        f"| classes | {len(task.card.class_names)} |",
        f"| image size | {task.card.image_size[0]} x {task.card.image_size[1]} px |",
        f"| seed | {task.seed} |",
        f"| machine | {platform.machine()}, {torch.get_num_threads()} threads, {_device()} |",
        *(f"| {name} | {version} |" for name, version in versions().items()),
        "",
        "![learning curves](curves.png)",
        "![training samples](samples.png)",
        "![validation predictions](predictions.png)",
        "![confusion matrix](confusion.png)",
        "",
        "Use it:",
        "",
        "```",
        f"wavevit evaluate --checkpoint {run.path} --data {task.data.path}{_split_options(task)}",
        f"wavevit predict --checkpoint {run.path} IMAGES",
        "```",
        *_listed("training files could not be read and were replaced", position.unreadable),
        *_listed("files held out for validation could not be read", task.left_out),
    ]
    text = "\n".join(lines) + "\n"
    encoded = text.encode("utf-8", "surrogateescape")  # file names need not be UTF-8
    write_atomically(run.path / "report.md", lambda file: file.write(encoded))


def _listed(what: str, unreadable: dict[str, str]) -> list[str]:
    if not unreadable:
        return []
    entries = [f"- `{name}`: {reason}" for name, reason in sorted(unreadable.items())]
    return ["", f"## {len(unreadable)} {what}", "", *entries]


def _split_options(task: ClassificationTask) -> str:
    """What makes ``wavevit evaluate`` draw the split that this run held out."""
    if not task.splits.held_out:
        return ""
    return f" --val-fraction {task.data.val_fraction:g} --split-seed {task.data.split_seed}"


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
