"""``wavevit predict``: run a model on images."""

import inspect
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from torch import Tensor

    from wavevit.cli.inference import Classifier
    from wavevit.cli.prediction_files import ImageRecord, PictureFolder, RecordWriter
    from wavevit.data.transforms import Transform

# A result waits no longer than this for its batch to fill up: the first one comes at once, and a
# slow source is followed as it goes.
_MAX_WAIT_S = 1.0
_SECONDS_BETWEEN_LINES = 10.0


def predict(
    images: list[str],
    checkpoint: Path,
    topk: int = 5,
    output: Path | None = None,
    draw: Path | None = None,
    overwrite: bool = False,
    null: bool = False,
    batch_size: int = 32,
    num_workers: int = 2,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    model: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
) -> int:
    """Runs a model on images and writes the most probable classes of each, in their order.

    An image that cannot be read is reported, gets a record with the error, and does not stop the
    rest. Exit code 0: all went well; 1: some images failed; 2: nothing could be done.

    Args:
        images: Files, folders (with subfolders), quoted patterns, or - for a list on stdin.
        checkpoint: Model file, or run directory with a best.safetensors.
        topk: Classes per image, best first.
        output: File to write, .jsonl or .csv; null writes JSON lines to stdout.
        draw: Folder for copies of the images with the classes written below.
        overwrite: Replace an existing output file and existing pictures.
        null: The list on stdin is separated by NUL characters, as by find -print0.
        batch_size: Images per forward pass.
        num_workers: Threads that decode images ahead of the model, at least 1.
        device: Where the model runs; "auto" takes CUDA where there is some.
        precision: Number format inside the model.
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
    from wavevit.cli.prediction_files import PictureFolder, check_output, open_output

    if min(topk, batch_size, num_workers) < 1:
        raise ValueError(
            "--topk, --batch-size and --num-workers must be at least 1, got "
            f"{topk}, {batch_size} and {num_workers}"
        )
    check_arguments(images)
    check_output(output, overwrite)
    classifier = load_classifier(
        checkpoint,
        model=model,
        num_classes=num_classes,
        image_size=image_size,
        device=device,
        precision=precision,
    )
    topk = min(topk, classifier.num_classes)
    pictures = None
    if draw is not None:
        pictures = PictureFolder(draw, base_folder(images), overwrite)
        pictures.prepare([image for image in images if image != STDIN])
    writer = open_output(output, topk, overwrite)
    counts = Counts()
    found = predictions(
        classifier,
        _listed(images, null, counts),
        topk=topk,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    try:
        with closing(found) as records:
            _write_all(
                records, writer, pictures, num_workers, counts, writes_to_stdout=output is None
            )
    finally:
        writer.close()
    if counts.images == 0 and counts.failures == 0:
        raise ValueError("the list of images is empty")
    if counts.failures or output is not None:
        counts.say(f"{counts.images:,} images done, {counts.failures:,} failures")
    return 1 if counts.failures else 0


def add_arguments(parser: "ArgumentParser") -> None:
    """Adds the command's options to its parser.

    Args:
        parser: The command's parser.
    """
    parser.add_argument(
        "images",
        nargs="*",
        type=str,
        help="Files, folders (with subfolders), quoted patterns, or - for a list on stdin.",
    )
    parser.add_function_arguments(predict, skip={"images"})


def run(options: "Namespace") -> int:
    """Runs the command; returns the exit code.

    Args:
        options: Parsed options.
    """
    names = inspect.signature(predict).parameters
    return predict(**{name: getattr(options, name) for name in names})


@dataclass
class Counts:
    """How it went.

    Attributes:
        images: Number of records.
        failures: Number of things that went wrong, each reported.
    """

    images: int = 0
    failures: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, message: str) -> None:
        """Counts and reports a failure.

        Args:
            message: What went wrong.
        """
        with self._lock:  # folders are listed in a thread of their own
            self.failures += 1
        self.say(message)

    def say(self, message: str) -> None:
        """Writes one line to standard error.

        Args:
            message: Any text.
        """
        sys.stderr.write(f"wavevit predict: {' '.join(message.split())}\n")
        sys.stderr.flush()


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
        _interrupts() as interrupted,
        ReadAhead(
            paths,
            lambda path: _decode(path, transform),
            num_threads=num_workers,
            depth=2 * batch_size,
            interrupted=interrupted,
        ) as decoded,
    ):
        for batch in batches(decoded, batch_size, max_wait_s=_MAX_WAIT_S):
            yield _classify(classifier, batch, topk)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, besides raising KeyboardInterrupt as ever."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def handle(number: int, frame: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


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

    from wavevit.cli.prediction_files import ImageRecord, Prediction
    from wavevit.metrics.classification import first_classes

    pixels = [item.pixels for item in batch if item.pixels is not None]
    if pixels:
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


def _listed(images: Sequence[str], null: bool, counts: Counts) -> Iterator[str]:
    from wavevit.cli.image_paths import iter_paths

    def unlisted(error: OSError) -> None:
        counts.fail(f"cannot list the folder {error.filename!r}: {error.strerror}")

    return iter_paths(images, null=null, on_error=unlisted)


def _write_all(
    batches: Iterable[list["ImageRecord"]],
    writer: "RecordWriter",
    pictures: "PictureFolder | None",
    num_workers: int,
    counts: Counts,
    *,
    writes_to_stdout: bool,
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    last = time.monotonic()
    with ThreadPoolExecutor(num_workers) as pool:
        for records in batches:
            for record in records:
                writer.write(record)
                counts.images += 1
                if record.error is not None:
                    counts.fail(f"cannot read {record.path!r}: {record.error}")
            if pictures is not None:
                drawn = [record for record in records if record.error is None]
                for error in pool.map(lambda record: _draw(pictures, record), drawn):
                    if error is not None:
                        counts.fail(error)
            # Results on standard output show by themselves how far it is.
            if not writes_to_stdout and time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                counts.say(f"{counts.images:,} images done, {counts.failures:,} failures")


def _draw(pictures: "PictureFolder", record: "ImageRecord") -> str | None:
    """Writes the picture of a record; returns what went wrong."""
    try:
        pictures.draw(record)
    except (OSError, ValueError) as error:
        return f"cannot draw {record.path!r}: {error}"
    return None
