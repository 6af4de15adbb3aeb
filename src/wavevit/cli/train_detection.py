"""``wavevit train detection``."""

from typing import Any

from wavevit.cli import training

SHORT_NAMES = {
    "data": "data.path",
    "detector": "model.detector",
    "backbone": "model.backbone",
}
QUICK_START = "detection/shapes_gfl_wavevit_nano_quick.yaml"


def _settings() -> dict[str, Any]:
    from wavevit.training.detection_settings import (
        DetectionAugmentation,
        DetectionData,
        DetectorSettings,
    )

    return {"data": DetectionData, "model": DetectorSettings, "augment": DetectionAugmentation}


def _make_task(settings: dict[str, Any], seed: int) -> Any:
    from wavevit.training.detection import DetectionTask

    return DetectionTask(settings["data"], settings["augment"], settings["model"], seed)


def _results() -> training.Results:
    from wavevit.training import detection_report

    return detection_report


def _headline(task: Any) -> str:
    card = task.card
    sizes = f"short edge {card.short_edge} px, long edge up to {card.long_edge} px"
    return f"{card.detector} on {card.backbone}; {sizes}"


COMMAND = training.TrainingCommand(
    task="detection",
    quick_start=QUICK_START,
    settings=_settings,
    make_task=_make_task,
    results=_results,
    headline=_headline,
    score="box AP",
    size_option="data.short_edge",
    usage="[--data DIR] [--detector NAME] [--backbone NAME]",
    instead_of_model="name a detector with --detector, its network with --backbone",
)

add_arguments = COMMAND.add_arguments
prepare = COMMAND.prepare
find_recipe = COMMAND.find_recipe
run = COMMAND.run
