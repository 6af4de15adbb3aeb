"""``wavevit evaluate`` for detectors.

Shape legend: K classes.
"""

from contextlib import nullcontext
from dataclasses import dataclass
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

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_fabric import Fabric

    from wavevit.data.detection.dataset import DetectionSource
    from wavevit.data.detection.loader import DetectionBatch
    from wavevit.data.detection.resize import SizeRule
    from wavevit.detection.inference import DetectionPredictor
    from wavevit.metrics.detection import DetectionMetrics, DetectionResult

_LESS_MEMORY = "lower --batch-size, or take --precision bf16"
_MAX_CLASSES_SHOWN = 100
_GENERATED = ("train", "val")  # splits of the built-in set


@dataclass(frozen=True)
class EvaluationData:
    """What a detector is measured on.

    Attributes:
        inputs: Images for the detector, which needs no masks of them.
        truth: The same images with all that is to be found.
        description: One line on where they are from.
    """

    inputs: "DetectionSource"
    truth: "DetectionSource"
    description: str


def evaluate_detector(
    checkpoint: Path,
    data: str,
    split: str = "val",
    batch_size: int = 1,
    num_workers: int = 2,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    output: Path | None = None,
    overwrite: bool = False,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    format: Literal["coco", "yolo", "voc"] | None = None,
    clip_boxes: bool = False,
    masks: bool = True,
) -> int:
    """Measures a detector on a data set: COCO's twelve numbers of boxes and masks, AP by class.

    Every image counts exactly once, whatever the batch size and the number of processes (torchrun,
    SLURM); one that cannot be read stops the evaluation. Classes are matched by name; the data may
    have fewer than the model.

    Args:
        checkpoint: Model file, run directory with a best.safetensors, or exported folder.
        data: Folder or file in COCO, YOLO or Pascal VOC layout, or "shapes" for the built-in
            generated set.
        split: Part of the data to measure on, any that it has. Without "val", the share that
            training would have held out.
        batch_size: Images per forward pass. Above 1, images are padded to the largest of their
            batch, which changes results slightly.
        num_workers: Processes that decode images; 0 decodes in the main process.
        device: Where the model runs; "auto" takes CUDA where there is some.
        precision: Number format inside the model.
        output: Folder to write metrics.json, per_class.csv, predictions and pictures to; null
            writes none.
        overwrite: Replace files of an earlier evaluation in the output folder.
        val_fraction: Share held out where the data has no split, as in training.
        split_seed: Seed of that choice, as in training.
        format: Layout of data for detection that looks like more than one.
        clip_boxes: Cut boxes and outlines that stick out of their images, as in training; otherwise
            they are errors.
        masks: Measure the masks of a detector that has them; --no-masks measures boxes alone.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No such checkpoint or data.
        FileExistsError: The output folder has results already.
        ValueError: A wrong checkpoint, classes that do not match, an image that cannot be read.
    """
    from wavevit.cli import detection_evaluation_files, evaluation_files
    from wavevit.cli.counter import counter
    from wavevit.cli.detection_inference import load_predictor
    from wavevit.cli.memory import out_of_memory_explained

    check_loading(batch_size, num_workers)
    with processes(device) as fabric:
        speaks = fabric is None or fabric.is_global_zero

        def prepare() -> "tuple[DetectionPredictor, EvaluationData]":
            if output is not None and speaks:
                evaluation_files.prepare(output, overwrite, detection_evaluation_files.NAMES)
            with out_of_memory_explained(_LESS_MEMORY):
                predictor = load_predictor(checkpoint, device=device, precision=precision)
            return predictor, open_for(
                predictor,
                data,
                split,
                format=format,
                clip=clip_boxes,
                with_masks=masks and predictor.detector.with_masks,
                val_fraction=val_fraction,
                split_seed=split_seed,
            )

        predictor, opened = together(fabric, prepare)
        total = len(opened.inputs)
        shown = counter(total, "evaluating", "images") if speaks else nullcontext(ignore)
        with shown as advance:
            metrics = measure(predictor, opened, batch_size, num_workers, advance, fabric)
        if not speaks:
            return 0
        result = metrics.compute()
        name = f"{predictor.card.detector} on {predictor.card.backbone}"
        title = f"{name}, {Path(data).name or data} ({split})"
        write_lines(f"{title}: {result.num_images:,} images, {sum(result.class_counts):,} objects")
        write_lines(*table(result))
        if output is not None:
            facts = {
                "model": name,
                "checkpoint": str(checkpoint),
                "data": data,
                "split": split,
                "data_description": opened.description,
                "short_edge": predictor.card.short_edge,
                "long_edge": predictor.card.long_edge,
                "size_rule": predictor.card.size_rule,
                "batch_size": batch_size,
                "precision": precision,
                "device": predictor.device.type,
            }
            detection_evaluation_files.write(output, metrics, result, facts, title)
            write_lines(f"written: {output}")
    return 0


