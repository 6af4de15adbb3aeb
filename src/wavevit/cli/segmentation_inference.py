"""A trained segmenter ready to run, for the commands that evaluate and predict."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from wavevit.cli.exported import exported_model
from wavevit.cli.inference import Device, find_device
from wavevit.data.segmentation.palette import class_palette
from wavevit.export.archive import export_folder, read_manifest
from wavevit.models.card import card_from, model_file
from wavevit.models.picture_input import Precision
from wavevit.segmentation.card import TASK, SegmenterCard, load_segmenter, read_segmenter_card
from wavevit.segmentation.inference import SegmentationPredictor
from wavevit.segmentation.sliding_window import SlidingWindow
from wavevit.segmentation.test_time import TestTimeAugmentation

LESS_MEMORY = "look through --window, or lower --batch-size, or take --precision bf16"

_TRIAL_SIZE = (64, 96)


def load_predictor(
    checkpoint: Path,
    *,
    device: Device,
    precision: Precision,
    window: int | None = None,
    stride: int | None = None,
    short_edge: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    batch_size: int = 1,
    with_confidence: bool = False,
) -> SegmentationPredictor:
    """A segmenter of a model file, a run directory or an export; tried out on one picture.

    Args:
        checkpoint: Model file, run directory or exported model.
        device: "auto" takes CUDA where there is some.
        precision: Of the network's inside.
        window: Side of sliding windows, pixels; None sees pictures as a whole.
        stride: From one window to the next; None takes two thirds of a window.
        short_edge: Pictures are resized so that their shorter side has so many pixels; None: as the
            segmenter was trained, and not at all for windows.
        scales: Sizes that a picture is looked at in, as multiples of the usual one.
        flip: Whether it is looked at as its mirror image, too.
        batch_size: Pictures of one size, or windows, in a pass.
        with_confidence: Whether probabilities are wanted.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No CUDA, a file of something else, a network that does not run here, or numbers
            out of range.
    """
    if stride is not None and window is None:
        raise ValueError("--stride goes with --window")
    if short_edge is not None and not 32 <= short_edge <= 16384:
        raise ValueError(f"--short-edge must be 32 to 16384 pixels, got {short_edge}")
    sliding = None
    if window is not None:
        sliding = SlidingWindow(window, stride, resize=short_edge is not None, taper=True)
    augmentation = None
    if flip or list(scales) != [1.0]:
        augmentation = TestTimeAugmentation(tuple(scales), flip)
    exported = exported_model(checkpoint, task=TASK, device=device, precision=precision)
    place = find_device(device) if exported is None else exported.device
    segmenter: nn.Module
    if exported is None:
        segmenter, card = load_segmenter(checkpoint)
    else:
        assert isinstance(exported.card, SegmenterCard)
        segmenter, card = exported.model, exported.card
    if not card.palette:
        card = replace(card, palette=class_palette(card.class_names))
    if short_edge is not None:
        # The longer side is as long as the shape of the picture makes it.
        card = replace(card, short_edge=short_edge, long_edge=64 * short_edge)
    predictor = SegmentationPredictor(
        segmenter,
        card,
        device=place,
        precision=precision,
        sliding=sliding,
        augmentation=augmentation,
        batch_size=batch_size,
        with_confidence=with_confidence,
    )
    try:
        predictor.logits(torch.zeros(1, 3, *_TRIAL_SIZE))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{card.segmenter} on {card.backbone} cannot run in {precision} on {place.type}: "
            f"{reason}"
        ) from error
    return predictor


def trained_short_edge(checkpoint: Path) -> int:
    """The length that the shorter side of a segmenter's images had in training, pixels.

    Args:
        checkpoint: Model file, run directory or exported model.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file of something else.
    """
    folder = export_folder(checkpoint)
    if folder is None:
        return read_segmenter_card(model_file(checkpoint)).short_edge
    return card_from(SegmenterCard, read_manifest(folder).card, folder).short_edge
