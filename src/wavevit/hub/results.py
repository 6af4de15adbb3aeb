"""What a model card tells about a model: its numbers, what they were measured on, its training."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HEADLINE = {"classification": "top1", "detection": "box_ap", "segmentation": "mean_iou"}
"""The number of each task that every evaluation has."""

UNKNOWN = "unknown"
"""Of data whose name nobody gave, as others write it in model cards, too."""

# Groups of a run's settings that say how it learned; others are about files and machines.
_GROUPS = ("data", "model", "augment", "token_label", "distill", "optim", "trainer")
# Names of files and folders in them: they mean nothing elsewhere and may tell what is private.
_PLACES = frozenset({"path", "weights", "maps", "num_workers", "num_threads", "timeout_s"})


@dataclass(frozen=True)
class Results:
    """Numbers and where they come from.

    Attributes:
        metrics: By name, as fractions; finite ones only.
        dataset: Name of the data.
        split: Which part of the data.
        num_images: That were measured; None when unknown.
        settings: Of the training, nested; empty when unknown.
    """

    metrics: dict[str, float]
    dataset: str = UNKNOWN
    split: str = "validation"
    num_images: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def collect(
    source: Path,
    card: Any,
    *,
    evaluation: Path | None = None,
    dataset: str | None = None,
) -> Results:
    """The results of a model: those of an evaluation, or else those its own file has.

    Args:
        source: Model file, or run directory.
        card: Of the model; has `task`, `metrics` and `class_names`.
        evaluation: Folder that ``wavevit evaluate --output`` has written.
        dataset: Name of the data; None takes that of the evaluation or of the run.

    Raises:
        FileNotFoundError: No metrics.json in `evaluation`.
        ValueError: It is damaged, or about another kind of model; or config.yaml is damaged.
    """
    settings = _read_settings(source / "config.yaml") if source.is_dir() else {}
    trained_on = _name_of(settings.get("data", {}).get("path"))
    learned = _without_places({key: settings[key] for key in _GROUPS if key in settings})
    if evaluation is None:
        metrics = _usable(card.metrics)
        return Results(metrics, dataset or trained_on or UNKNOWN, settings=learned)
    content = _read_evaluation(evaluation / "metrics.json", card)
    return Results(
        _usable(content["metrics"]),
        dataset or _name_of(content.get("data")) or UNKNOWN,
        str(content.get("split", "validation")),
        content.get("num_images"),
        learned,
    )


def read_log(source: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``log.jsonl``; none when the source is no run.

    Args:
        source: Model file, or run directory.
    """
    log = source / "log.jsonl"
    if not log.is_file():
        return []
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()]


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"expected the settings of a run in {path}, got {type(settings).__name__}")
    return settings


def _read_evaluation(path: Path, card: Any) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"expected {path}; --evaluation names a folder that `wavevit evaluate --output` wrote"
        )
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        metrics = content["metrics"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if HEADLINE[card.task] not in metrics:
        raise ValueError(
            f"{path} is not about a model for {card.task}: it has {', '.join(metrics)}"
        )
    classes = content.get("num_classes")
    if card.class_names and classes not in (None, len(card.class_names)):
        raise ValueError(
            f"{path} is about a model of {classes} classes, and this one has "
            f"{len(card.class_names)}"
        )
    return content


def _usable(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without what was not measured, such as the AP of large objects where there are none: -1."""
    return {
        name: float(value) for name, value in metrics.items() if math.isfinite(value) and value >= 0
    }


def _name_of(data: Any) -> str | None:
    """The last part of a path or URL: where a folder lies is nobody's business."""
    return None if not data else str(data).rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]


def _without_places(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {
        key: _without_places(value)
        for key, value in settings.items()
        if key not in _PLACES and not (isinstance(value, str) and ("/" in value or "\\" in value))
    }
