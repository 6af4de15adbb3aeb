"""Detectors on pictures of any size: resized for the network, objects in the picture's own pixels.

Legend: B pictures, N objects of one, H W rows and columns of a picture, h w those of the resized
one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wavevit.detection.card import DetectorCard, load_detector
from wavevit.detection.detector import Detection, Detector
from wavevit.detection.finite_outputs import finite_outputs
from wavevit.detection.object_mask import ObjectMask
from wavevit.models.picture_input import (
    Precision,
    Size,
    check_picture,
    inference,
    input_size,
    resized,
)

MASK_THRESHOLD = 0.5  # least probability of a pixel that belongs to the object


@dataclass(frozen=True)
class FoundObjects:
    """What a detector found in a picture; tensors on the CPU, most certain object first.

    Attributes:
        size: H and W of the picture.
        boxes_xyxy: float32 ``(N, 4)`` in its pixels.
        labels: int64 ``(N,)`` in 0..num_classes-1.
        scores: float32 ``(N,)`` in [0, 1].
        masks: N masks, or None of a detector without masks.
        is_finite: False where a layer gave NaN or infinity: then nothing is known.
    """

    size: Size
    boxes_xyxy: Tensor
    labels: Tensor
    scores: Tensor
    masks: tuple[ObjectMask, ...] | None = None
    is_finite: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "FoundObjects":
        """Some of the objects.

        Args:
            indices: int64, of the objects in the wanted order.
        """
        masks = self.masks
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[indices],
            labels=self.labels[indices],
            scores=self.scores[indices],
            masks=None if masks is None else tuple(masks[i] for i in indices.tolist()),
        )


class PreparedImage(NamedTuple):
    """A picture as the detector takes it.

    Attributes:
        pixels: ``(3, h, w)``, uint8 or float in [0, 1].
        original_size: H and W.
    """

    pixels: Tensor
    original_size: Size


class DetectionPredictor:
    """A detector that takes pictures as they are.

    Calling it with a list of pictures gives what was found in each. `prepare` is the part that can
    run ahead, in other threads.

    Args:
        detector: Moved to the device and put in evaluation mode.
        card: Says how pictures are resized.
        device: Where the network runs.
        precision: Number format inside the network.
        score_threshold: Objects of a lower score are left out. The detector's own threshold holds
            too; it is 0.05 in the published ones.

    Raises:
        ValueError: A threshold outside of [0, 1].
    """

    def __init__(
        self,
        detector: Detector,
        card: DetectorCard,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        score_threshold: float = 0.0,
    ) -> None:
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"a score threshold lies in [0, 1], got {score_threshold}")
        self.device = torch.device(device)
        self.detector = detector.to(self.device).eval()
        self.card = card
        self.precision = precision
        self.score_threshold = score_threshold

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        score_threshold: float = 0.0,
    ) -> "DetectionPredictor":
        """The predictor of a model file or of a run directory.

        Args:
            checkpoint: Model file, or run directory with a best.safetensors.
            device: As in the class.
            precision: As in the class.
            score_threshold: As in the class.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a detector's file, or a threshold outside of [0, 1].
        """
        detector, card = load_detector(Path(checkpoint))
        return cls(
            detector, card, device=device, precision=precision, score_threshold=score_threshold
        )

    def __call__(self, images: Sequence[Tensor]) -> list[FoundObjects]:
        """What is in each picture.

        Args:
            images: ``(3, H, W)`` RGB, uint8 or float in [0, 1], of any sizes.

        Raises:
            ValueError: Not such pictures.
        """
        return self.find([self.prepare(image) for image in images])

    def prepare(self, image: Tensor) -> PreparedImage:
        """A picture at the size that the network takes; on the CPU, from any thread.

        Args:
            image: ``(3, H, W)`` RGB, uint8 or float in [0, 1].

        Raises:
            ValueError: Not such a picture.
        """
        check_picture(image)
        size = image.shape[1], image.shape[2]
        card = self.card
        view_size = input_size(size, card.short_edge, card.long_edge, card.size_rule)
        return PreparedImage(resized(image, view_size), size)

    def find(self, prepared: Sequence[PreparedImage]) -> list[FoundObjects]:
        """What is in each prepared picture, in one pass of the network.

        Args:
            prepared: At least one.
        """
        detections, is_finite = self.detect([image.pixels for image in prepared])
        return [
            self._restored(detection, image, finite)
            for detection, image, finite in zip(detections, prepared, is_finite, strict=True)
        ]

    def detect(self, images: Sequence[Tensor]) -> tuple[list[Detection], list[bool]]:
        """What the detector says of pictures of its size, and whether all in it was finite.

        The kernels are the same at every call: no benchmarking, no TF32, no non-deterministic ones.

        Args:
            images: ``(3, h, w)``, uint8 or float in [0, 1], on any device.
        """
        moved = [_to_unit_range(image.to(self.device, non_blocking=True)) for image in images]
        with inference(self.device, self.precision), finite_outputs(self.detector) as watch:
            detections: list[Detection] = self.detector(moved)
        return detections, watch.per_image()

    def _restored(
        self, detection: Detection, image: PreparedImage, is_finite: bool
    ) -> FoundObjects:
        """The objects above the threshold, in the pixels of the picture."""
        size = image.pixels.shape[-2], image.pixels.shape[-1]
        H, W = image.original_size
        limits = torch.tensor([W, H, W, H], dtype=torch.float32)
        scales = limits / torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
        boxes = detection["boxes"].float().cpu() * scales
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        # Of a box beside the picture, as Sparse R-CNN may give one, nothing is left. Evaluation
        # keeps it: there it counts as a wrong detection, as officially. A NaN score of a network
        # that gave some is not above any threshold.
        is_visible = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        is_sure = (detection["scores"] >= self.score_threshold).cpu()
        chosen = (is_visible & is_sure).nonzero().flatten()
        boxes = boxes[chosen]
        masks = None
        if "masks" in detection:
            masks = tuple(
                _restored_mask(detection["masks"][i], box, image.original_size)
                for i, box in zip(chosen.tolist(), boxes.tolist(), strict=True)
            )
        return FoundObjects(
            image.original_size,
            boxes,
            detection["labels"].cpu()[chosen],
            detection["scores"].cpu()[chosen].float(),
            masks,
            is_finite,
        )


def _to_unit_range(image: Tensor) -> Tensor:
    if image.is_floating_point():
        return image.float()
    return image.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _restored_mask(
    probabilities: Tensor, box_xyxy: Sequence[float], original_size: Size
) -> ObjectMask:
    """The mask of a resized picture in the original one: bilinear, as `F.interpolate` does.

    Only where the object can be, which is its box and a little around it.

    Args:
        probabilities: ``(h, w)`` in the resized picture.
        box_xyxy: In the original one.
        original_size: H and W.
    """
    x1, y1, x2, y2 = box_xyxy
    h, w = probabilities.shape
    H, W = original_size
    rows = _window(y1, y2, h, H)
    columns = _window(x1, x2, w, W)
    above, below, down = _neighbours(rows, h, H)
    before, after, right = _neighbours(columns, w, W)
    # Leaves the device as it is, small: most pictures are larger than what the network saw.
    first_row, first_column = int(above[0]), int(before[0])
    part = probabilities[first_row : below[-1] + 1, first_column : after[-1] + 1]
    cells = part.float().cpu().numpy()
    above, below = above - first_row, below - first_row
    before, after = before - first_column, after - first_column
    along = cells[above] * (1 - down)[:, None] + cells[below] * down[:, None]
    values = along[:, before] * (1 - right) + along[:, after] * right
    return ObjectMask.of(values >= MASK_THRESHOLD, int(rows[0]), int(columns[0]))


def _window(start: float, end: float, length: int, original: int) -> NDArray[np.int64]:
    """The pixels of one side, at least one, that an object from `start` to `end` can cover."""
    margin = original / length + 1  # a pixel of the resized picture, which blurs by as much
    first = min(max(math.floor(start - margin), 0), original - 1)
    last = min(max(math.ceil(end + margin), first + 1), original)
    return np.arange(first, last)


def _neighbours(
    pixels: NDArray[np.int64], length: int, original: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The two cells that a pixel lies between, and how far it is from the first to the second."""
    position = ((pixels + 0.5) * np.float32(length / original) - 0.5).clip(min=0)
    first = np.minimum(position.astype(np.int64), length - 1)
    return first, np.minimum(first + 1, length - 1), (position - first).astype(np.float32)
