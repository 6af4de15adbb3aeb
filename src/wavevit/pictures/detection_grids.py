"""Grids of pictures with objects: training samples, and predictions beside the truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from wavevit.pictures.cells import SIDE, Cell, draw_sheet, fitted_caption, fitted_picture
from wavevit.pictures.detection import DrawnObjects, draw_objects

_LETTERS = 11  # of names in a picture


@dataclass(frozen=True)
class DetectionExample:
    """A picture with its objects and those that a detector found.

    Attributes:
        image: The picture.
        truth: What is in it.
        found: What the detector says.
        name: What the picture is called; shortened where the line below it is too long.
        caption: The rest of that line.
    """

    image: Image.Image
    truth: DrawnObjects
    found: DrawnObjects
    name: str
    caption: str


def draw_detection_samples(
    samples: Sequence[tuple[Image.Image, DrawnObjects]],
    path: Path,
    *,
    title: str = "Training samples as the detector sees them",
    columns: int = 5,
) -> None:
    """A grid of pictures with their objects.

    Args:
        samples: At least one.
        path: PNG file to write.
        title: Line above the grid.
        columns: Pictures per row.

    Raises:
        ValueError: No samples.
        OSError: The file cannot be written.
    """
    if not samples:
        raise ValueError("expected at least one sample to draw")
    cells = [Cell([_fitted(image, objects)], "") for image, objects in samples]
    draw_sheet([(title, cells)], path, columns)


def draw_detection_predictions(
    sections: Sequence[tuple[str, Sequence[DetectionExample]]], path: Path, *, columns: int = 2
) -> None:
    """Pairs of pictures: the truth on the left, what was found on the right.

    Args:
        sections: Headings with their examples; at least one example in all.
        path: PNG file to write.
        columns: Pairs per row.

    Raises:
        ValueError: No examples.
        OSError: The file cannot be written.
    """
    if not any(examples for _, examples in sections):
        raise ValueError("expected at least one example to draw")
    drawn = [
        (
            f"{heading}: truth on the left, found on the right",
            [
                Cell(
                    [_fitted(e.image, e.truth), _fitted(e.image, e.found)],
                    fitted_caption(e.name, f": {e.caption}", 2),
                )
                for e in examples
            ],
        )
        for heading, examples in sections
        if examples
    ]
    draw_sheet(drawn, path, columns)


def _fitted(image: Image.Image, objects: DrawnObjects) -> Image.Image:
    """The picture with its objects, its longer side `SIDE` pixels."""
    factor = SIDE / max(image.size)
    small = fitted_picture(image)
    width, height = small.size
    masks = objects.masks
    if masks is not None:
        rows = (np.arange(height) / factor).astype(int).clip(0, masks.shape[1] - 1)
        columns = (np.arange(width) / factor).astype(int).clip(0, masks.shape[2] - 1)
        masks = masks[:, rows[:, None], columns]
    scaled = DrawnObjects(
        objects.boxes_xyxy * factor, objects.labels, objects.class_names, objects.scores, masks
    )
    return draw_objects(small, scaled, letters=_LETTERS)
