"""``wavevit export``: a model as a file for another runtime."""

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from wavevit.cli.export_check import Subject


def export(
    checkpoint: Path,
    output: Path,
    format: Literal["onnx", "torch", "aotinductor", "openvino"] = "onnx",
    check: Sequence[str] = (),
    int8: bool = False,
    calibration: Sequence[str] = (),
    image_size: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "cpu",
    model: str | None = None,
    num_classes: int | None = None,
) -> int:
    """Writes a model as files that run without this package's networks, in a new folder.

    Exit code 0: all went well; 1: the exported model is written but its predictions differ from
    the network's by more than the bars; 2: nothing could be done.

    Args:
        checkpoint: Model file, or run directory with a best.safetensors.
        output: Folder to make, with export.json and the files of the format.
        format: onnx for ONNX Runtime and others; torch for torch.export.load; aotinductor:
            compiled for this machine's kind of processor, needs a C++ compiler; openvino.
        check: Images, folders or quoted patterns. The exported model is run on them in its own
            runtime and compared with the network: classifiers must have the same five best
            classes and logits within 0.001, detectors the same objects after post-processing,
            segmenters the same label on 99.9 % of pixels.
        int8: Compute a classifier's large products in int8, in the format onnx. With --check,
            the best class must be the same on 97 % of the images; accuracy before and after is
            told where the folders of the images are named as the classes, and the time of both.
        calibration: Images, folders or quoted patterns that tell how large the numbers inside the
            network get, such as a few dozen of the training set; 64 of them are taken, spread
            over all.
        image_size: Rows and columns of a classifier's input, pixels; null: as it was trained. The
            file takes other sizes too, if its network does.
        device: Where the exported model is to run; onnx and openvino: cpu.
        model: timm model name, for a checkpoint that does not say which network it is for.
        num_classes: Classes of that model; null: what timm builds by default.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No such checkpoint, image, or folder for the output.
        FileExistsError: The output exists.
        ValueError: A wrong checkpoint, or a format that cannot be written here.
    """
    from wavevit.cli.export_check import calibration_images, check_readable, load_subject
    from wavevit.cli.image_paths import check_arguments
    from wavevit.cli.inference import find_device
    from wavevit.export.archive import check_target, export_folder
    from wavevit.export.exporting import export_model
    from wavevit.export.formats import check_format

    if export_folder(checkpoint) is not None:
        raise ValueError(f"{checkpoint} is exported already; give the model file it came from")
    check_target(output)
    check_format(format, find_device(device).type)
    if int8 != bool(calibration):
        raise ValueError("--int8 and --calibration IMAGES go together")
    if int8 and format != "onnx":
        raise ValueError(f"--int8 is for --format onnx, got --format {format}")
    for images in filter(None, (check, calibration)):
        check_arguments(images)
    check_readable(check)  # before minutes of work
    subject = load_subject(
        checkpoint, device=device, model=model, num_classes=num_classes, image_size=image_size
    )
    done = export_model(
        subject.network,
        subject.card,
        output,
        format,
        calibration=calibration_images(subject, calibration) if int8 else None,
        say=_say,
    )
    size = sum(file.stat().st_size for file in output.iterdir())
    _say(f"written: {done.folder} ({format}, {done.manifest.precision}, {size / 1e6:.1f} MB)")
    return _check(subject, output, check) if check else 0


def _check(subject: "Subject", output: Path, images: Sequence[str]) -> int:
    from wavevit.cli.export_check import compare, load_subject, speed
    from wavevit.export.archive import read_manifest

    exported = load_subject(output)
    is_int8 = read_manifest(output).precision == "int8"
    found = compare(subject, exported, images, int8=is_int8)
    if is_int8:
        _say(speed(subject, exported))
    _say(f"check {'passed' if found.passed else 'FAILED'}: {found.text}")
    return 0 if found.passed else 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def add_arguments(parser: "ArgumentParser") -> None:
    """Adds the command's options to its parser.

    Args:
        parser: The command's parser.
    """
    what = (
        "Images, folders or quoted patterns. The exported model is run on them in its own runtime "
        "and compared with the network: classifiers must have the same five best classes and "
        "logits within 0.001, detectors the same objects after post-processing, segmenters the "
        "same label on 99.9 % of pixels."
    )
    parser.add_function_arguments(export, skip={"check", "calibration"})
    parser.add_argument("--check", nargs="+", type=str, default=[], metavar="IMAGES", help=what)
    what = (
        "Images, folders or quoted patterns that tell how large the numbers inside the network "
        "get, such as a few dozen of the training set; 64 of them are taken, spread over all."
    )
    parser.add_argument(
        "--calibration", nargs="+", type=str, default=[], metavar="IMAGES", help=what
    )


def run(options: "Namespace") -> int:
    """Runs the command; returns the exit code.

    Args:
        options: Parsed options.
    """
    names = inspect.signature(export).parameters
    return export(**{name: getattr(options, name) for name in names})
