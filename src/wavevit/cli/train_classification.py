"""``wavevit train classification``."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from wavevit.cli import training
from wavevit.cli.training import EXIT_DIVERGED as EXIT_DIVERGED
from wavevit.cli.training import EXIT_STOPPED as EXIT_STOPPED

SHORT_NAMES = {"data": "data.path", "model": "model.name"}
QUICK_START = "classification/shapes_wavevit_nano_quick.yaml"


def _settings() -> dict[str, Any]:
    from wavevit.training.classification_settings import (
        Augmentation,
        ClassificationData,
        Classifier,
    )
    from wavevit.training.teaching_settings import Distillation, TokenLabels

    return {
        "data": ClassificationData,
        "model": Classifier,
        "augment": Augmentation,
        "token_label": TokenLabels,
        "distill": Distillation,
    }


def _make_task(settings: dict[str, Any], seed: int) -> Any:
    from wavevit.training.classification import ClassificationTask

    return ClassificationTask(
        settings["data"],
        settings["augment"],
        settings["model"],
        seed,
        settings["token_label"],
        settings["distill"],
    )


def _results() -> training.Results:
    from wavevit.training import report

    return report


COMMAND = training.TrainingCommand(
    task="classification",
    quick_start=QUICK_START,
    settings=_settings,
    make_task=_make_task,
    results=_results,
    headline=lambda task: f"{task.card.model} at {task.data.image_size[0]} px",
    score="top-1",
    size_option="data.image_size",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the command's options: the typed signatures of what they configure.

    Args:
        parser: The command's parser.
    """
    parser.usage = "%(prog)s [--data DIR] [--config RECIPE] [--output DIR] [options]"
    training.add_arguments(parser, COMMAND)


def prepare(words: list[str]) -> list[str]:
    """Fills in the recipe: the quick start without data, packaged recipes by name.

    Args:
        words: Words after the command, normalised.
    """
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
