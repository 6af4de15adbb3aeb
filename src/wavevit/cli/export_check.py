"""A model and its export on the same images, as the commands run both.

Legend: B images, H W rows and columns of one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from wavevit.cli import detection_inference, segmentation_inference
from wavevit.cli.image_paths import iter_paths
from wavevit.cli.inference import Classifier, Device, load_classifier
from wavevit.cli.task import task_of
from wavevit.data.images import load_image
from wavevit.detection.inference import DetectionPredictor
from wavevit.export.checking import (
    Comparison,
    compare_int8,
    compare_labels,
    compare_logits,
    compare_objects,
)
from wavevit.export.exporting import AnyCard
from wavevit.export.quantization import CALIBRATION_IMAGES
from wavevit.profiling.timing import Summary, device_name, paired_ratio, time_in_turns
from wavevit.segmentation.inference import SegmentationPredictor

SPEED_ROUNDS = 20


@dataclass(frozen=True)
class Subject:
    """A model of any task, ready to predict.

    Attributes:
        predictor: Of its task.
    """

    predictor: Classifier | DetectionPredictor | SegmentationPredictor

    @property
    def network(self) -> nn.Module:
        """The model itself."""
        if isinstance(self.predictor, Classifier):
            return self.predictor.model
        if isinstance(self.predictor, DetectionPredictor):
            return self.predictor.detector
        return self.predictor.segmenter

    @property
    def card(self) -> AnyCard:
        """How it is rebuilt and fed."""
        return self.predictor.card


def load_subject(
    checkpoint: Path,
    *,
    device: Device = "auto",
    model: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
) -> Subject:
    """A model file, run directory or exported model, ready to predict.

    Args:
        checkpoint: Which.
        device: Where it runs.
        model: timm name of a classifier, for weights that do not say what they are for.
        num_classes: Its classes.
        image_size: Rows and columns of a classifier's input, pixels; None: as it was trained.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A wrong checkpoint, or options that are for classifiers.
    """
    task = "classification" if model is not None else task_of(checkpoint)
    if task == "classification":
        return Subject(
            load_classifier(
                checkpoint,
                device=device,
                precision="fp32",
                model=model,
                num_classes=num_classes,
                image_size=image_size,
            )
        )
    if image_size is not None or num_classes is not None:
        name = "image-size" if image_size is not None else "num-classes"
        raise ValueError(f"--{name} has no meaning for a model for {task}")
    if task == "detection":
        return Subject(
            detection_inference.load_predictor(checkpoint, device=device, precision="fp32")
        )
    if task == "segmentation":
        return Subject(
            segmentation_inference.load_predictor(checkpoint, device=device, precision="fp32")
        )
    raise ValueError(f"expected a classifier, detector or segmenter, got a model for {task}")


def check_readable(images: Sequence[str]) -> None:
    """Raises unless every image can be read.

    Args:
        images: Files, folders or patterns.

    Raises:
        FileNotFoundError: An image is missing.
        ValueError: An image cannot be read.
    """
    for _ in _pixels(images):
        pass


def compare(
    eager: Subject, exported: Subject, images: Sequence[str], *, int8: bool = False
) -> Comparison:
    """How far the predictions for some images are apart.

    Args:
        eager: The model.
        exported: Its export.
        images: Files, folders or patterns.
        int8: Whether the export is one in int8, of a classifier.

    Raises:
        FileNotFoundError: An image is missing.
        ValueError: An image cannot be read.
    """
    ours, theirs = eager.predictor, exported.predictor
    if isinstance(ours, Classifier) and isinstance(theirs, Classifier):
        return _compare_classifiers(ours, theirs, images, int8=int8)
    if isinstance(ours, DetectionPredictor) and isinstance(theirs, DetectionPredictor):
        pairs = [(ours([pixels])[0], theirs([pixels])[0]) for pixels in _pixels(images)]
        limits = _limits(ours.detector)
        return compare_objects([a for a, _ in pairs], [b for _, b in pairs], *limits)
    assert isinstance(ours, SegmentationPredictor)
    assert isinstance(theirs, SegmentationPredictor)
    seen = [
        [each.label([each.prepare(pixels)])[0] for each in (ours, theirs)]
        for pixels in _pixels(images)
    ]
    return compare_labels([a for a, _ in seen], [b for _, b in seen])


def _compare_classifiers(
    ours: Classifier, theirs: Classifier, images: Sequence[str], *, int8: bool
) -> Comparison:
    names = {name: index for index, name in enumerate(ours.card.class_names)}
    transform = ours.transform()
    labels: list[int | None] = []
    logits: list[list[Tensor]] = [[], []]
    for path in iter_paths(images):
        pixels = transform(load_image(path))[None]
        labels.append(names.get(Path(path).absolute().parent.name))
        for each, of_model in zip((ours, theirs), logits, strict=True):
            of_model.append(each.logits(pixels))
    eager, exported = (torch.cat(of_model) for of_model in logits)
    if not int8:
        return compare_logits(eager, exported)
    known = [label for label in labels if label is not None]
    truth = torch.tensor(known) if len(known) == len(labels) else None
    return compare_int8(eager, exported, truth)


def calibration_images(subject: Subject, images: Sequence[str]) -> list[Tensor]:
    """Normalised ``(1, 3, H, W)`` images for int8, spread over all that are named.

    Args:
        subject: A classifier.
        images: Files, folders or patterns.

    Raises:
        ValueError: Not a classifier.
    """
    classifier = subject.predictor
    if not isinstance(classifier, Classifier):
        raise ValueError(f"--int8 is for classifiers, got a model for {subject.card.task}")
    paths = list(iter_paths(images))
    count = min(len(paths), CALIBRATION_IMAGES)
    transform = classifier.transform()
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    return [transform(load_image(path))[None] for path in chosen]


def speed(eager: Subject, exported: Subject) -> str:
    """How long one image takes both classifiers, in turns, as one line.

    Args:
        eager: The model.
        exported: Its export.
    """
    ours, theirs = eager.predictor, exported.predictor
    assert isinstance(ours, Classifier)
    assert isinstance(theirs, Classifier)
    image = torch.zeros(1, 3, *ours.card.image_size)
    calls = {"eager": lambda: ours.logits(image), "exported": lambda: theirs.logits(image)}
    seconds = time_in_turns(calls, rounds=SPEED_ROUNDS, device="cpu")
    before, after = (1e3 * Summary.of(seconds[name]).median for name in calls)
    ratio = paired_ratio(seconds["exported"], seconds["eager"])
    return (
        f"one image: {before:.1f} ms eager, {after:.1f} ms exported, {ratio:.2f} times as long "
        f"({device_name('cpu')}, {SPEED_ROUNDS} rounds in turns)"
    )


def _limits(detector: nn.Module) -> tuple[float, int]:
    """The least score of an object, and the most objects of an image."""
    holder: Any = getattr(detector, "settings", None) or getattr(detector, "postprocess", detector)
    return float(getattr(holder, "score_threshold", 0.0)), int(holder.detections_per_image)


def _pictures(images: Sequence[str]) -> Iterator[Image.Image]:
    for path in iter_paths(images):
        yield load_image(path)


def _pixels(images: Sequence[str]) -> Iterator[Tensor]:
    """Images uint8 ``(3, H, W)``."""
    for picture in _pictures(images):
        yield torch.from_numpy(np.array(picture)).permute(2, 0, 1)
