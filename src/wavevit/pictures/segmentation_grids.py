"""Sheets of label maps: training samples, and predictions beside the truth.

Shape legend: H rows, W columns of a picture, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wavevit.pictures.cells import (
    MARGIN,
    Cell,
    draw_sheet,
    fitted_caption,
    fitted_picture,
    fitted_size,
    sheet_width,
)
from wavevit.pictures.segmentation import (
    IGNORED,
    Labels,
    Palette,
    check_size,
    draw_legend,
    legend_entries,
    paint_hatch,
    paint_labels,
)

_OPACITY = 0.65
_LETTERS = 13  # of the legend
_WRONG = (224, 36, 36)
_STRIPE = 4  # pixels of the hatch


@dataclass(frozen=True)
class SegmentationExample:
    """A picture with its true and its predicted classes.

    Attributes:
        image: The picture.
        truth: (H, W) classes, 255 where a pixel does not count.
        predicted: (H, W) classes.
        name: What the picture is called; shortened where the line below it is too long.
        caption: The rest of that line.
    """

    image: Image.Image
    truth: Labels
    predicted: Labels
    name: str
    caption: str


def draw_segmentation_samples(
    samples: Sequence[tuple[Image.Image, Labels]],
    class_names: Sequence[str],
    palette: Palette,
    path: Path,
    *,
    title: str = "Training samples as the network sees them",
    columns: int = 3,
) -> None:
    """A sheet of pictures, each beside itself with its classes painted over it.

    Args:
        samples: Pictures and their (H, W) classes, at least one; 255 is hatched.
        class_names: K names.
        palette: K colours.
        path: PNG file to write.
        title: Line above.
        columns: Samples side by side.

    Raises:
        ValueError: No samples, or labels that do not fit picture or palette.
        OSError: The file cannot be written.
    """
    if not samples:
        raise ValueError("expected at least one sample to draw")
    cells = [
        Cell([fitted_picture(image), _painted(image, labels, palette)], "")
        for image, labels in samples
    ]
    entries = legend_entries([labels for _, labels in samples], class_names, palette)
    width = sheet_width(2, min(columns, len(cells)))
    footer = draw_legend(entries, width, _LETTERS, margin=MARGIN)
    draw_sheet([(title, cells)], path, columns, footer=footer)


def draw_segmentation_predictions(
    sections: Sequence[tuple[str, Sequence[SegmentationExample]]],
    class_names: Sequence[str],
    palette: Palette,
    path: Path,
) -> None:
    """Rows of picture, truth, prediction, and where they differ, in red.

    What does not count is hatched in the truth and among the mistakes.

    Args:
        sections: Headings with their examples; at least one example in all.
        class_names: K names.
        palette: K colours.
        path: PNG file to write.

    Raises:
        ValueError: No examples, or labels that do not fit picture or palette.
        OSError: The file cannot be written.
    """
    examples = [example for _, section in sections for example in section]
    if not examples:
        raise ValueError("expected at least one example to draw")
    drawn = [
        (
            f"{heading}: picture, truth, prediction, mistakes",
            [
                Cell(
                    _views(example, palette),
                    fitted_caption(example.name, f": {example.caption}", 4),
                )
                for example in section
            ],
        )
        for heading, section in sections
        if section
    ]
    maps = [labels for example in examples for labels in (example.truth, example.predicted)]
    entries = legend_entries(maps, class_names, palette)
    footer = draw_legend(entries, sheet_width(4, 1), _LETTERS, margin=MARGIN)
    draw_sheet(drawn, path, 1, footer=footer)


def _views(example: SegmentationExample, palette: Palette) -> list[Image.Image]:
    return [
        fitted_picture(example.image),
        _painted(example.image, example.truth, palette),
        _painted(example.image, example.predicted, palette),
        _mistakes(example),
    ]


def _painted(image: Image.Image, labels: Labels, palette: Palette) -> Image.Image:
    check_size(image, labels)
    small = fitted_picture(image)
    return paint_labels(small, _fitted_labels(labels), palette, opacity=_OPACITY)


def _mistakes(example: SegmentationExample) -> Image.Image:
    """The picture, pale and grey, with what is wrong in red and what does not count hatched."""
    truth, predicted = _fitted_labels(example.truth), _fitted_labels(example.predicted)
    grey = np.asarray(fitted_picture(example.image).convert("L"), np.float64)
    pixels: NDArray[np.uint8] = np.rint(120 + 0.5 * grey)[..., None].repeat(3, 2).astype(np.uint8)
    ignored = truth == IGNORED
    wrong = (truth != predicted) & ~ignored
    shade = 0.55 + 0.45 * grey[wrong, None] / 255  # what is there can still be made out
    pixels[wrong] = np.rint(np.array(_WRONG) * shade).astype(np.uint8)
    paint_hatch(pixels, ignored, _STRIPE)
    return Image.fromarray(pixels)


def _fitted_labels(labels: Labels) -> Labels:
    """The labels at the size of `fitted_picture`: of each pixel, that at its centre."""
    H, W = labels.shape
    width, height = fitted_size(W, H)
    rows = ((np.arange(height) + 0.5) * H / height).astype(int)
    columns = ((np.arange(width) + 0.5) * W / width).astype(int)
    fitted: Labels = labels[rows[:, None], columns]
    return fitted