def open_for(
    predictor: "DetectionPredictor",
    data: str,
    split: str = "val",
    *,
    format: Literal["coco", "yolo", "voc"] | None = None,
    clip: bool = False,
    with_masks: bool = False,
    val_fraction: float = 0.1,
    split_seed: int = 0,
) -> EvaluationData:
    """The images to measure on, with labels in the order of the detector's classes.

    Args:
        predictor: The detector.
        data: Folder, file or "shapes".
        split: Name of the split.
        format: Layout of the data, where its files look like more than one.
        clip: Whether what sticks out of its image is cut; otherwise it is an error.
        with_masks: Whether masks are measured.
        val_fraction: Share held out where the data has no split "val".
        split_seed: Seed of that choice.

    Raises:
        FileNotFoundError: No such data.
        ValueError: No such split, anything wrong with the annotations, classes that the detector
            does not have, or objects without masks where masks are measured.
    """
    from wavevit.data.detection.dataset import DetectionDataset
    from wavevit.data.detection.files import read_detection
    from wavevit.data.detection.layouts import find_detection_layout
    from wavevit.training.detection_settings import SHAPES, DetectionData

    card = predictor.card
    layout = None if data == SHAPES else find_detection_layout(data, format)
    splits = {} if layout is None else layout.splits
    if layout is not None and split in splits and ("val" in splits or split != "train"):
        annotations = read_detection(
            layout, split, class_names=card.class_names, with_masks=with_masks, clip=clip
        )
        if with_masks and not annotations.has_masks:
            raise ValueError(
                f"{annotations.num_masks:,} of {annotations.num_objects.sum():,} objects have a "
                f"mask ({annotations.description}); pass --no-masks to measure boxes alone"
            )
        return EvaluationData(
            DetectionDataset(annotations),
            DetectionDataset(annotations, with_masks=with_masks),
            annotations.description,
        )
    if split not in _GENERATED:
        raise ValueError(f"no split {split!r} in {data}; has {', '.join(splits or _GENERATED)}")
    # What training holds out, it knows best.
    settings = DetectionData(
        path=data,
        format=format,
        val_fraction=val_fraction,
        split_seed=split_seed,
        clip_boxes=clip,
        short_edge=card.short_edge,
        long_edge=card.long_edge,
    )
    opened = settings.open(with_masks=with_masks)
    if opened.val.class_names != card.class_names:
        raise ValueError(
            f"the model was trained on other classes than those of {data}, and no split of the "
            "data is for validation; name one that the data has with --split"
        )
    if split == "train":
        return EvaluationData(opened.train, opened.train, opened.description)
    return EvaluationData(opened.val_inputs, opened.val, opened.description)


