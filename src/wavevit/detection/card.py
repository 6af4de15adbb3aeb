"""Model files of detectors: how to rebuild one and what size of images it was trained for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wavevit.detection.detector import Detector
from wavevit.detection.factory import create_detector
from wavevit.models.card import load_built, model_file, read_card_of

TASK = "detection"


@dataclass(frozen=True)
class DetectorCard:
    """How to rebuild a detector and prepare its input, stored inside its safetensors file.

    Attributes:
        detector: Name for `create_detector`.
        backbone: timm model name.
        options: Arguments of `create_detector` that change the network or its detections.
        class_names: One name per label, in order.
        category_ids: Id of each class in COCO files, which results are written with.
        short_edge: Images are resized so that the shorter side has so many pixels,
        long_edge: unless the longer side would have more than these.
        size_rule: "multiple_of_16" (official) or "keep_ratio"; see `models.picture_input`.
        metrics: Measured results, e.g. ``{"box_ap": 0.443}``, as fractions.
        task: "detection".
    """

    detector: str
    backbone: str
    options: dict[str, Any] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    category_ids: list[int] = field(default_factory=list)
    short_edge: int = 800
    long_edge: int = 1333
    size_rule: str = "multiple_of_16"
    metrics: dict[str, float] = field(default_factory=dict)
    task: str = TASK

    def build(self) -> Detector:
        """The detector with fresh weights, in evaluation mode.

        Raises:
            ValueError: There is no such detector or backbone, or it does not take the options.
        """
        detector = create_detector(
            self.detector, self.backbone, num_classes=len(self.class_names), **self.options
        )
        return detector.eval()


def read_detector_card(path: Path) -> DetectorCard:
    """The card of a safetensors file with a detector.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a safetensors file, without a card, or with another kind of model.
    """
    return read_card_of(DetectorCard, path, task=TASK, what="detector")


def load_detector(path: Path) -> tuple[Detector, DetectorCard]:
    """The detector of a model file, or of a run directory's best.safetensors, for evaluation.

    Args:
        path: The file or the directory.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a detector's file, or its weights do not fit its card.
    """
    path = model_file(path)
    card = read_detector_card(path)
    detector = card.build()
    load_built(detector, path)
    return detector, card
