"""``wavevit evaluate`` for segmenters.

Shape legend: K classes, H rows, W columns.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
    from torch import Tensor

    from wavevit.data.segmentation.dataset import SegmentationSource
    from wavevit.data.segmentation.layouts import PairPattern
    from wavevit.data.segmentation.loader import SegmentationEvalBatch
    from wavevit.data.segmentation.masks import LabelRule
    from wavevit.metrics.segmentation import SegmentationMetrics, SegmentationResult
    from wavevit.segmentation.inference import PreparedPicture, SegmentationPredictor

_MAX_CLASSES_SHOWN = 40  # of more, the weakest
_WEAKEST_SHOWN = 20


def evaluate_segmenter(
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
    image_folder: str | None = None,
    mask_folder: str | None = None,
    image_suffix: str | None = None,
    mask_suffix: str | None = None,
    ignore_index: int | None = None,
    reduce_zero_label: bool | None = None,
    window: int | None = None,
    stride: int | None = None,
    short_edge: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
) -> int:
    """Measures a segmenter on a data set: IoU and accuracy, mean and by class, at full resolution.

    Every image counts exactly once, whatever the batch size and the number of processes (torchrun,
    SLURM); one that cannot be read stops the evaluation. The classes of the data must be those of
    the model, in the same order.

    Args:
        checkpoint: Model file, run directory with a best.safetensors, or exported folder.
        data: Folder with images and masks, or "shapes" for the built-in generated set.
        split: Part of the data to measure on, any that it has. Without "val", the share that
            training would have held out.
        batch_size: Images of one size, or windows, per forward pass.
        num_workers: Processes that decode images; 0 decodes in the main process.
        device: Where the model runs; "auto" takes CUDA where there is some.
        precision: Number format inside the model.
        output: Folder to write metrics.json, per_class.csv, per_image.csv and pictures to; null
            writes none.
        overwrite: Replace files of an earlier evaluation in the output folder.
        val_fraction: Share held out where the data has no split, as in training.
        split_seed: Seed of that choice, as in training.
        image_folder: Folder of images, relative to the data or to the folder of a split.
        mask_folder: Folder of masks, likewise.
        image_suffix: How the names of images end, such as "_rgb.jpg".
        mask_suffix: How the names of masks end, such as "_labels.png".
        ignore_index: Number in masks of pixels that do not count, besides 255; null: as in
            training.
        reduce_zero_label: Takes 0 in masks for pixels that do not count, and 1 for the first class;
            null: as in training.
        window: Side of the sliding windows, in pixels, that images are looked through; null looks
            at whole images.
        stride: Pixels from one window to the next; null takes two thirds of a window.
        short_edge: Length that the shorter side of images is resized to, pixels; null: as in
            training, and for windows not at all.
        scales: Sizes that each image is looked at in, as multiples of the usual one; the
            probabilities are averaged.
        flip: Looks at the mirror image of each, too.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No such checkpoint or data.
        FileExistsError: The output folder has results already.
        ValueError: A wrong checkpoint, other classes, an image that cannot be read.
    """
    from wavevit.cli import evaluation_files, segmentation_evaluation_files
    from wavevit.cli.counter import counter
    from wavevit.cli.memory import out_of_memory_explained
    from wavevit.cli.segmentation_inference import (
        LESS_MEMORY,
        load_predictor,
        trained_short_edge,
    )
    from wavevit.data.segmentation.layouts import PairPattern
    from wavevit.data.segmentation.masks import LabelRule

    check_loading(batch_size, num_workers)
    with processes(device) as fabric:
        speaks = fabric is None or fabric.is_global_zero

        def prepare() -> "tuple[SegmentationPredictor, SegmentationSource, str]":
            if output is not None and speaks:
                evaluation_files.prepare(output, overwrite, segmentation_evaluation_files.NAMES)
            with out_of_memory_explained(LESS_MEMORY):
                predictor = load_predictor(
                    checkpoint,
                    device=device,
                    precision=precision,
                    window=window,
                    stride=stride,
                    short_edge=short_edge,
                    scales=scales,
                    flip=flip,
                    batch_size=batch_size,
                )
            card = predictor.card
            source, description = open_for(
                predictor,
                data,
                split,
                pattern=PairPattern(image_folder, mask_folder, image_suffix, mask_suffix),
                rule=LabelRule(
                    card.ignore_index if ignore_index is None else ignore_index,
                    card.reduce_zero_label if reduce_zero_label is None else reduce_zero_label,
                ),
                image_size=trained_short_edge(checkpoint),
                val_fraction=val_fraction,
                split_seed=split_seed,
            )
            return predictor, source, description

        predictor, source, description = together(fabric, prepare)
        shown = counter(len(source), "evaluating", "images") if speaks else nullcontext(ignore)
        with shown as advance:
            metrics = measure(predictor, source, batch_size, num_workers, advance, fabric)
        if not speaks:
            return 0
        result = metrics.compute()
        card = predictor.card
        name = f"{card.segmenter} on {card.backbone}"
        title = f"{name}, {Path(data).name or data} ({split})"
        write_lines(f"{title}: {result.num_images:,} images, {len(card.class_names)} classes")
        write_lines(*table(result))
        if output is not None:
            facts = {
                "model": name,
                "checkpoint": str(checkpoint),
                "data": data,
                "split": split,
                "data_description": description,
                "short_edge": predictor.card.short_edge,
                "long_edge": predictor.card.long_edge,
                "size_rule": card.size_rule,
                "window": window,
                "stride": None if predictor.sliding is None else predictor.sliding.step,
                "scales": list(scales),
                "flip": flip,
                "precision": precision,
                "device": predictor.device.type,
            }
            segmentation_evaluation_files.write(output, predictor, source, result, facts, title)
            write_lines(f"written: {output}")
    return 0


def open_for(
    predictor: "SegmentationPredictor",
    data: str,
    split: str = "val",
    *,
    pattern: "PairPattern | None" = None,
    rule: "LabelRule | None" = None,
    image_size: int = 128,
    val_fraction: float = 0.1,
    split_seed: int = 0,
) -> "tuple[SegmentationSource, str]":
    """The images to measure on, and a line on where they are from.

    Args:
        predictor: The segmenter.
        data: Folder or "shapes".
        split: Name of the split.
        pattern: Names of folders and endings of files.
        rule: How numbers in masks are labels.
        image_size: Side of the built-in set's images, pixels.
        val_fraction: Share held out where the data has no split "val".
        split_seed: Seed of that choice.

    Raises:
        FileNotFoundError: No such data.
        ValueError: No such split, anything wrong with the masks, or other classes.
    """
    from wavevit.data.segmentation.files import open_segmentation
    from wavevit.training.segmentation_settings import SHAPES
    from wavevit.training.segmentation_splits import generated_splits, hold_out_split

    names = predictor.card.class_names
    if data == SHAPES:
        splits = generated_splits(image_size)
        if splits.val.class_names != names:
            raise ValueError(f"the model has other classes than {data}")
        if split not in ("train", "val"):
            raise ValueError(f"no split {split!r} in {data}; has train, val")
        return (splits.train if split == "train" else splits.val), splits.description
    files = open_segmentation(data, pattern=pattern, rule=rule, class_names=names)
    if split in files.splits and ("val" in files.splits or split != "train"):
        return files.dataset(split), files.description
    if split not in ("train", "val"):
        raise ValueError(f"no split {split!r} in {data}; has {', '.join(files.splits)}")
    train, val = hold_out_split(files, val_fraction, split_seed)
    return (train if split == "train" else val), files.description


def measure(
    predictor: "SegmentationPredictor",
    source: "SegmentationSource",
    batch_size: int = 1,
    num_workers: int = 0,
    advance: "Callable[[int], None]" = ignore,
    fabric: "Fabric | None" = None,
) -> "SegmentationMetrics":
    """What a segmenter gets right on a data set.

    Args:
        predictor: The segmenter.
        source: What to measure on.
        batch_size: Images at a time.
        num_workers: Processes that decode images.
        advance: Called with the number of images of each finished batch, of all processes.
        fabric: The processes that share the work, every one of which gets all; None for this one
            alone.

    Raises:
        ValueError: An image cannot be read, or the model gives NaN.
    """
    from wavevit.cli.memory import out_of_memory_explained
    from wavevit.cli.segmentation_inference import LESS_MEMORY
    from wavevit.data.segmentation.loader import segmentation_eval_loader, strict_segmentation
    from wavevit.metrics.segmentation import SegmentationMetrics

    rank, num_processes = place(fabric)
    metrics = SegmentationMetrics(predictor.card.class_names)
    batches = segmentation_eval_loader(
        source,
        _as_stored,
        batch_size=batch_size,
        num_workers=num_workers,
        rank=rank,
        num_processes=num_processes,
        timeout_s=TIMEOUT_S,
    )

    def measure_share() -> None:
        for batch in strict_segmentation(batches):
            with out_of_memory_explained(LESS_MEMORY):
                _add(metrics, predictor, source, batch)
            advance(len(batch) * num_processes)

    together(fabric, measure_share)
    if fabric is not None:
        from wavevit.training.shared_evaluation import merge_shares

        merge_shares(fabric, metrics)
    return metrics


def _as_stored(image: "Tensor") -> "Tensor":
    """What loaders do to an image: nothing, since it may be looked at in several sizes."""
    return image


def _add(
    metrics: "SegmentationMetrics",
    predictor: "SegmentationPredictor",
    source: "SegmentationSource",
    batch: "SegmentationEvalBatch",
) -> None:
    prepared: list[PreparedPicture] = [predictor.prepare(image) for image in batch.images]
    for index, labels, found in zip(
        batch.indices.tolist(), batch.labels, predictor.label(prepared), strict=True
    ):
        sample_id = source.sample_id(index)
        if not found.is_finite:
            raise ValueError(
                f"the model gives NaN or infinity for {sample_id} in {predictor.precision}; take "
                "another --precision, or weights of a run that did not diverge"
            )
        metrics.update(sample_id, found.labels, labels)


def table(result: "SegmentationResult") -> list[str]:
    """The lines that the command prints.

    Args:
        result: What evaluation found.
    """
    from wavevit.cli.inference import percent
    from wavevit.pictures.style import one_line
    from wavevit.training.segmentation_examples import weakest_classes

    lines = [
        f"  {name:<24}{percent(value):>10}"
        for name, value in (
            ("mean IoU", result.mean_iou),
            ("mean class accuracy", result.mean_accuracy),
            ("pixel accuracy", result.pixel_accuracy),
            ("frequency-weighted IoU", result.frequency_weighted_iou),
        )
    ]
    K = len(result.class_names)
    heading, shown = "class", list(range(K))
    if K > _MAX_CLASSES_SHOWN:
        heading, shown = "weakest classes", weakest_classes(result.class_iou, _WEAKEST_SHOWN)
    total = max(int(result.class_counts.sum()), 1)
    lines += ["", f"  {heading:<30}{'of pixels':>10}{'IoU':>10}{'accuracy':>10}"]
    for label in shown:
        values = (
            result.class_counts[label] / total,
            result.class_iou[label],
            result.class_accuracy[label],
        )
        # NaN: of a class that is nowhere.
        cells = ["-" if value != value else percent(float(value)) for value in values]
        lines.append(
            f"  {one_line(result.class_names[label], 28):<30}"
            + "".join(f"{cell:>10}" for cell in cells)
        )
    return lines
