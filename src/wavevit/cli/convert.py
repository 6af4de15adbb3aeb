"""``wavevit convert``: rewrite an official checkpoint as a model file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from wavevit.models.card import ModelCard
    from wavevit.models.weights import LoadReport


def convert_checkpoint(source: Path, target: Path, overwrite: bool = False) -> int:
    """Rewrites official Wave-ViT weights as a safetensors file with our names and a model card.

    Pickled code in the source is never run. Nothing is written unless every entry fits.

    Args:
        source: Official checkpoint (.pth, .pth.tar, .safetensors), or one with our names.
        target: File to write, ending in .safetensors.
        overwrite: Replace the target if it exists.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No source, or no folder for the target.
        FileExistsError: The target exists and `overwrite` is not given.
        ValueError: Not a Wave-ViT, damaged, in need of code to load, or entries do not fit.
    """
    from wavevit.models.weights import convert

    card, report = convert(source, target, overwrite=overwrite)
    for line in summary(card, report):
        sys.stdout.write(line + "\n")
    sys.stdout.write(f"written: {target} ({target.stat().st_size / 1e6:.1f} MB)\n")
    return 0


def add_arguments(parser: "ArgumentParser") -> None:
    """Adds the command's options to its parser.

    Args:
        parser: The command's parser.
    """
    parser.add_function_arguments(convert_checkpoint, as_positional=True)


def run(options: "Namespace") -> int:
    """Runs the command; returns the exit code.

    Args:
        options: Parsed options.
    """
    return convert_checkpoint(options.source, options.target, options.overwrite)


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
