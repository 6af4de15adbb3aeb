"""A trained detector ready to run, for the commands that evaluate and predict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wavevit.cli.exported import exported_model
from wavevit.cli.inference import Device, find_device
from wavevit.detection.card import TASK, DetectorCard
from wavevit.detection.detector import Detector
from wavevit.detection.inference import DetectionPredictor, FoundObjects, PreparedImage
from wavevit.detection.tiling import TiledPredictor
from wavevit.models.picture_input import Precision

_TRIAL_SIZE = (64, 96)


def load_predictor(
    checkpoint: Path,
    *,
    device: Device,
    precision: Precision,
    score_threshold: float = 0.0,
) -> DetectionPredictor:
    """A detector of a model file, a run directory or an export; tried out on one picture.

    Args:
        checkpoint: Model file, run directory or exported model.
        device: "auto" takes CUDA where there is some.
        precision: Of the network's inside.
        score_threshold: Objects of a lower score are left out.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No CUDA, a file of something else, or a network that does not run here.
    """
    exported = exported_model(checkpoint, task=TASK, device=device, precision=precision)
    place = find_device(device) if exported is None else exported.device
    if exported is None:
        predictor = DetectionPredictor.load(
            checkpoint, device=place, precision=precision, score_threshold=score_threshold
        )
    else:
        assert isinstance(exported.model, Detector)
        assert isinstance(exported.card, DetectorCard)
        predictor = DetectionPredictor(
            exported.model, exported.card, device=place, score_threshold=score_threshold
        )
    try:
        predictor.detect([torch.zeros(3, *_TRIAL_SIZE)])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{predictor.card.detector} on {predictor.card.backbone} cannot run in {precision} on "
            f"{place.type}: {reason}"
        ) from error
    return predictor


@dataclass(frozen=True)
class Finder:
    """How a command looks at pictures: as a whole, or in tiles.

    Attributes:
        prepare: What is done to a picture ``(3, H, W)`` ahead of the network, in any thread.
        find: The objects in prepared pictures.
        group: Pictures at a time.
        ahead: Pictures that may be prepared ahead of the network.
        advice: What to do when memory runs out.
    """

    prepare: Callable[[Tensor], PreparedImage]
    find: Callable[[Sequence[PreparedImage]], list[FoundObjects]]
    group: int
    ahead: int
    advice: str


def make_finder(
    predictor: DetectionPredictor,
    *,
    tile: int | None,
    overlap: float,
    batch_size: int,
    whole: bool | None = None,
) -> Finder:
    """The way to look at pictures.

    Args:
        predictor: The detector.
        tile: Side of tiles in pixels; None looks at whole pictures.
        overlap: Share that a tile has in common with the next one.
        batch_size: Pictures, or tiles, at once.
        whole: Whether pictures in tiles are looked at as a whole, too; None as in `TiledPredictor`.

    Raises:
        ValueError: Numbers out of range, or `whole` without tiles.
    """
    if tile is None and whole is not None:
        raise ValueError("--whole goes with --tile: without it, images are looked at as a whole")
    if tile is None:
        return Finder(
            predictor.prepare,
            predictor.find,
            group=batch_size,
            ahead=2 * batch_size,
            advice="lower --batch-size, or take --precision bf16",
        )
    tiled = TiledPredictor(
        predictor, tile=tile, overlap=overlap, batch_size=batch_size, with_whole=whole
    )
    return Finder(
        # Resized tile by tile.
        lambda image: PreparedImage(image, (image.shape[1], image.shape[2])),
        lambda pictures: [tiled(picture.pixels) for picture in pictures],
        group=1,
        ahead=1,  # such pictures are large
        advice="lower --batch-size, or take --precision bf16",
    )
