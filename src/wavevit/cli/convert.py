"""``wavevit convert``: rewrite an official checkpoint as a model file."""

import inspect
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from wavevit.models.card import ModelCard
    from wavevit.models.weights import LoadReport


def convert_checkpoint(
    source: Path,
    target: Path,
    overwrite: bool = False,
    model: str | None = None,
    backbone: str | None = None,
    class_names: Path | None = None,
    short_edge: int | None = None,
    long_edge: int | None = None,
    size_rule: Literal["multiple_of_16", "keep_ratio"] | None = None,
) -> int:
    """Rewrites official weights as a safetensors file with our names and a model card.

    Takes Wave-ViT classifiers; what mmdetection has trained of RetinaNet, ATSS, GFL, Mask R-CNN
    (or Faster R-CNN), Cascade Mask R-CNN and Sparse R-CNN, and mmsegmentation of UPerNet, on a
    Wave-ViT or a ResNet. Pickled code in the source is never run. Nothing is written unless every
    entry fits.

    Args:
        source: Official checkpoint (.pth, .pth.tar, .safetensors), or a classifier with our names.
        target: File to write, ending in .safetensors.
        overwrite: Replace the target if it exists.
        model: Detector or segmenter that the checkpoint must be of; null: the one that it is.
        backbone: timm name of its backbone; null: by its shapes.
        class_names: Text file with its classes, a name per line; null: as the checkpoint names
            them, or ADE20K's for a segmenter of 150 without names.
        short_edge: Images are resized for it so that the shorter side has so many pixels; null: 800
            for detectors, 512 for segmenters.
        long_edge: Most pixels of the longer side; null: 1333 for detectors, 2048 for segmenters.
        size_rule: How edges make a size; null: multiple_of_16 for a Wave-ViT, as its authors do,
            else keep_ratio.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No source, or no folder for the target.
        FileExistsError: The target exists and `overwrite` is not given.
        ValueError: An unknown network, damaged, in need of code to load, or entries do not fit.
    """
    from wavevit.cli.official_conversion import ConversionOptions
    from wavevit.detection import official as of_detectors
    from wavevit.models.official_files import read_official
    from wavevit.models.weights import convert
    from wavevit.segmentation import official as of_segmenters

    options = ConversionOptions(model, backbone, class_names, short_edge, long_edge, size_rule)
    file = read_official(source) if source.suffix != ".ckpt" else None  # which `convert` explains
    if file is not None and of_detectors.is_official(file.state):
        from wavevit.cli import detection_convert

        _check_target(target, overwrite)
        lines = detection_convert.summary(
            *detection_convert.convert_detector(source, target, file, options)
        )
    elif file is not None and of_segmenters.is_official(file.state):
        from wavevit.cli import segmentation_convert

        _check_target(target, overwrite)
        lines = segmentation_convert.summary(
            *segmentation_convert.convert_segmenter(source, target, file, options)
        )
    else:
        given = [name for name, value in asdict(options).items() if value is not None]
        if given:
            option = f"--{given[0].replace('_', '-')}"
            raise ValueError(
                f"{option} is for detectors of mmdetection and segmenters of mmsegmentation, and "
                f"{source} holds none: no entry has a name of theirs"
            )
        del file
        lines = summary(*convert(source, target, overwrite=overwrite))
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.write(f"written: {target} ({target.stat().st_size / 1e6:.1f} MB)\n")
    return 0


def add_arguments(parser: "ArgumentParser") -> None:
    """Adds the command's options to its parser.

    Args:
        parser: The command's parser.
    """
    parser.add_argument("source", type=Path, help="Official checkpoint.")
    parser.add_argument("target", type=Path, help="File to write, ending in .safetensors.")
    parser.add_function_arguments(convert_checkpoint, skip={"source", "target"})


def run(options: "Namespace") -> int:
    """Runs the command; returns the exit code.

    Args:
        options: Parsed options.
    """
    names = inspect.signature(convert_checkpoint).parameters
    return convert_checkpoint(**{name: getattr(options, name) for name in names})


def _check_target(target: Path, overwrite: bool) -> None:
    # As in `wavevit.models.weights.convert`.
    if target.suffix != ".safetensors":
        raise ValueError(f"the output must end in .safetensors, got {target}")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; choose another name or pass --overwrite")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder of the output does not exist: {target.parent}")


def summary(card: "ModelCard", report: "LoadReport") -> list[str]:
    """What was recognised, and what became of the entries.

    Args:
        card: The recognised network.
        report: Of loading into it.
    """
    arguments = card.model_args
    details = [
        f"{arguments.get('num_classes', 1000)} classes",
        "with token labels" if arguments.get("token_label") else "without token labels",
        "average pooling" if arguments.get("global_pool") == "avg" else "class token pooling",
    ]
    if "in_chans" in arguments:
        details.append(f"{arguments['in_chans']} input channels")
    lines = [
        f"recognised: {card.model} ({', '.join(details)})",
        f"converted: {report.loaded} entries",
    ]
    for kind in ("missing", "unexpected", "mismatched"):
        lines.append(f"{kind}: {', '.join(getattr(report, kind)) or 'none'}")
    return lines
