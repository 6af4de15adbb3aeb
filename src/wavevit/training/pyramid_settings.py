"""What the settings of detectors and segmenters have in common: checks, before a run starts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from wavevit.models.card import create_model
from wavevit.models.options import check_options

_RESERVED_OPTIONS = {
    "num_classes": "it follows from the data",
    "pretrained": "use model.pretrained",
    "drop_path_rate": "use model.drop_path_rate",
    "batch_norm": "use model.batch_norm",
    "frozen_stages": "use model.frozen_stages",
    "grad_checkpointing": "use model.grad_checkpointing",
}


def check_model_settings(
    name: str,
    cls: type,
    *,
    weights: Path | None,
    pretrained: bool,
    drop_path_rate: float,
    options: Mapping[str, Any],
) -> None:
    """Refuses settings of a network that cannot be used.

    Args:
        name: Of the detector or segmenter.
        cls: Its class, whose keyword-only arguments are the options.
        weights: Checkpoint to start from.
        pretrained: Whether to start from timm's weights of the backbone.
        drop_path_rate: Stochastic depth.
        options: Further arguments of the class.

    Raises:
        FileNotFoundError: No such weights.
        ValueError: A value out of range, settings that exclude each other, or an unknown option.
    """
    if weights is not None and not weights.is_file():
        raise FileNotFoundError(f"model.weights names no file: {weights}")
    if weights is not None and pretrained:
        raise ValueError("give model.weights or model.pretrained, not both")
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"model.drop_path_rate must be in [0, 1), got {drop_path_rate}")
    for option in options:
        if option in _RESERVED_OPTIONS:
            raise ValueError(f"model.options cannot set {option}: {_RESERVED_OPTIONS[option]}")
    try:
        check_options(name, cls, options)
    except ValueError as error:
        raise ValueError(f"model.options: {error}") from error


def check_backbone(name: str) -> None:
    """Refuses a backbone that timm does not have, with near names.

    Args:
        name: timm model name; those of hubs ("hf-hub:...") are not looked up.

    Raises:
        ValueError: There is no such model.
    """
    if ":" not in name and not timm.is_model(name):
        create_model(name)  # raises


@torch.no_grad()
def try_out(network: nn.Module, name: str, run: Callable[[], object]) -> None:
    """Finds out before the run whether a network takes images that are not square.

    Args:
        network: In training mode again afterwards, if it was.
        name: What it is, for the message.
        run: Runs it on an image of 64 x 96 pixels.

    Raises:
        ValueError: It does not.
    """
    was_training = network.training
    network.eval()
    try:
        run()
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{name} cannot run on images of 64 x 96 pixels: {reason}; choose another backbone, or "
            "check model.options"
        ) from error
    network.train(was_training)
