"""What one network sees in one picture, as the page shows it.

Shape legend: H rows and W columns of the picture, K classes, N objects.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from wavevit.data.transforms import Transform
from wavevit.detection.inference import DetectionPredictor, FoundObjects
from wavevit.metrics.classification import first_classes
from wavevit.models.card import ModelCard
from wavevit.pictures.annotate import font_size
from wavevit.pictures.detection import DrawnObjects, class_color, draw_objects
from wavevit.pictures.mask_painting import PaintedMask, frame_width, paint_masks
from wavevit.pictures.segmentation import paint_labels
from wavevit.segmentation.inference import SegmentationPredictor

_MOST_OBJECTS = 100  # drawn and listed


@dataclass(frozen=True)
class Wishes:
    """What a user may choose.

    Attributes:
        topk: Classes that a classifier names.
        score_threshold: Objects of a lower score are left out, in [0, 1].
        opacity: Of a segmenter's colours over the picture, in [0, 1].
    """

    topk: int = 5
    score_threshold: float = 0.3
    opacity: float = 0.55


@dataclass(frozen=True)
class Row:
    """A class or an object that was seen.

    Attributes:
        name: Of its class.
        share: Probability, score or share of the pixels, in [0, 1].
        color: Red, green and blue in 0..255; None where colours mean nothing.
        note: What else is known of it.
    """

    name: str
    share: float
    color: tuple[int, ...] | None = None
    note: str = ""


@dataclass(frozen=True)
class Look:
    """What was seen.

    Attributes:
        rows: Most certain, or largest, first.
        picture: The picture with it drawn in; None of a classifier.
        summary: All of it in a line.
    """

    rows: tuple[Row, ...]
    picture: Image.Image | None
    summary: str


class Looker(Protocol):
    """A network that can be asked."""

    @property
    def task(self) -> str:
        """What it is for."""
        ...

    @property
    def class_names(self) -> list[str]:
        """Of its classes."""
        ...

    def look(self, picture: Image.Image, wishes: Wishes) -> Look:
        """What it sees.

        Args:
            picture: RGB.
            wishes: Of the user.

        Raises:
            ValueError: The network gave NaN or infinity.
        """
        ...


class Classifier(Protocol):
    """A classifier ready to run, as the command line loads it."""

    @property
    def model(self) -> nn.Module:
        """The network in evaluation mode."""
        ...

    @property
    def card(self) -> ModelCard:
        """What it is."""
        ...

    @property
    def num_classes(self) -> int:
        """K."""
        ...

    def transform(self) -> Transform:
        """RGB picture to its input."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """Float32 logits (B, K) on the CPU of normalised images."""
        ...


class ClassLooker:
    """Names the most probable classes of a picture.

    Args:
        classifier: Loaded.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.task = "classification"
        self.classifier = classifier
        names = classifier.card.class_names
        self.class_names = list(names) or [f"class {i}" for i in range(classifier.num_classes)]
        self._transform = classifier.transform()

    def input(self, picture: Image.Image) -> Tensor:
        """The picture as the network takes it: normalised, float32 (1, 3, h, w).

        Args:
            picture: RGB.
        """
        return self._transform(picture)[None]

    def look(self, picture: Image.Image, wishes: Wishes) -> Look:
        """The most probable classes.

        Args:
            picture: RGB.
            wishes: Their number.

        Raises:
            ValueError: The network gave NaN or infinity.
        """
        probabilities = self.classifier.logits(self.input(picture)).double().softmax(1).numpy()
        if not np.isfinite(probabilities).all():
            raise _not_finite()
        count = min(max(wishes.topk, 1), len(self.class_names))
        rows = tuple(
            Row(self.class_names[index], float(probabilities[0, index]))
            for index in first_classes(probabilities, count)[0].tolist()
        )
        return Look(rows, None, f"{rows[0].name} ({rows[0].share:.1%})")


