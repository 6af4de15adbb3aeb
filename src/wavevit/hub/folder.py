"""A model as a folder to share: in timm's layout, so that timm and transformers load it, too."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from timm.models import save_for_hf
from torch import nn

from wavevit.detection.card import load_detector
from wavevit.files import sync_file, sync_folder
from wavevit.hub.readme import network_name, write_readme
from wavevit.hub.results import collect, read_log
from wavevit.models.card import (
    ModelCard,
    load_built,
    model_file,
    read_card_of,
    read_card_values,
    save_model,
)
from wavevit.pictures.curves import draw_curves
from wavevit.segmentation.card import load_segmenter

WEIGHTS = "model.safetensors"

# Pictures of an evaluation without images of the data, which are perhaps not to be shown.
_SHAREABLE = {
    "confusion.png": "Confusion matrix",
    "precision_recall.png": "Precision over recall",
    "class_iou.png": "IoU by class",
    "per_class.png": "Results by class",
    "reliability.png": "Reliability",
}
_CURVES = "curves.png"
_SCORES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "classification": {"top1": "top-1", "top5": "top-5"},
        "detection": {"box_ap": "box AP", "mask_ap": "mask AP"},
        "segmentation": {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"},
    }
)


def save_hub_folder(
    source: Path,
    folder: Path,
    *,
    name: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
    evaluation: Path | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Writes a model with its card as a folder that can be uploaded to the Hugging Face Hub.

    A classifier's is in timm's layout: ``timm.create_model("local-dir:FOLDER", pretrained=True)``
    loads it, once uploaded also "hf-hub:USER/NAME", and so do transformers. Folders of all tasks
    are checkpoints for ``wavevit predict`` and ``wavevit evaluate``. Images of the data and paths
    of this machine stay out of it.

    Args:
        source: Model file with a card, or run directory.
        folder: To write; made with its parents. Other files in it are left alone.
        name: Of the model; None takes the folder's.
        license: Of the weights, an identifier of the hub such as "apache-2.0"; None states none.
        dataset: Name of the data that results were measured on; None takes its folder's.
        evaluation: Folder that ``wavevit evaluate --output`` has written: its results and pictures
            are shown in place of those that the run ended with.
        overwrite: Replaces the files of a model that is there.

    Returns:
        The files, in order of their names.

    Raises:
        FileNotFoundError: No model, or no evaluation.
        FileExistsError: The folder holds a model and `overwrite` is not set.
        NotADirectoryError: The folder is a file.
        ValueError: The model file has no card, or its weights do not fit it; or the evaluation is
            one of another model.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"expected a folder to write, but {folder} is a file")
    there = [each for each in _names() if (folder / each).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{folder} already has {', '.join(there)}; name another folder or pass --overwrite"
        )
    network, card, path = _load(source)
    results = collect(source, card, evaluation=evaluation, dataset=dataset)
    name = name or folder.resolve().name
    with _published(folder) as staging:
        if isinstance(card, ModelCard):
            _write_timm_layout(network, card, staging, license)
            # The same weights, and the card with them.
            save_model(staging / WEIGHTS, network.state_dict(), card)
        else:
            shutil.copyfile(path, staging / WEIGHTS)
        title = f"{network_name(card)} on {results.dataset}"
        pictures = _write_pictures(staging, source, evaluation, card.task, title)
        text = write_readme(name, card, results, license=license, pictures=pictures)
        (staging / "README.md").write_text(text, encoding="utf-8")
        written = sorted(each.name for each in staging.iterdir())
    return [folder / each for each in written]


def _names() -> list[str]:
    return [WEIGHTS, "config.json", "README.md", _CURVES, *_SHAREABLE]


def _load(source: Path) -> tuple[nn.Module, Any, Path]:
    """Network, card and file; building it finds out whether the weights fit."""
    path = model_file(source)
    if path.exists() and path.suffix != ".safetensors":
        raise ValueError(
            f"{path} is no model file: take the best.safetensors of a run, or convert an official "
            "checkpoint with `wavevit convert`"
        )
    task = (read_card_values(path) or {}).get("task", "classification")
    if task == "detection":
        return *load_detector(path), path
    if task == "segmentation":
        return *load_segmenter(path), path
    card = read_card_of(ModelCard, path, task="classification", what="network")
    network = card.build()
    load_built(network, path)
    return network, card, path


def _write_timm_layout(
    network: nn.Module, card: ModelCard, staging: Path, license: str | None
) -> None:
    channels = card.model_args.get("in_chans", 3)
    network.pretrained_cfg = {  # type: ignore[assignment]
        **network.pretrained_cfg,  # type: ignore[dict-item]
        "input_size": (channels, *card.image_size),
        "mean": card.mean,
        "std": card.std,
        "crop_pct": card.crop_pct,
        "interpolation": card.interpolation,
        "license": license,  # the weights', not that of timm's or our code
    }
    arguments = {key: value for key, value in card.model_args.items() if key != "num_classes"}
    save_for_hf(
        network,
        str(staging),
        model_config={"label_names": card.class_names} if card.class_names else None,
        model_args=arguments,
        safe_serialization=True,
    )
    path = staging / "config.json"
    config = json.loads(path.read_text("utf-8"))
    # It stands beside them already, and transformers would pass it to timm twice.
    config.get("model_args", {}).pop("num_classes", None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_pictures(
    staging: Path, source: Path, evaluation: Path | None, task: str, title: str
) -> dict[str, str]:
    pictures = {}
    rows = read_log(source)
    if rows:
        # Drawn again, since the title of the run's own has the path of the data.
        draw_curves(rows, staging / _CURVES, title=title, scores=_SCORES[task])
        pictures[_CURVES] = "Learning curves"
    for name, what in _SHAREABLE.items():
        if evaluation is not None and (evaluation / name).is_file():
            shutil.copyfile(evaluation / name, staging / name)
            pictures[name] = what
    return pictures


@contextmanager
def _published(folder: Path) -> Iterator[Path]:
    """A folder beside the one to write, whose files go there once all are complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.resolve().name}.partial")
    shutil.rmtree(staging, ignore_errors=True)  # of a program that was killed
    staging.mkdir()
    try:
        yield staging
        names = [each.name for each in staging.iterdir()]
        for name in names:
            with open(staging / name, "r+b") as file:
                sync_file(file)
        if not folder.exists():
            os.replace(staging, folder)
            sync_folder(folder.parent)
            return
        for name in set(_names()) - set(names):  # those of the model before
            (folder / name).unlink(missing_ok=True)
        for name in names:
            os.replace(staging / name, folder / name)
        sync_folder(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
