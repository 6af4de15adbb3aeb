"""An image with its boxes and masks, and the steps that move all of them alike.

Legend: N objects, H rows, W columns of the image as it is now, H0 and W0 of the stored one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wavevit.data.resize import Size, nearest_indices, resize_image

# ImageNet's mean colour: about zero once a detector has normalised it, as its own padding is.
PADDING_RGB = (124, 116, 104)


@dataclass(frozen=True)
class MaskView:
    """Masks as seen after any number of steps, none of which touches a pixel.

    Every step is one of rows or one of columns, so two index lists stand for all of them: the
    masks are looked up once, at the end, and only those of objects that are still there.

    Attributes:
        stored: ``(N, H0, W0)`` uint8 of 0 and 1, in the stored image.
        rows: ``(H,)`` the stored row that each row shows, -1 for padding.
        columns: ``(W,)`` likewise.
    """

    stored: NDArray[np.uint8]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @classmethod
    def of(cls, masks: NDArray[np.uint8]) -> "MaskView":
        """The view of masks as they are.

        Args:
            masks: ``(N, H0, W0)`` uint8 of 0 and 1.
        """
        _, H0, W0 = masks.shape
        return cls(masks, np.arange(H0), np.arange(W0))

    def take(self, chosen: NDArray[np.bool_]) -> "MaskView":
        """The view of some of the objects.

        Args:
            chosen: ``(N,)``.
        """
        return self if chosen.all() else replace(self, stored=self.stored[chosen])

    def resized(self, size: Size) -> "MaskView":
        """The view at another size, by the nearest pixel.

        Args:
            size: Rows and columns.
        """
        H, W = size
        rows = self.rows[nearest_indices(len(self.rows), H)]
        return replace(self, rows=rows, columns=self.columns[nearest_indices(len(self.columns), W)])

    def cropped(self, top: int, left: int, size: Size) -> "MaskView":
        """The view of a window.

        Args:
            top: First row.
            left: First column.
            size: Rows and columns of the window.
        """
        H, W = size
        return replace(self, rows=self.rows[top : top + H], columns=self.columns[left : left + W])

    def flipped(self) -> "MaskView":
        """The mirrored view, left to right."""
        return replace(self, columns=self.columns[::-1])

    def padded(self, size: Size) -> "MaskView":
        """The view with empty rows and columns at the bottom and on the right.

        Args:
            size: Rows and columns, none fewer than there are.
        """
        rows, columns = (
            np.pad(known, (0, count - len(known)), constant_values=-1)
            for known, count in zip((self.rows, self.columns), size, strict=True)
        )
        return replace(self, rows=rows, columns=columns)

    def pixels(self) -> Tensor:
        """``(N, H, W)`` uint8 of 0 and 1."""
        shown = np.zeros((len(self.stored), len(self.rows), len(self.columns)), np.uint8)
        has_row = np.any(self.stored, axis=2)[:, self.rows] & (self.rows >= 0)
        has_column = np.any(self.stored, axis=1)[:, self.columns] & (self.columns >= 0)
        for target, mask, in_row, in_column in zip(
            shown, self.stored, has_row, has_column, strict=True
        ):
            # Most objects cover a small part of the image, and the rest is zero already.
            rows, columns = _extent(in_row), _extent(in_column)
            target[rows, columns] = mask.take(self.columns[columns], axis=1)[self.rows[rows]]
        return torch.from_numpy(shown)


def _extent(used: NDArray[np.bool_]) -> slice:
    """From the first to the last True."""
    places = np.flatnonzero(used)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


@dataclass(frozen=True)
class DetectionSample:
    """An image and its objects.

    Attributes:
        image: uint8 ``(3, H, W)``, RGB.
        boxes: float32 ``(N, 4)``, xyxy in pixels of the image.
        labels: int64 ``(N,)``.
        masks: Of the objects, or None where only boxes are wanted.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: MaskView | None = None

    @property
    def size(self) -> Size:
        """Rows and columns of the image."""
        H, W = self.image.shape[1:]
        return H, W

    def target(self) -> dict[str, Tensor]:
        """What a detector is trained with: boxes, labels, and "masks" ``(N, H, W)`` uint8."""
        target = {"boxes": self.boxes, "labels": self.labels}
        if self.masks is not None:
            target["masks"] = self.masks.pixels()
        return target

    def moved(
        self, image: Tensor, boxes: Tensor, move_masks: Callable[[MaskView], MaskView]
    ) -> "DetectionSample":
        """The sample after a geometric step: boxes are clipped, objects without area dropped.

        Args:
            image: uint8 ``(3, H, W)``, the new one.
            boxes: ``(N, 4)`` where the objects are in it, not clipped.
            move_masks: The same step for masks.
        """
        H, W = image.shape[1:]
        boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([W, H, W, H]))
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
        masks = self.masks
        if masks is not None:
            masks = move_masks(masks.take(has_area.numpy()))
        return DetectionSample(image, boxes[has_area], self.labels[has_area], masks)


def resized(sample: DetectionSample, size: Size, *, antialias: bool = False) -> DetectionSample:
    """A sample at another size; the two sides may be scaled differently.

    Args:
        sample: Any.
        size: Rows and columns.
        antialias: As in `resize_image`.
    """
    (H0, W0), (H, W) = sample.size, size
    scales = torch.tensor([W / W0, H / H0, W / W0, H / H0], dtype=torch.float32)
    return sample.moved(
        resize_image(sample.image, size, antialias=antialias),
        sample.boxes * scales,
        lambda masks: masks.resized(size),
    )


def cropped(sample: DetectionSample, top: int, left: int, size: Size) -> DetectionSample:
    """A window of a sample.

    Args:
        sample: Any.
        top: First row.
        left: First column.
        size: Rows and columns of the window, inside of the image.
    """
    H, W = size
    return sample.moved(
        sample.image[:, top : top + H, left : left + W],
        sample.boxes - torch.tensor([left, top, left, top]),
        lambda masks: masks.cropped(top, left, size),
    )


def flipped(sample: DetectionSample) -> DetectionSample:
    """A sample mirrored left to right.

    Args:
        sample: Any.
    """
    x1, y1, x2, y2 = sample.boxes.unbind(1)
    _, W = sample.size
    return sample.moved(
        sample.image.flip(2), torch.stack([W - x2, y1, W - x1, y2], 1), MaskView.flipped
    )


def padded(sample: DetectionSample, size: Size) -> DetectionSample:
    """A sample on a canvas of ImageNet's mean colour, at its top left.

    Args:
        sample: Any.
        size: Rows and columns of the canvas, none fewer than the image has.
    """
    H, W = sample.size
    colour = torch.tensor(PADDING_RGB, dtype=torch.uint8)
    canvas = colour.expand(*size, 3).contiguous().permute(2, 0, 1)
    canvas[:, :H, :W] = sample.image
    return sample.moved(canvas, sample.boxes, lambda masks: masks.padded(size))
