"""``wavevit predict``: run a model on images."""

import inspect
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wavevit.cli.prediction_loop import MAX_WAIT_S, Counts, interrupts, listed, write_all
from wavevit.cli.task import run_for, task_of

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from torch import Tensor

    from wavevit.cli.inference import Classifier
    from wavevit.cli.prediction_files import ImageRecord
    from wavevit.data.transforms import Transform

_LESS_MEMORY = "lower --batch-size, or predict at a lower --image-size"


def predict(
    images: list[str],
    checkpoint: Path,
    topk: int = 5,
    output: Path | None = None,
    draw: Path | None = None,
    explain: Path | None = None,
    explain_method: Literal["grad-cam", "attention"] | None = None,
    explain_stage: int | None = None,
    overwrite: bool = False,
    null: bool = False,
    batch_size: int = 32,
    num_workers: int = 2,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    runtime: Literal["eager", "compiled", "cuda-graphs", "openvino"] = "eager",
    model: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
) -> int:
    """Runs a classifier on images and writes the most probable classes of each, in their order.

    An image that cannot be read is reported, gets a record with the error, and does not stop the
    rest. Exit code 0: all went well; 1: some images failed; 2: nothing could be done.

    Args:
        images: Files, folders (with subfolders), quoted patterns, or - for a list on stdin.
        checkpoint: Model file, run directory with a best.safetensors, or exported folder.
        topk: Classes per image, best first.
        output: File to write, .jsonl or .csv, for a detector also .json in COCO's results format;
            null writes JSON lines to stdout.
        draw: Folder for copies of the images with the classes written below, the objects drawn in,
            or the classes of their pixels painted over them.
        explain: Folder for pictures of what a classifier looks at: each image beside itself with a
            heat map, and the classes below.
        explain_method: Heat of --explain: "grad-cam" (the default) shows where a stage's map speaks
            for the most probable class, of any network; "attention" where a Wave-ViT's class token
            looks.
        explain_stage: Stage of Grad-CAM, from 0, the finest; null: the last.
        overwrite: Replace an existing output file and existing pictures.
        null: The list on stdin is separated by NUL characters, as by find -print0.
        batch_size: Images per forward pass.
        num_workers: Threads that decode images ahead of the model, at least 1.
        device: Where the model runs; "auto" takes CUDA where there is some.
        precision: Number format inside the model.
        runtime: How a classifier is run: as it is, compiled (takes a minute first), compiled and
            replayed from CUDA graphs (small batches), or by OpenVINO on the CPU in fp32.
        model: timm model name, for a checkpoint that does not say which network it is for.
        num_classes: Classes of that model; null: what timm builds by default.
        image_size: Rows and columns of the model's input, pixels; null: as it was trained.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No such image, folder, checkpoint or output folder.
        FileExistsError: The output exists and `overwrite` is not given.
        ValueError: No images, a wrong checkpoint, or a value out of range.
    """
    from wavevit.cli.image_paths import STDIN, base_folder, check_arguments
    from wavevit.cli.inference import load_classifier
    from wavevit.cli.picture_folders import PictureFolder, PictureFolders
    from wavevit.cli.prediction_files import check_output, open_output
    from wavevit.cli.video import is_video

    if min(topk, batch_size, num_workers) < 1:
        raise ValueError(
            "--topk, --batch-size and --num-workers must be at least 1, got "
            f"{topk}, {batch_size} and {num_workers}"
        )
    if any(map(is_video, images)):
        raise ValueError("video is for detectors; give a classifier images")
    if explain is None and not (explain_method is None and explain_stage is None):
        raise ValueError("--explain-method and --explain-stage go with --explain FOLDER")
    check_arguments(images)
    check_output(output, overwrite)
    classifier = load_classifier(
        checkpoint,
        model=model,
        num_classes=num_classes,
        image_size=image_size,
        device=device,
        precision=precision,
        runtime=runtime,
    )
    topk = min(topk, classifier.num_classes)
    base = base_folder(images)
    folders = []
    if draw is not None:
        folders.append(PictureFolder(draw, base, overwrite))
    if explain is not None:
        from wavevit.cli.explaining import explanation_folder

        folders.append(
            explanation_folder(explain, base, overwrite, classifier, explain_method, explain_stage)
        )
    pictures = PictureFolders(*folders)
    pictures.prepare([image for image in images if image != STDIN])
    writer = open_output(output, topk, overwrite)
    counts = Counts()
    found = predictions(
        classifier,
        listed(images, null, counts),
        topk=topk,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    try:
        with closing(found) as records:
            write_all(
                records,
                writer,
                pictures if folders else None,
                num_workers,
                counts,
                writes_to_stdout=output is None,
            )
    finally:
        writer.close()
    if counts.images == 0 and counts.failures == 0:
        raise ValueError("the list of images is empty")
    if counts.failures or output is not None:
        counts.say_sum()
    return 1 if counts.failures else 0


def add_arguments(parser: "ArgumentParser") -> None:
    """Adds the command's options to its parser.

    Args:
        parser: The command's parser.
    """
    what = (
        "Files, folders (with subfolders), quoted patterns, or - for a list on stdin. For a "
        "detector also video files, and camera:0 for the first camera."
    )
    parser.add_argument("paths", nargs="*", type=str, metavar="IMAGES", help=what)
    parser.add_argument("--images", nargs="+", type=str, default=[], help="The same.")
    parser.add_function_arguments(predict, skip={"images", "batch_size"})
    parser.add_argument(
        "--batch_size",
        type=int | None,
        default=None,
        help="Images, tiles or windows per forward pass; 32 of a classifier, 1 of others.",
    )
    known = set(inspect.signature(predict).parameters)
    for command in _commands().values():
        parser.add_function_arguments(command, skip=known)
        known |= set(inspect.signature(command).parameters)


def run(options: "Namespace") -> int:
    """Runs the command; returns the exit code.

    Args:
        options: Parsed options.
    """
    options.images = [*options.paths, *options.images]
    task = task_of(options.checkpoint) if options.model is None else "classification"
    return run_for(task, {"classification": predict, **_commands()}, options)


def _commands() -> "dict[str, Callable[..., int]]":
    """The functions of tasks other than classification."""
    from wavevit.cli.detection_predict import predict_objects
    from wavevit.cli.segmentation_predict import predict_labels

    return {"detection": predict_objects, "segmentation": predict_labels}


@dataclass(frozen=True)
class _Decoded:
    path: str
    pixels: "Tensor | None" = None  # (3, H, W), None after an error
    width: int = 0
    height: int = 0
    error: str | None = None


def predictions(
    classifier: "Classifier",
    paths: Iterable[str],
    *,
    topk: int,
    batch_size: int,
    num_workers: int,
) -> Generator[list["ImageRecord"], None, None]:
    """Records of images, in batches, in the order of the paths.

    Paths are taken as needed: at most two batches are ahead of the model, and results do not wait
    for the end of the list.

    Args:
        classifier: The model.
        paths: Of the images.
        topk: Classes per image.
        batch_size: Images per forward pass; fewer when the source is slow.
        num_workers: Threads that decode.

    Yields:
        Records of one batch.
    """
    from wavevit.cli.read_ahead import ReadAhead, batches

    transform = classifier.transform()
    with (
        interrupts() as interrupted,
        ReadAhead(
            paths,
            lambda path: _decode(path, transform),
            num_threads=num_workers,
            depth=2 * batch_size,
            interrupted=interrupted,
        ) as decoded,
    ):
        for batch in batches(decoded, batch_size, max_wait_s=MAX_WAIT_S):
            yield _classify(classifier, batch, topk)


def _decode(path: str, transform: "Transform") -> _Decoded:
    from wavevit.data.images import UnreadableImageError, load_image

    try:
        picture = load_image(path)
    except UnreadableImageError as error:
        return _Decoded(path, error=error.reason)
    try:
        return _Decoded(path, transform(picture), picture.width, picture.height)
    except MemoryError:
        size = f"{picture.width} x {picture.height}"
        return _Decoded(path, error=f"not enough memory to resize its {size} pixels")


def _classify(
    classifier: "Classifier", batch: Sequence[_Decoded], topk: int
) -> list["ImageRecord"]:
    import numpy as np
    import torch

    from wavevit.cli.memory import out_of_memory_explained
    from wavevit.cli.prediction_files import ImageRecord, Prediction
    from wavevit.metrics.classification import first_classes

    pixels = [item.pixels for item in batch if item.pixels is not None]
    if pixels:
        with out_of_memory_explained(_LESS_MEMORY):
            logits = classifier.logits(torch.stack(pixels))
        probabilities = iter(logits.double().softmax(dim=1).numpy())
    names = classifier.card.class_names
    records = []
    for item in batch:
        if item.pixels is None:
            records.append(ImageRecord(item.path, error=item.error))
            continue
        row = next(probabilities)
        if not np.isfinite(row).all():
            error = f"the model's output is NaN in {classifier.precision}; use --precision fp32"
            records.append(ImageRecord(item.path, error=error))
            continue
        found = tuple(
            Prediction(names[index] if names else str(index), index, float(row[index]))
            for index in first_classes(row[None], topk)[0].tolist()
        )
        records.append(ImageRecord(item.path, found, item.width, item.height))
    return records
