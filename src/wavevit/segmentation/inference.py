"""Segmenters on pictures of any size: a label for each of the picture's own pixels.

Legend: B pictures or windows of a pass, K classes, H W rows and columns of a picture, h w those of
what the network sees.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavevit.models.picture_input import (
    Precision,
    Size,
    check_picture,
    inference,
    input_size,
    resized,
)
from wavevit.segmentation.card import SegmenterCard, load_segmenter
from wavevit.segmentation.logit_maps import (
    LabelMap,
    LogitMap,
    MirroredLogits,
    WholeLogits,
    labels_of,
)
from wavevit.segmentation.resize import in_full_precision
from wavevit.segmentation.segmenter import MIN_SIDE
from wavevit.segmentation.sliding_window import SlidingLogits, SlidingWindow
from wavevit.segmentation.test_time import TestTimeAugmentation, average_views


@dataclass(frozen=True)
class LabelledPicture:
    """What a segmenter sees in a picture; tensors on the CPU.

    Attributes:
        labels: uint8 ``(H, W)`` in 0..K-1, of the picture's own pixels.
        confidence: float32 ``(H, W)`` probability of the label, in [0, 1], if it was asked for.
        is_finite: False where the network gave NaN or infinity: then nothing is known.
    """

    labels: Tensor
    confidence: Tensor | None = None
    is_finite: bool = True


@dataclass(frozen=True)
class PreparedPicture:
    """A picture as it is looked at.

    Attributes:
        views: ``(3, h, w)`` at each size that it is looked at, uint8 or float in [0, 1].
        original_size: H and W.
    """

    views: tuple[Tensor, ...]
    original_size: Size


class SegmentationPredictor:
    """A segmenter that takes pictures as they are.

    Calling it with a list of pictures gives the labels of each. `prepare` is the part that can run
    ahead, in other threads.

    Pictures are resized by the card's rule and seen as a whole, as in the official evaluation,
    or seen through sliding windows: then memory does not grow with the picture, but for its
    pixels and labels, a byte per channel each.

    Args:
        segmenter: Moved to the device and put in evaluation mode; ``(B, 3, h, w)`` normalised to
            logits ``(B, K, h, w)``.
        card: Says how pictures are resized and normalised.
        device: Where the network runs.
        precision: Number format inside the network.
        sliding: Windows, or None to see pictures as a whole.
        augmentation: Views to be averaged, or None for one. For a picture of many megapixels and
            without windows, the logits of all views are held at the same time: up to 4 GB for 150
            classes in the published size.
        batch_size: Pictures of one size, or windows, in a pass.
        with_confidence: Whether probabilities are wanted too.

    Raises:
        ValueError: A batch size below 1.
    """

    def __init__(
        self,
        segmenter: nn.Module,
        card: SegmenterCard,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        sliding: SlidingWindow | None = None,
        augmentation: TestTimeAugmentation | None = None,
        batch_size: int = 1,
        with_confidence: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"expected a batch of at least 1, got {batch_size}")
        self.device = torch.device(device)
        self.segmenter = segmenter.to(self.device).eval()
        self.card = card
        self.precision = precision
        self.sliding = sliding
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.with_confidence = with_confidence
        self.num_classes = len(card.class_names)
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(-1, 1, 1)
            for values in (card.mean, card.std)
        )

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        sliding: SlidingWindow | None = None,
        augmentation: TestTimeAugmentation | None = None,
        batch_size: int = 1,
        with_confidence: bool = False,
    ) -> "SegmentationPredictor":
        """The predictor of a model file or of a run directory.

        Args:
            checkpoint: Model file, or run directory with a best.safetensors.
            device: As in the class.
            precision: As in the class.
            sliding: As in the class.
            augmentation: As in the class.
            batch_size: As in the class.
            with_confidence: As in the class.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a segmenter's file, or a batch size below 1.
        """
        segmenter, card = load_segmenter(Path(checkpoint))
        return cls(
            segmenter,
            card,
            device=device,
            precision=precision,
            sliding=sliding,
            augmentation=augmentation,
            batch_size=batch_size,
            with_confidence=with_confidence,
        )

    def __call__(self, images: Sequence[Tensor]) -> list[LabelledPicture]:
        """The labels of each picture.

        Args:
            images: ``(3, H, W)`` RGB, uint8 or float in [0, 1], of any sizes.

        Raises:
            ValueError: Not such pictures.
        """
        return self.label([self.prepare(image) for image in images])

    def prepare(self, image: Tensor) -> PreparedPicture:
        """A picture at the sizes that it is looked at; on the CPU, from any thread.

        Args:
            image: ``(3, H, W)`` RGB, uint8 or float in [0, 1].

        Raises:
            ValueError: Not such a picture.
        """
        check_picture(image)
        size = image.shape[1], image.shape[2]
        ratios = (1.0,) if self.augmentation is None else self.augmentation.ratios
        views = tuple(resized(image, self._view_size(size, ratio)) for ratio in ratios)
        return PreparedPicture(views, size)

    def label(self, prepared: Sequence[PreparedPicture]) -> list[LabelledPicture]:
        """The labels of each prepared picture.

        Args:
            prepared: In any number; neighbours that are seen at one size share passes.
        """
        if self.sliding is not None or self.augmentation is not None:
            return [self._label_views(picture) for picture in prepared]
        found = []
        for _, group in groupby(prepared, key=lambda picture: picture.views[0].shape):
            pictures = list(group)
            for start in range(0, len(pictures), self.batch_size):
                found += self._label_whole(pictures[start : start + self.batch_size])
        return found

    def logits(self, images: Tensor) -> tuple[Tensor, list[bool]]:
        """Logits ``(B, K, h, w)`` on the device, in float32 at least, and whether they are finite.

        The kernels are the same at every call: no benchmarking, no TF32, no non-deterministic ones.

        Args:
            images: ``(B, 3, h, w)``, uint8 or float in [0, 1], on any device.
        """
        full = 1 if images.is_floating_point() else 255
        # As `data.segmentation.transforms.normalise` does it, to the bit.
        pixels = images.to(self.device, torch.float32, memory_format=torch.contiguous_format)
        pixels = (pixels - full * self._mean).div_(full * self._std)
        with inference(self.device, self.precision):
            logits = in_full_precision(logits_of_any_size(self.segmenter, pixels))
            # Labels do not tell. The sum is finite where all are, and one of each image is enough.
            is_finite: list[bool] = logits.sum(dim=(1, 2, 3)).isfinite().tolist()
        return logits, is_finite

    def _view_size(self, size: Size, ratio: float) -> Size:
        if self.sliding is not None and not self.sliding.resize:
            return max(round(size[0] * ratio), 1), max(round(size[1] * ratio), 1)
        short, long = (int(edge * ratio) for edge in (self.card.short_edge, self.card.long_edge))
        return input_size(size, short, long, self.card.size_rule)

    def _label_whole(self, pictures: Sequence[PreparedPicture]) -> list[LabelledPicture]:
        """Labels of pictures that are seen at one size, in one pass."""
        logits, is_finite = self.logits(torch.stack([picture.views[0] for picture in pictures]))
        return [
            LabelledPicture(
                *labels_of(
                    WholeLogits(one), picture.original_size, with_confidence=self.with_confidence
                ),
                finite,
            )
            for picture, one, finite in zip(pictures, logits, is_finite, strict=True)
        ]

    def _label_views(self, picture: PreparedPicture) -> LabelledPicture:
        """Labels of a picture seen through windows, in several views, or both."""
        finite: list[bool] = []

        def run(images: Tensor) -> Tensor:
            logits, is_finite = self.logits(images)
            finite.extend(is_finite)
            return logits

        def look(pixels: Tensor) -> LogitMap:
            if self.sliding is None:
                return WholeLogits(run(pixels[None])[0])
            return SlidingLogits(
                pixels,
                run,
                self.num_classes,
                window=self.sliding.window,
                stride=self.sliding.step,
                taper=self.sliding.taper,
                batch_size=self.batch_size,
            )

        found: LabelMap
        if self.augmentation is None:
            found = labels_of(
                look(picture.views[0]),
                picture.original_size,
                with_confidence=self.with_confidence,
            )
        else:
            views: list[Callable[[], LogitMap]] = []
            for pixels in picture.views:
                views.append(partial(look, pixels))
                if self.augmentation.flip:
                    views.append(partial(_look_mirrored, look, pixels))
            found = average_views(
                views,
                self.num_classes,
                picture.original_size,
                with_confidence=self.with_confidence,
            )
        return LabelledPicture(*found, all(finite))


def logits_of_any_size(segmenter: nn.Module, images: Tensor) -> Tensor:
    """Logits ``(B, K, h, w)``, also of images that are smaller than a segmenter takes.

    Args:
        segmenter: In evaluation mode.
        images: Normalised images ``(B, 3, h, w)``.
    """
    h, w = images.shape[2:]
    if min(h, w) < MIN_SIDE:
        # Normalised zeros: the mean colour.
        images = F.pad(images, (0, max(MIN_SIDE - w, 0), 0, max(MIN_SIDE - h, 0)))
    logits: Tensor = segmenter(images)[:, :, :h, :w]
    return logits


def _look_mirrored(look: Callable[[Tensor], LogitMap], pixels: Tensor) -> LogitMap:
    return MirroredLogits(look(pixels.flip(-1)))
