"""``wavevit train segmentation``."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from wavevit.cli import training

SHORT_NAMES = {
    "data": "data.path",
    "segmenter": "model.segmenter",
    "backbone": "model.backbone",
}
QUICK_START = "segmentation/shapes_upernet_wavevit_nano_quick.yaml"


def _settings() -> dict[str, Any]:
    from wavevit.training.segmentation_settings import (
        SegmentationAugmentation,
        SegmentationData,
        SegmenterSettings,
    )

    return {
        "data": SegmentationData,
        "model": SegmenterSettings,
        "augment": SegmentationAugmentation,
    }


def _make_task(settings: dict[str, Any], seed: int) -> Any:
    from wavevit.training.segmentation import SegmentationTask

    return SegmentationTask(settings["data"], settings["augment"], settings["model"], seed)


def _results() -> training.Results:
    from wavevit.training import segmentation_report

    return segmentation_report


def _headline(task: Any) -> str:
    card = task.card
    crop = " x ".join(map(str, task.augment.crop_size))
    return f"{card.segmenter} on {card.backbone}; crops of {crop} px"


COMMAND = training.TrainingCommand(
    task="segmentation",
    quick_start=QUICK_START,
    settings=_settings,
    make_task=_make_task,
    results=_results,
    headline=_headline,
    score="mean IoU",
    size_option="augment.crop_size",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's options: the typed signatures of what they configure.

    Args:
        parser: The command's parser.
    """
    parser.usage = (
        "%(prog)s [--data DIR] [--backbone NAME] [--config RECIPE] [--output DIR] [options]"
    )
    training.add_arguments(parser, COMMAND)


def prepare(words: list[str]) -> list[str]:
    """Fills in the recipe: the quick start without data, packaged recipes by name.

    Args:
        words: Words after the command, normalised.

    Raises:
        ValueError: ``--model``, as it is for other tasks: here two things have names.
    """
    if any(word.partition("=")[0] == "--model" for word in words):
        raise ValueError("--model: name the network with --backbone, its head with --segmenter")
    return training.fill_in_recipe(words, COMMAND)


def find_recipe(name: str) -> Path:
    """The path of a recipe.

    Args:
        name: A file, or a name below the recipes that come with wavevit.

    Raises:
        FileNotFoundError: Neither.
    """
    return training.find_recipe(name, COMMAND.task)


def run(options: Namespace) -> int:
    """Trains, and returns the exit code; called on every process that torchrun or SLURM starts.

    Args:
        options: Parsed options.

    Raises:
        FileNotFoundError: No such data or weights.
        ValueError: Settings that cannot be used.
        OSError: The run directory cannot be written.
    """
    return training.run(options, COMMAND)
