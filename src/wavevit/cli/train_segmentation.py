"""``wavevit train segmentation``."""

from typing import Any

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
    usage="[--data DIR] [--backbone NAME]",
    instead_of_model="name the network with --backbone, its head with --segmenter",
)

add_arguments = COMMAND.add_arguments
prepare = COMMAND.prepare
find_recipe = COMMAND.find_recipe
run = COMMAND.run
