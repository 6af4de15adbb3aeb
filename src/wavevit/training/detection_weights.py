"""Weights to start a detector from: of a classifier, or of a detector, perhaps of other classes."""

import logging
from pathlib import Path

from torch import nn

from wavevit.detection import recognise
from wavevit.detection.card import TASK, DetectorCard
from wavevit.detection.detector import Detector
from wavevit.detection.official import is_official
from wavevit.models.card import card_from, read_card_values
from wavevit.models.weights import LoadReport, match_weights, read_checkpoint

logger = logging.getLogger(__name__)

_BODY = "network.backbone.body"


def load_detector_weights(detector: Detector, card: DetectorCard, path: Path) -> LoadReport:
    """Loads a checkpoint file into a detector and says what became of every key.

    A detector's file, ours or mmdetection's, fills all of it but the layers that depend on the
    number of classes, where that differs. Any other file must fit the backbone, as a classifier's
    does, and fills that.

    Args:
        detector: The detector, changed in place.
        card: What it is.
        path: ``.safetensors`` or PyTorch file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An unreadable file, one of another detector, or one that does not fit; nothing
            has been changed then.
    """
    state = read_checkpoint(path)
    network: nn.Module = detector
    if is_official(state):
        found = recognise.recognise(state)
        _refuse_other(path, found.name, found.backbone, card)
    elif any(name.startswith(f"{_BODY}.") for name in state):
        theirs = _card_of(path)
        if theirs is not None:
            _refuse_other(path, theirs.detector, theirs.backbone, card)
    else:
        network = detector.get_submodule(_BODY)
    usable, report = match_weights(network, state)
    if not report.complete:
        part = "" if network is detector else "the backbone of "
        raise ValueError(
            f"{path} does not fit {part}{card.detector} on {card.backbone}: {report.summary()}"
        )
    network.load_state_dict(usable, strict=False)
    incomplete = report.missing or report.dropped
    logger.log(logging.WARNING if incomplete else logging.INFO, "%s: %s", path, report.summary())
    return report


def _card_of(path: Path) -> DetectorCard | None:
    if path.suffix != ".safetensors":
        return None
    values = read_card_values(path, task=TASK)
    return None if values is None else card_from(DetectorCard, values, path)


def _refuse_other(path: Path, detector: str, backbone: str, card: DetectorCard) -> None:
    if (detector, backbone) != (card.detector, card.backbone):
        raise ValueError(
            f"{path} holds {detector} on {backbone}, where the run is to train {card.detector} on "
            f"{card.backbone}; set model.detector and model.backbone to those of the file"
        )
