"""``wavevit predict`` for segmenters: the class of every pixel of images."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wavevit.cli.prediction_loop import MAX_WAIT_S, Counts, interrupts, listed, write_all

if TYPE_CHECKING:
    from wavevit.cli.segmentation_records import LabelRecord, PredictedPictures
    from wavevit.segmentation.card import SegmenterCard
    from wavevit.segmentation.inference import (
        LabelledPicture,
        PreparedPicture,
        SegmentationPredictor,
    )


def predict_labels(
    images: list[str],
    checkpoint: Path,
    output: Path | None = None,
    draw: Path | None = None,
    save_masks: Path | None = None,
    overwrite: bool = False,
    null: bool = False,
    batch_size: int = 1,
    num_workers: int = 2,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    window: int | None = None,
    stride: int | None = None,
    short_edge: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    confidence: bool = False,
    opacity: float = 0.55,
) -> int:
    """Tells the class of every pixel of images, in their order.

    An image that cannot be read is reported, gets a record with the error, and does not stop the
    rest. Exit code 0: all went well; 1: some images failed; 2: nothing could be done.

    Args:
        images: Files, folders (with subfolders), quoted patterns, or - for a list on stdin.
        checkpoint: Model file, run directory with a best.safetensors, or exported folder.
        output: File to write, .jsonl or .csv, with the share of each image's pixels that each class
            has; null writes JSON lines to stdout.
        draw: Folder for copies of the images with the classes painted over them.
        save_masks: Folder for index masks: PNG files of the images' size with the number of each
            pixel's class, in the classes' colours.
        overwrite: Replace an existing output file and existing pictures.
        null: The list on stdin is separated by NUL characters, as by find -print0.
        batch_size: Windows, or images of one size, per forward pass.
        num_workers: Threads that decode images ahead of the model, at least 1.
        device: Where the model runs; "auto" takes CUDA where there is some.
        precision: Number format inside the model.
        window: Side of the sliding windows, in pixels, that images are looked through; memory then
            does not grow with the image. null looks at whole images.
        stride: Pixels from one window to the next; null takes two thirds of a window.
        short_edge: Length that the shorter side of images is resized to, pixels; null: as in
            training, and for windows not at all.
        scales: Sizes that each image is looked at in, as multiples of the usual one; the
            probabilities are averaged.
        flip: Looks at the mirror image of each, too.
        confidence: Adds the mean probability of the labels to the records.
        opacity: Of the colours in drawn pictures, in [0, 1].

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No such image, folder, checkpoint or output folder.
        FileExistsError: The output exists and `overwrite` is not given.
        ValueError: No images, a wrong checkpoint, or a value out of range.
    """
    from wavevit.cli.image_paths import check_arguments
    from wavevit.cli.prediction_files import check_output
    from wavevit.cli.segmentation_inference import load_predictor
    from wavevit.cli.segmentation_records import SUFFIXES, open_writer
    from wavevit.cli.video import is_video

    if batch_size < 1 or num_workers < 1:
        raise ValueError(
            f"--batch-size and --num-workers must be at least 1, got {batch_size} and {num_workers}"
        )
    if any(map(is_video, images)):
        raise ValueError("video is for detectors; give a segmenter images")
    check_arguments(images)
    check_output(output, overwrite, SUFFIXES)
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
        with_confidence=confidence,
    )
    pictures = _pictures(
        images, predictor.card, draw=draw, masks=save_masks, opacity=opacity, overwrite=overwrite
    )
    writer = open_writer(output, predictor.card.class_names, overwrite)
    counts = Counts()
    try:
        with closing(records(predictor, listed(images, null, counts), num_workers)) as batches:
            write_all(
                batches, writer, pictures, num_workers, counts, writes_to_stdout=output is None
            )
    finally:
        writer.close()
    if counts.images == 0 and counts.failures == 0:
        raise ValueError("the list of images is empty")
    if counts.failures or output is not None:
        counts.say_sum()
    return 1 if counts.failures else 0


def _pictures(
    images: list[str],
    card: "SegmenterCard",
    *,
    draw: Path | None,
    masks: Path | None,
    opacity: float,
    overwrite: bool,
) -> "PredictedPictures | None":
    """What is drawn of each image; its folders are made, and refused where they have files."""
    from wavevit.cli.image_paths import STDIN, base_folder
    from wavevit.cli.picture_folders import PictureFolder
    from wavevit.cli.segmentation_records import LabelPainter, PredictedPictures

    painter = LabelPainter(card, opacity)
    if draw is None and masks is None:
        return None
    if draw is not None and draw == masks:
        raise ValueError("--draw and --save-masks name the same folder; give each its own")
    base = base_folder(images)
    inputs = [image for image in images if image != STDIN]

    def prepared(folder: Path | None, option: str) -> PictureFolder | None:
        if folder is None:
            return None
        made = PictureFolder(folder, base, overwrite, painter, option)
        made.prepare(inputs)
        return made

    return PredictedPictures(
        prepared(masks, "--save-masks"), prepared(draw, "--draw"), card, overwrite
    )


@dataclass(frozen=True)
class _Decoded:
    path: str
    prepared: "PreparedPicture | None" = None  # None after an error
    error: str | None = None


def records(
    predictor: "SegmentationPredictor", paths: Iterable[str], num_workers: int
) -> Generator[list["LabelRecord"], None, None]:
    """Records of images, in batches, in the order of the paths.

    Paths are taken as needed: few images are ahead of the model, and results do not wait for the
    end of the list.

    Args:
        predictor: The segmenter.
        paths: Of the images.
        num_workers: Threads that decode.

    Yields:
        Records of one batch.
    """
    from wavevit.cli.read_ahead import ReadAhead, batches

    # Through windows, pictures are large, and a batch is of windows.
    group = 1 if predictor.sliding is not None else predictor.batch_size
    with (
        interrupts() as interrupted,
        ReadAhead(
            paths,
            lambda path: _decode(path, predictor),
            num_threads=num_workers,
            depth=1 if predictor.sliding is not None else 2 * group,
            interrupted=interrupted,
        ) as decoded,
    ):
        for batch in batches(decoded, group, max_wait_s=MAX_WAIT_S):
            yield _label(predictor, batch)


def _decode(path: str, predictor: "SegmentationPredictor") -> _Decoded:
    import numpy as np
    import torch

    from wavevit.data.images import UnreadableImageError, load_image

    try:
        picture = load_image(path)
    except UnreadableImageError as error:
        return _Decoded(path, error=error.reason)
    try:
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return _Decoded(path, predictor.prepare(image))
    except MemoryError:
        size = f"{picture.width} x {picture.height}"
        return _Decoded(path, error=f"not enough memory to resize its {size} pixels")


def _label(predictor: "SegmentationPredictor", batch: Sequence[_Decoded]) -> list["LabelRecord"]:
    from wavevit.cli.memory import out_of_memory_explained
    from wavevit.cli.segmentation_inference import LESS_MEMORY
    from wavevit.cli.segmentation_records import LabelRecord

    prepared = [item.prepared for item in batch if item.prepared is not None]
    found: list[LabelledPicture] = []
    if prepared:
        with out_of_memory_explained(LESS_MEMORY):
            found = predictor.label(prepared)
    in_order = iter(found)
    return [
        _record(item.path, next(in_order), predictor.precision)
        if item.prepared is not None
        else LabelRecord(item.path, error=item.error)
        for item in batch
    ]


def _record(path: str, found: "LabelledPicture", precision: str) -> "LabelRecord":
    from wavevit.cli.segmentation_records import LabelRecord

    if not found.is_finite:
        hint = "" if precision == "fp32" else "; use --precision fp32"
        return LabelRecord(
            path, error=f"the model's output is NaN or infinite in {precision}{hint}"
        )
    mean = None if found.confidence is None else float(found.confidence.double().mean())
    return LabelRecord(path, found.labels.numpy(), mean)
