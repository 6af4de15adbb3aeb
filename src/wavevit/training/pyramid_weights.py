"""Weights to start a detector or a segmenter from: of its like, or of a classifier.

Those of its like may be of other classes; those of a classifier fill the backbone.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from wavevit.models.card import read_card_values
from wavevit.models.weights import LoadReport, match_weights, read_checkpoint

logger = logging.getLogger(__name__)

_BODY = "network.backbone.body"


@dataclass(frozen=True)
class Family:
    """What tells the checkpoints of detectors and of segmenters.

    Attributes:
        task: Of their model files.
        kind: "detector" or "segmenter": what names one in its model file and in the settings.
        is_official: Whether a checkpoint has the official names.
        recognise: Name and backbone of what an official checkpoint is for.
    """

    task: str
    kind: str
    is_official: Callable[[Mapping[str, Any]], bool]
    recognise: Callable[[Mapping[str, Tensor]], tuple[str, str]]


def load_pyramid_weights(
    network: nn.Module, name: str, backbone: str, path: Path, family: Family
) -> LoadReport:
    """Loads a checkpoint file and says what became of every key.

    A file of the network's like, ours or an official one, fills all of it but the layers that
    depend on the number of classes, where that differs. Any other file must fit the backbone, as a
    classifier's does, and fills that.

    Args:
        network: The detector or segmenter, changed in place.
        name: Its name.
        backbone: Its backbone's name.
        path: ``.safetensors`` or PyTorch file.
        family: Which of the two it is.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An unreadable file, one of another network, or one that does not fit; nothing
            has been changed then.
    """
    state = read_checkpoint(path)
    filled: nn.Module = network
    theirs: tuple[str, str] | None = None
    if family.is_official(state):
        theirs = family.recognise(state)
    elif any(entry.startswith(f"{_BODY}.") for entry in state):
        theirs = _named_in_card(path, family)
    else:
        filled = network.get_submodule(_BODY)
    if theirs is not None and theirs != (name, backbone):
        raise ValueError(
            f"{path} holds {' on '.join(theirs)}, where the run is to train {name} on "
            f"{backbone}; set model.{family.kind} and model.backbone to those of the file"
        )
    usable, report = match_weights(filled, state)
    if not report.complete:
        part = "" if filled is network else "the backbone of "
        raise ValueError(f"{path} does not fit {part}{name} on {backbone}: {report.summary()}")
    filled.load_state_dict(usable, strict=False)
    incomplete = report.missing or report.dropped
    logger.log(logging.WARNING if incomplete else logging.INFO, "%s: %s", path, report.summary())
    return report


def _named_in_card(path: Path, family: Family) -> tuple[str, str] | None:
    if path.suffix != ".safetensors":
        return None
    values = read_card_values(path, task=family.task)
    return None if values is None else (str(values[family.kind]), str(values["backbone"]))
