"""Which validation images of a segmenter are worth a look.

Shape legend: H rows, W columns.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wavevit.data.segmentation.dataset import SegmentationSource
from wavevit.metrics.segmentation import SegmentationRows
from wavevit.pictures.segmentation_grids import SegmentationExample
from wavevit.training.detection_examples import to_picture

_EXAMPLES = 6  # with the lowest IoU, and of the others, each


def choose_segmentation_examples(
    dataset: SegmentationSource, rows: SegmentationRows, predict: Callable[[Tensor], Tensor]
) -> list[tuple[str, list[SegmentationExample]]]:
    """Images with the lowest IoU, and others spread over the data.

    Args:
        dataset: The validation images.
        rows: What was measured of them.
        predict: Labels uint8 ``(H, W)`` of an image, uint8 ``(3, H, W)``; on the CPU.

    Returns:
        Headings and examples.
    """
    counts = np.flatnonzero(rows.num_pixels > 0)
    hardest = counts[np.argsort(rows.mean_iou[counts], kind="stable")][:_EXAMPLES]
    others = np.setdiff1d(np.arange(len(rows)), hardest)
    places = np.linspace(0, len(others) - 1, min(_EXAMPLES, len(others))).round().astype(int)
    index_of = {name: index for index, name in enumerate(dataset.sample_ids())}

    def example(number: int) -> SegmentationExample:
        name = rows.sample_ids[number]
        sample = dataset.load(index_of[name])
        return SegmentationExample(
            to_picture(sample.image),
            sample.labels.numpy(),
            predict(sample.image).numpy(),
            name,
            _caption(rows, number),
        )

    return [
        ("Validation images with the lowest IoU", [example(int(i)) for i in hardest]),
        ("Others, spread over the data", [example(int(i)) for i in others[places]]),
    ]


def _caption(rows: SegmentationRows, number: int) -> str:
    if not rows.num_pixels[number]:
        return "no pixel counts"
    right = rows.num_right[number] / rows.num_pixels[number]
    return f"mean IoU {rows.mean_iou[number]:.1%}, {right:.1%} of the pixels right"


def weakest_classes(iou: NDArray[np.float64], count: int) -> list[int]:
    """Classes with the lowest IoU, those without one left out.

    Args:
        iou: (K,) NaN for classes that are nowhere.
        count: How many at most.
    """
    order = np.argsort(iou, kind="stable")[:count]  # NaN comes last
    return [int(i) for i in order if not np.isnan(iou[i])]
