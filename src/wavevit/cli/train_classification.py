"""``wavevit train classification``."""

from typing import Any

from wavevit.cli import training

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
    usage="[--data DIR]",
)

add_arguments = COMMAND.add_arguments
prepare = COMMAND.prepare
find_recipe = COMMAND.find_recipe
run = COMMAND.run
