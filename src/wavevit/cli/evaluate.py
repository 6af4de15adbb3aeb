"""``wavevit evaluate``: measure a model on a data set."""

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from wavevit.cli.console import write_lines
from wavevit.cli.evaluation_processes import (
    TIMEOUT_S,
    check_loading,
    ignore,
    place,
    processes,
    together,
)
from wavevit.cli.task import run_for, task_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from jsonargparse import ArgumentParser, Namespace
    from lightning_fabric import Fabric

    from wavevit.cli.inference import Classifier
    from wavevit.data.classification import ClassificationDataset, ClassificationSplits, Split
    from wavevit.metrics.classification import ClassificationResult

_WORST_SHOWN = 5
_LESS_MEMORY = "lower --batch-size, or measure at a lower --image-size"


def evaluate(
    checkpoint: Path,
    data: str,
    split: str = "val",
    batch_size: int = 64,
    num_workers: int = 2,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    runtime: Literal["eager", "compiled", "cuda-graphs", "openvino"] = "eager",
    image_size: int | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    model: str | None = None,
    num_classes: int | None = None,
    val_fraction: float = 0.1,
    split_seed: int = 0,
) -> int:
    """Measures a classifier on a data set: accuracy, loss and calibration, overall and by class.

    Every image counts exactly once, whatever the batch size and the number of processes (torchrun,
    SLURM); one that cannot be read stops the evaluation. Classes are matched by name; the data may
    have fewer than the model.

    Args:
        checkpoint: Model file, run directory with a best.safetensors, or exported folder.
        data: Folder (val/ with class folders, or class folders), CSV file, folder or URL of tar
            shards, or "shapes" for the built-in generated set. For a detector, folder or file in
            COCO, YOLO or Pascal VOC layout, or "shapes".
        split: Part of the data to measure on: "val", "train" or "all"; for a detector, any that
            the data has.
        batch_size: Images per forward pass.
        num_workers: Processes that decode images; 0 decodes in the main process.
        device: Where the model runs; "auto" takes CUDA where there is some.
        precision: Number format inside the model.
        runtime: How a classifier is run: as it is, compiled (takes a minute first), compiled and
            replayed from CUDA graphs (small batches), or by OpenVINO on the CPU in fp32.
        image_size: Rows and columns of the model's input, pixels; null for the model file's.
        output: Folder to write metrics.json, per_class.csv, pictures and, of a detector, its
            predictions to; null writes none.
        overwrite: Replace files of an earlier evaluation in the output folder.
        model: timm name of the network, for plain weights that do not say what they are for.
        num_classes: Classes of that network; null for its usual number.
        val_fraction: Share of each class held out where the data has no split, as in training.
        split_seed: Seed of that choice, as in training.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No such checkpoint or data.
        FileExistsError: The output folder has results already.
        ValueError: A wrong checkpoint, classes that do not match, an image that cannot be read.
    """
    from wavevit.cli import evaluation_files
    from wavevit.cli.counter import counter
    from wavevit.cli.inference import load_classifier

    check_loading(batch_size, num_workers)
    with processes(device) as fabric:
        speaks = fabric is None or fabric.is_global_zero

        def prepare() -> "tuple[Classifier, ClassificationSplits]":
            if output is not None and speaks:
                evaluation_files.prepare(output, overwrite)
            classifier = load_classifier(
                checkpoint,
                device=device,
                precision=precision,
                runtime=runtime,
                image_size=image_size,
                model=model,
                num_classes=num_classes,
            )
            return classifier, open_for(
                classifier, data, val_fraction=val_fraction, split_seed=split_seed
            )

        classifier, splits = together(fabric, prepare)
        dataset = splits.get(cast("Split", split))  # which raises for others
        shown = counter(len(dataset), "evaluating", "images") if speaks else nullcontext(ignore)
        with shown as advance:
            result = measure(classifier, dataset, batch_size, num_workers, advance, fabric)
        if not speaks:
            return 0
        write_lines(
            f"{classifier.card.model} on {data} ({split}): {len(result.rows):,} images, "
            f"{classifier.num_classes:,} classes"
        )
        write_lines(*table(result, splits.class_names))
        if output is not None:
            facts = {
                "model": classifier.card.model,
                "checkpoint": str(checkpoint),
                "data": data,
                "split": split,
                "data_description": splits.description,
                "image_size": list(classifier.card.image_size),
                "batch_size": batch_size,
                "precision": precision,
                "device": classifier.device.type,
            }
            title = f"{classifier.card.model} on {Path(data).name or data} ({split})"
            evaluation_files.write(output, result, dataset, facts, title)
            write_lines(f"written: {output}")
    return 0


def add_arguments(parser: "ArgumentParser") -> None:
    """Adds the command's options to its parser.

    Args:
        parser: The command's parser.
    """
    parser.add_function_arguments(evaluate, skip={"batch_size"})
    parser.add_argument(
        "--batch_size",
        type=int | None,
        default=None,
        help="Images per forward pass; 64 of a classifier, 1 of others.",
    )
    known = {"batch_size", *inspect.signature(evaluate).parameters}
    for command in _commands().values():
        parser.add_function_arguments(command, skip=known)
        known |= set(inspect.signature(command).parameters)