def measure(
    predictor: "DetectionPredictor",
    data: EvaluationData,
    batch_size: int = 1,
    num_workers: int = 0,
    advance: "Callable[[int], None]" = ignore,
    fabric: "Fabric | None" = None,
) -> "DetectionMetrics":
    """All that a detector finds on a data set, ready to be computed or written.

    Args:
        predictor: The detector.
        data: What to measure on.
        batch_size: Images per forward pass; the last one may be smaller.
        num_workers: Processes that decode images.
        advance: Called with the number of images of each finished batch, of all processes.
        fabric: The processes that share the work, every one of which gets all; None for this one
            alone.

    Raises:
        ValueError: An image cannot be read, or the model gives NaN.
    """
    from wavevit.cli.memory import out_of_memory_explained
    from wavevit.data.detection.loader import detection_eval_loader, strict_detections
    from wavevit.data.detection.transforms import detection_eval_transform
    from wavevit.metrics.detection import DetectionMetrics

    rank, num_processes = place(fabric)
    card, truth = predictor.card, data.truth
    metrics = DetectionMetrics(
        truth.to_coco(), category_ids=truth.category_ids, with_masks=truth.with_masks
    )
    batches = detection_eval_loader(
        data.inputs,
        detection_eval_transform(
            short_edge=card.short_edge,
            long_edge=card.long_edge,
            size_rule=cast("SizeRule", card.size_rule),  # which raises for others
        ),
        batch_size=batch_size,
        num_workers=num_workers,
        rank=rank,
        num_processes=num_processes,
        pin_memory=predictor.device.type == "cuda",
        timeout_s=TIMEOUT_S,
    )

    def measure_share() -> None:
        for batch in strict_detections(batches):
            with out_of_memory_explained(_LESS_MEMORY):
                _add(metrics, predictor, data.inputs, batch)
            advance(len(batch) * num_processes)

    together(fabric, measure_share)
    if fabric is not None:
        from wavevit.training.shared_evaluation import merge_shares

        merge_shares(fabric, metrics)
    return metrics


def _add(
    metrics: "DetectionMetrics",
    predictor: "DetectionPredictor",
    source: "DetectionSource",
    batch: "DetectionBatch",
) -> None:
    """What is found in a batch, in the pixels of the images as stored."""
    from wavevit.data.detection.resize import restore_boxes, restore_masks

    detections, is_finite = predictor.detect(batch.images)
    for index, image, size, found, finite in zip(
        batch.indices.tolist(),
        batch.images,
        batch.original_sizes,
        detections,
        is_finite,
        strict=True,
    ):
        if not finite:
            raise ValueError(
                f"the model gives NaN or infinity for {source.sample_id(index)} in "
                f"{predictor.precision}; take another --precision, or weights of a run that did "
                "not diverge"
            )
        H, W = image.shape[1:]
        metrics.update(
            source.image_id(index),
            restore_boxes(found["boxes"], (H, W), size),
            found["labels"],
            found["scores"],
            # A few at a time: those of an image may be gigabytes.
            restore_masks(found["masks"], size) if metrics.with_masks else None,
        )


def table(result: "DetectionResult") -> list[str]:
    """The lines that the command prints.

    Args:
        result: What evaluation found.
    """
    import numpy as np

    from wavevit.cli.inference import percent
    from wavevit.metrics.average_precision import NUMBERS
    from wavevit.pictures.style import one_line

    kinds = [("box", result.box)] + ([] if result.mask is None else [("mask", result.mask)])
    lines = [f"  {'':<12}" + "".join(f"{kind:>10}" for kind, _ in kinds)]
    for name in NUMBERS:
        kind, _, size = name.partition("_")
        # COCO says -1 where there is no object of that size.
        values = [found.numbers[name] for _, found in kinds]
        texts = [percent(value if value >= 0 else np.nan) for value in values]
        lines.append(f"  {f'{kind.upper()} {size}':<12}" + "".join(f"{t:>10}" for t in texts))
    columns = [
        (f"{kind} {name}", values)
        for kind, found in kinds
        for name, values in (("AP", found.class_ap), ("AP50", found.class_ap50))
    ]
    lines += ["", f"  {'class':<30}{'objects':>8}"]
    lines[-1] += "".join(f"{heading:>12}" for heading, _ in columns)
    with_objects = np.flatnonzero(result.class_counts)
    for index in with_objects[:_MAX_CLASSES_SHOWN].tolist():
        lines.append(
            f"  {one_line(result.class_names[index], 28):<30}{result.class_counts[index]:>8,}"
            + "".join(f"{percent(float(values[index])):>12}" for _, values in columns)
        )
    if len(with_objects) > _MAX_CLASSES_SHOWN:
        more = len(with_objects) - _MAX_CLASSES_SHOWN
        lines.append(f"  and {more:,} more classes: --output writes all of them")
    return lines