class ObjectLooker:
    """Draws boxes, and masks where the detector has them.

    Args:
        predictor: Loaded, with a score threshold of 0.
    """

    def __init__(self, predictor: DetectionPredictor) -> None:
        self.task = "detection"
        self.predictor = predictor
        self.class_names = list(predictor.card.class_names)

    def look(self, picture: Image.Image, wishes: Wishes) -> Look:
        """The objects of at least the wished score.

        Args:
            picture: RGB.
            wishes: The least score.

        Raises:
            ValueError: The network gave NaN or infinity.
        """
        found = self.predictor([pixels_of(picture)])[0]
        if not found.is_finite:
            raise _not_finite()
        sure = (found.scores >= wishes.score_threshold).nonzero().flatten()
        shown = found.take(sure[:_MOST_OBJECTS])
        rows = tuple(
            Row(
                self.class_names[label],
                score,
                self._color(number, label),
                f"{box[2] - box[0]:.0f} x {box[3] - box[1]:.0f} px at {box[0]:.0f}, {box[1]:.0f}",
            )
            for number, (label, score, box) in enumerate(
                zip(
                    shown.labels.tolist(),
                    shown.scores.tolist(),
                    shown.boxes_xyxy.tolist(),
                    strict=True,
                )
            )
        )
        count = "1 object" if len(sure) == 1 else f"{len(sure) or 'no'} objects"
        more = f", the first {_MOST_OBJECTS} shown" if len(sure) > _MOST_OBJECTS else ""
        summary = f"{count} with a score of at least {wishes.score_threshold:.2f}{more}"
        return Look(rows, self._drawn(picture, shown), summary)

    def _color(self, number: int, label: int) -> tuple[int, int, int]:
        # As `draw_objects` chooses: of one class, every object has its own.
        return class_color(number if len(self.class_names) == 1 else label)

    def _drawn(self, picture: Image.Image, found: FoundObjects) -> Image.Image:
        letters = font_size(picture.width, picture.height)
        if found.masks is not None:
            # As the command that predicts does it, which has no picture limit to rely on.
            parts = [
                PaintedMask(mask.top, mask.left, mask.pixels(), self._color(number, label))
                for number, (mask, label) in enumerate(
                    zip(found.masks, found.labels.tolist(), strict=True)
                )
            ]
            parts.sort(key=lambda part: -int(part.pixels.sum()))  # small ones on top
            picture = paint_masks(picture, parts, outline=frame_width(letters) // 2)
        drawn = DrawnObjects(
            found.boxes_xyxy.numpy(), found.labels.numpy(), self.class_names, found.scores.numpy()
        )
        return draw_objects(picture, drawn, letters=letters)


class LabelLooker:
    """Paints the classes of all pixels over a picture.

    Args:
        predictor: Loaded; its card has a colour for each class.
    """

    def __init__(self, predictor: SegmentationPredictor) -> None:
        self.task = "segmentation"
        self.predictor = predictor
        self.class_names = list(predictor.card.class_names)

    def look(self, picture: Image.Image, wishes: Wishes) -> Look:
        """The classes with their shares of the pixels, largest first.

        Args:
            picture: RGB.
            wishes: The opacity.

        Raises:
            ValueError: The network gave NaN or infinity.
        """
        found = self.predictor([pixels_of(picture)])[0]
        if not found.is_finite:
            raise _not_finite()
        labels = found.labels.numpy()
        palette = self.predictor.card.palette
        counts = np.bincount(labels.ravel(), minlength=len(self.class_names))
        rows = tuple(
            Row(self.class_names[c], float(counts[c] / labels.size), tuple(palette[c]))
            for c in np.argsort(-counts, kind="stable").tolist()
            if counts[c]
        )
        painted = paint_labels(picture, labels, palette, opacity=wishes.opacity)
        classes = "1 class" if len(rows) == 1 else f"{len(rows)} classes"
        return Look(rows, painted, f"{classes}, most of it {rows[0].name} ({rows[0].share:.1%})")


def pixels_of(picture: Image.Image) -> Tensor:
    """A picture as uint8 (3, H, W).

    Args:
        picture: RGB.
    """
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _not_finite() -> ValueError:
    return ValueError(
        "The network's output is NaN or infinite; start the server with --precision fp32."
    )