def run(options: "Namespace") -> int:
    """Runs the command; returns the exit code.

    Args:
        options: Parsed options.
    """
    task = task_of(options.checkpoint) if options.model is None else "classification"
    return run_for(task, {"classification": evaluate, **_commands()}, options)


def _commands() -> "dict[str, Callable[..., int]]":
    """The functions of tasks other than classification."""
    from wavevit.cli.detection_evaluate import evaluate_detector
    from wavevit.cli.segmentation_evaluate import evaluate_segmenter

    return {"detection": evaluate_detector, "segmentation": evaluate_segmenter}


def open_for(
    classifier: "Classifier", data: str, *, val_fraction: float = 0.1, split_seed: int = 0
) -> "ClassificationSplits":
    """The data set with its labels in the order of the model's classes.

    Args:
        classifier: The model.
        data: Folder, CSV file or "shapes".
        val_fraction: Share of each class held out where the data has no split.
        split_seed: Seed of that choice.

    Raises:
        FileNotFoundError: No such data.
        ValueError: Classes that the model does not have, or another number of them where the model
            does not name its own.
    """
    from wavevit.data.classification import open_classification

    def opened(class_names: list[str] | None) -> "ClassificationSplits":
        return open_classification(
            data,
            val_fraction=val_fraction,
            split_seed=split_seed,
            image_size=classifier.card.image_size[0],
            class_names=class_names,
        )

    if classifier.card.class_names:
        return opened(classifier.card.class_names)
    splits = opened(None)
    if classifier.num_classes == 1000:
        # Weights from the literature know their classes by number alone; folders of ImageNet are
        # named by synset, and those have a customary order.
        from timm.data import ImageNetInfo

        synsets = ImageNetInfo("imagenet-1k").label_names()
        if set(splits.class_names) <= set(synsets):
            return opened(synsets)
    if len(splits.class_names) != classifier.num_classes:
        raise ValueError(
            f"the model has {classifier.num_classes} classes and does not name them, the data has "
            f"{len(splits.class_names)}; without names the numbers must be equal"
        )
    return splits


def measure(
    classifier: "Classifier",
    dataset: "ClassificationDataset",
    batch_size: int,
    num_workers: int,
    advance: "Callable[[int], None] | None" = None,
    fabric: "Fabric | None" = None,
) -> "ClassificationResult":
    """The metrics of a model on a data set.

    Args:
        classifier: The model.
        dataset: Images with labels in the order of the model's classes.
        batch_size: Images per forward pass; the last one may be smaller, nothing is padded.
        num_workers: Processes that decode images.
        advance: Called with the number of images of each finished batch, of all processes.
        fabric: The processes that share the work, every one of which gets the result; None for
            this one alone.

    Raises:
        ValueError: An image cannot be read, or the model gives NaN.
    """
    from wavevit.cli.memory import out_of_memory_explained
    from wavevit.data.loader import eval_loader, strict
    from wavevit.metrics.classification import ClassificationMetrics

    rank, num_processes = place(fabric)
    metrics = ClassificationMetrics(classifier.num_classes)
    batches = eval_loader(
        dataset,
        classifier.transform(),
        batch_size=batch_size,
        num_workers=num_workers,
        rank=rank,
        num_processes=num_processes,
        pin_memory=classifier.device.type == "cuda",
        timeout_s=TIMEOUT_S,
    )

    def measure_share() -> None:
        for batch in strict(batches):
            sample_ids = [dataset.sample_id(int(index)) for index in batch.indices]
            with out_of_memory_explained(_LESS_MEMORY):
                logits = classifier.logits(batch.images)
            metrics.update(sample_ids, logits, batch.labels)
            if advance is not None:
                advance(len(sample_ids) * num_processes)

    together(fabric, measure_share)
    if fabric is not None:
        from wavevit.training.shared_evaluation import merge_shares

        merge_shares(fabric, metrics)
    return metrics.compute()


def table(result: "ClassificationResult", class_names: list[str]) -> list[str]:
    """The lines that the command prints.

    Args:
        result: What evaluation found.
        class_names: Name of every class.
    """
    import numpy as np

    from wavevit.cli.inference import percent
    from wavevit.pictures.style import one_line

    lines = [
        f"  {name:<24}{value:>10}"
        for name, value in (
            ("top-1", percent(result.top1)),
            (f"top-{result.rows.top.shape[1]}", percent(result.top5)),
            ("mean over classes", percent(result.mean_class_accuracy)),
            ("calibration error (ECE)", percent(result.ece)),
            ("loss", f"{result.loss:.4f}"),
        )
    ]
    order = np.argsort(result.class_accuracy, kind="stable")[:_WORST_SHOWN]  # NaN comes last
    worst = [int(i) for i in order if result.class_accuracy[i] < 1]
    if not worst:
        return lines
    lines += ["", f"  {'weakest classes':<30}{'images':>8}{'top-1':>10}   taken for"]
    for index in worst:
        mistakes = result.confusion[index].copy()
        mistakes[index] = 0
        other = int(mistakes.argmax())
        lines.append(
            f"  {one_line(class_names[index], 28):<30}{result.class_counts[index]:>8}"
            f"{percent(float(result.class_accuracy[index])):>10}   "
            f"{one_line(class_names[other], 28)} ({mistakes[other]})"
        )
    return lines
