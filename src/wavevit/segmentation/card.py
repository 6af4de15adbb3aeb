"""Model files of segmenters: how to rebuild one and what size of images it was trained for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from wavevit.models.card import load_built, model_file, read_card_of
from wavevit.segmentation.factory import create_segmenter
from wavevit.segmentation.segmenter import Segmenter

TASK = "segmentation"


@dataclass(frozen=True)
class SegmenterCard:
    """How to rebuild a segmenter and prepare its input, stored inside its safetensors file.

    Attributes:
        segmenter: Name for `create_segmenter`.
        backbone: timm model name.
        options: Arguments of `create_segmenter` that change the network.
        class_names: One name per label, in order.
        palette: Red, green and blue of each class, 0..255, in pictures and index masks; empty:
            no colours are its own.
        mean: Per channel, of values in [0, 1].
        std: Per channel, of values in [0, 1].
        short_edge: Images are resized so that the shorter side has so many pixels,
        long_edge: unless the longer side would have more than these.
        size_rule: "multiple_of_16" (official) or "keep_ratio"; see `models.picture_input`.
        reduce_zero_label: Index masks hold label + 1, and 0 for what has no class, as ADE20K's do.
        ignore_index: Number in index masks of what does not count, besides 255.
        metrics: Measured results, e.g. ``{"mean_iou": 0.48}``, as fractions.
        task: "segmentation".
    """

    segmenter: str
    backbone: str
    options: dict[str, Any] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    palette: list[list[int]] = field(default_factory=list)
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    short_edge: int = 512
    long_edge: int = 2048
    size_rule: str = "multiple_of_16"
    reduce_zero_label: bool = False
    ignore_index: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    task: str = TASK

    def build(self) -> Segmenter:
        """The segmenter with fresh weights, in evaluation mode.

        Raises:
            ValueError: There is no such segmenter or backbone, or it does not take the options.
        """
        segmenter = create_segmenter(
            self.segmenter, self.backbone, num_classes=len(self.class_names), **self.options
        )
        return segmenter.eval()


def read_segmenter_card(path: Path) -> SegmenterCard:
    """The card of a safetensors file with a segmenter.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a safetensors file, without a card, or with another kind of model.
    """
    return read_card_of(SegmenterCard, path, task=TASK, what="segmenter")


def load_segmenter(path: Path) -> tuple[Segmenter, SegmenterCard]:
    """The segmenter of a model file, or of a run directory's best.safetensors, for evaluation.

    Args:
        path: The file or the directory.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a segmenter's file, or its weights do not fit its card.
    """
    path = model_file(path)
    card = read_segmenter_card(path)
    segmenter = card.build()
    load_built(segmenter, path)
    return segmenter, card
