"""An image with a label per pixel, and the steps that move both alike.

Legend: H rows, W columns of the image as it is now.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wavevit.data.resize import Size, nearest_indices, resize_image

IGNORED = 255
"""Label of pixels that nothing is learned from and that no metric counts."""

MAX_CLASSES = 255
"""Labels are uint8, and one of them means nothing."""


@dataclass(frozen=True)
class SegmentationSample:
    """An image and the class of each pixel.

    Attributes:
        image: uint8 ``(3, H, W)``, RGB.
        labels: uint8 ``(H, W)``, index of the class, 255 for pixels to be ignored.
    """

    image: Tensor
    labels: Tensor

    @property
    def size(self) -> Size:
        """Rows and columns."""
        H, W = self.image.shape[1:]
        return H, W


def resized(sample: SegmentationSample, size: Size) -> SegmentationSample:
    """A sample at another size: the image bilinear, the labels by the nearest pixel.

    Args:
        sample: Any.
        size: Rows and columns; the two sides may be scaled differently.
    """
    (H0, W0), (H, W) = sample.size, size
    rows, columns = nearest_indices(H0, H), nearest_indices(W0, W)
    # Columns first: the copies of rows are then copies of whole lines.
    labels = sample.labels.numpy().take(columns, axis=1).take(rows, axis=0)
    return SegmentationSample(resize_image(sample.image, size), torch.from_numpy(labels))


def cropped(sample: SegmentationSample, top: int, left: int, size: Size) -> SegmentationSample:
    """A window of a sample, in its memory.

    Args:
        sample: Any.
        top: First row.
        left: First column.
        size: Rows and columns of the window, inside of the image.
    """
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    return SegmentationSample(sample.image[:, rows, columns], sample.labels[rows, columns])


def flipped(sample: SegmentationSample) -> SegmentationSample:
    """A sample mirrored left to right.

    Args:
        sample: Any.
    """
    return SegmentationSample(sample.image.flip(2), sample.labels.flip(1))


def padded(
    sample: SegmentationSample, size: Size, colour: tuple[int, int, int]
) -> SegmentationSample:
    """A sample at the top left of a canvas of one colour, whose pixels are ignored.

    Args:
        sample: Any.
        size: Rows and columns of the canvas, none fewer than the image has.
        colour: RGB.
    """
    H, W = sample.size
    if size == (H, W):
        return sample
    image = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).repeat(1, *size)
    labels = torch.full(size, IGNORED, dtype=torch.uint8)
    image[:, :H, :W], labels[:H, :W] = sample.image, sample.labels
    return SegmentationSample(image, labels)
