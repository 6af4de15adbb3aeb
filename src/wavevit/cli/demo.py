"""``wavevit demo``: a page in the browser that shows what networks see."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from PIL import Image

    from wavevit.demo.looks import Looker


def demo(
    checkpoint: list[Path],
    host: str = "127.0.0.1",
    port: int = 7860,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    max_upload_mb: float = 20.0,
    max_megapixels: float = 50.0,
    max_queue: int = 64,
    max_users: int = 32,
    keep_minutes: float = 10.0,
    max_store_mb: float = 1000.0,
) -> int:
    """Serves a page on which pictures are dropped, or taken with a camera, until Ctrl-C.

    Args:
        checkpoint: Model files, run directories with a best.safetensors, or exported models:
            classifiers, detectors and segmenters, to choose from on the page.
        host: Address to serve on. Nobody but this machine reaches the default; 0.0.0.0 is for
            everybody in the network, without a password.
        port: 0 takes a free one.
        device: Where the models run; "auto" takes CUDA where there is some.
        precision: Number format inside the models.
        max_upload_mb: Largest file, megabytes.
        max_megapixels: Largest picture, of which nothing is decoded if it has more.
        max_queue: Requests that may wait; further ones get a message.
        max_users: Pages that may be open at the same time.
        keep_minutes: Minutes that pictures stay on this machine.
        max_store_mb: Room for the pictures of all users, megabytes.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: A wrong checkpoint, a port that is taken, gradio is missing, or a value out of
            range.
    """
    from wavevit.cli.console import write_lines
    from wavevit.demo.limits import Limits
    from wavevit.demo.server import bind, demo_app, is_local, require_gradio, serve

    limits = Limits(
        upload_mb=max_upload_mb,
        megapixels=max_megapixels,
        queue=max_queue,
        users=max_users,
        keep_minutes=keep_minutes,
        store_mb=max_store_mb,
    )
    require_gradio()
    with bind(host, port) as listening:
        lookers, summaries = load_lookers(checkpoint, device, precision)
        with demo_app(lookers, summaries, example_pictures(), limits, host) as guard:
            address = listening.getsockname()
            shown = f"[{address[0]}]" if ":" in address[0] else address[0]
            write_lines(f"http://{shown}:{address[1]} (Ctrl-C ends it)")
            if not is_local(host):
                write_lines("everybody who reaches this machine can use it: there is no password")
            serve(guard, listening)
    return 0


def load_lookers(
    checkpoints: list[Path],
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["fp32", "bf16", "fp16"],
) -> "tuple[dict[str, Looker], dict[str, str]]":
    """The networks by names to choose from, and a line about each.

    Args:
        checkpoints: Model files, run directories or exported models.
        device: As in `demo`.
        precision: As in `demo`.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: None was given, or a wrong one.
    """
    if not checkpoints:
        raise ValueError("expected at least one model: --checkpoint FILE_OR_RUN")
    lookers: dict[str, Looker] = {}
    summaries: dict[str, str] = {}
    for checkpoint in checkpoints:
        looker, what = _load(checkpoint, device, precision)
        name = _free_name(checkpoint, lookers)
        lookers[name] = looker
        classes = len(looker.class_names)
        summaries[name] = f"{what}: {looker.task}, {classes} class{'' if classes == 1 else 'es'}"
    return lookers, summaries


def _load(
    checkpoint: Path,
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["fp32", "bf16", "fp16"],
) -> "tuple[Looker, str]":
    from wavevit.cli.task import task_of

    task = task_of(checkpoint)
    if task == "classification":
        from wavevit.cli.inference import load_classifier
        from wavevit.demo.looks import ClassLooker

        classifier = load_classifier(checkpoint, device=device, precision=precision)
        return ClassLooker(classifier), classifier.card.model
    if task == "detection":
        from wavevit.cli import detection_inference
        from wavevit.demo.looks import ObjectLooker

        detector = detection_inference.load_predictor(
            checkpoint, device=device, precision=precision
        )
        return ObjectLooker(detector), f"{detector.card.detector} on {detector.card.backbone}"
    if task == "segmentation":
        from wavevit.cli import segmentation_inference
        from wavevit.demo.looks import LabelLooker

        segmenter = segmentation_inference.load_predictor(
            checkpoint, device=device, precision=precision
        )
        return LabelLooker(segmenter), f"{segmenter.card.segmenter} on {segmenter.card.backbone}"
    raise ValueError(
        f"expected a model for classification, detection or segmentation, but {checkpoint} is for "
        f"{task}"
    )


def _free_name(checkpoint: Path, taken: "dict[str, Looker]") -> str:
    """A name for a list: never a path of this machine."""
    stem = checkpoint.resolve().name.removesuffix(".safetensors")
    if stem == "best":
        stem = checkpoint.resolve().parent.name
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem} ({number})", number + 1
    return name


def example_pictures() -> "list[Image.Image]":
    """Pictures of the built-in generated set."""
    from PIL import Image

    from wavevit.data.shapes import render_scene

    alone = [render_scene(7, index, image_size=384).image for index in range(2)]
    together = [
        render_scene(7, 2 + index, image_size=512, num_objects=5).image for index in range(2)
    ]
    return [Image.fromarray(pixels) for pixels in (*alone, *together)]


def add_arguments(parser: "ArgumentParser") -> None:
    """Adds the command's options to its parser.

    Args:
        parser: The command's parser.
    """
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        type=Path,
        required=True,
        help="Model files, run directories with a best.safetensors, or exported folders: "
        "classifiers, detectors and segmenters, to choose from on the page.",
    )
    parser.add_function_arguments(demo, skip={"checkpoint"})


def run(options: "Namespace") -> int:
    """Runs the command; returns the exit code.

    Args:
        options: Parsed options.
    """
    return demo(**vars(options))
