"""Random transforms of segmentation and the published recipe made of them.

A transform takes and returns a `SegmentationSample`. Those with chance in them draw from the global
generators of ``random`` and torch, which the loader seeds per sample: so a sample is the same for
any number of workers and after any interruption.

Shape legend: B samples, H rows, W columns.
"""

import random
from collections.abc import Callable, Sequence

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from torch import Tensor
from torchvision.transforms import Compose

from wavevit.data.resize import SIZE_RULES, Size, SizeRule, keep_ratio_size, resize_image
from wavevit.data.segmentation.photometric import PhotometricDistortion
from wavevit.data.segmentation.sample import (
    IGNORED,
    SegmentationSample,
    cropped,
    flipped,
    padded,
    resized,
)

SegmentationTransform = Callable[[SegmentationSample], SegmentationSample]
ImageTransform = Callable[[Tensor], Tensor]

_CROP_DRAWS = 10  # after the first one


class RandomResize:
    """Resizes so that both edges, times one random factor, are kept to; the aspect ratio stays.

    Args:
        short_edge: Limit of the shorter side at factor 1, pixels.
        long_edge: Limit of the longer side at factor 1, pixels.
        scales: Range of the factor.

    Raises:
        ValueError: No such edges or range.
    """

    def __init__(self, short_edge: int, long_edge: int, scales: tuple[float, float]) -> None:
        _check_edges(short_edge, long_edge)
        if not 0 < scales[0] <= scales[1]:
            raise ValueError(f"expected a range of positive factors, got {tuple(scales)}")
        self.short_edge = short_edge
        self.long_edge = long_edge
        self.scales = scales

    def __call__(self, sample: SegmentationSample) -> SegmentationSample:
        factor = random.uniform(*self.scales)
        edges = (max(int(edge * factor), 1) for edge in (self.short_edge, self.long_edge))
        return resized(sample, keep_ratio_size(sample.size, *edges))


class RandomCrop:
    """A window at a random place, drawn again while one class fills too much of it.

    Args:
        size: Rows and columns; a side of the image that is shorter is taken whole.
        max_class_share: A window is drawn again, up to ten times, while a class has this share or
            more of the pixels that are not ignored, or there are none. 1 takes the first one.

    Raises:
        ValueError: No such size or share.
    """

    def __init__(self, size: Size, max_class_share: float = 0.75) -> None:
        _check_crop(size)
        if not 0 < max_class_share <= 1:
            raise ValueError(f"expected a share of pixels in (0, 1], got {max_class_share}")
        self.size = size
        self.max_class_share = max_class_share

    def __call__(self, sample: SegmentationSample) -> SegmentationSample:
        window = self._draw(sample)
        if self.max_class_share < 1:
            for _ in range(_CROP_DRAWS):
                if self._is_varied(window.labels):
                    break
                window = self._draw(sample)
        return window

    def _draw(self, sample: SegmentationSample) -> SegmentationSample:
        H, W = (min(have, want) for have, want in zip(sample.size, self.size, strict=True))
        top, left = (
            random.randint(0, have - take) for have, take in zip(sample.size, (H, W), strict=True)
        )
        return cropped(sample, top, left, (H, W))

    def _is_varied(self, labels: Tensor) -> bool:
        counts = torch.bincount(labels.flatten(), minlength=IGNORED + 1)[:IGNORED]
        return 0 < int(counts.max()) < self.max_class_share * int(counts.sum())


class HorizontalFlip:
    """Mirrors left to right.

    Args:
        probability: Of doing so, in [0, 1].

    Raises:
        ValueError: No probability.
    """

    def __init__(self, probability: float = 0.5) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"expected a probability in [0, 1], got {probability}")
        self.probability = probability

    def __call__(self, sample: SegmentationSample) -> SegmentationSample:
        return flipped(sample) if random.random() < self.probability else sample


class PadTo:
    """Pads at the bottom and on the right; what is added is ignored.

    Args:
        size: Rows and columns of the result, unless the image has more.
        mean: Of the pixels, per channel, in [0, 1]; the colour of the padding, so that it is about
            zero after normalisation.

    Raises:
        ValueError: No such size.
    """

    def __init__(self, size: Size, mean: Sequence[float] = IMAGENET_DEFAULT_MEAN) -> None:
        _check_crop(size)
        self.size = size
        self.colour = padding_colour(mean)

    def __call__(self, sample: SegmentationSample) -> SegmentationSample:
        H, W = (max(have, want) for have, want in zip(sample.size, self.size, strict=True))
        return padded(sample, (H, W), self.colour)


class EvalResize:
    """Resizes an image, and not its labels: predictions go back to the size of the image as stored.

    Args:
        short_edge: Limit of the shorter side, pixels.
        long_edge: Limit of the longer side, pixels.
        rule: "multiple_of_16" is the official one, "keep_ratio" the plain one.

    Raises:
        ValueError: An edge out of range, or no such rule.
    """

    def __init__(self, short_edge: int, long_edge: int, rule: SizeRule = "multiple_of_16") -> None:
        _check_edges(short_edge, long_edge)
        if rule not in SIZE_RULES:
            raise ValueError(f"expected a size rule of {', '.join(SIZE_RULES)}; got {rule!r}")
        self.short_edge = short_edge
        self.long_edge = long_edge
        self.rule: SizeRule = rule

    def __call__(self, image: Tensor) -> Tensor:
        H, W = image.shape[1:]
        size = SIZE_RULES[self.rule]((H, W), self.short_edge, self.long_edge)
        return resize_image(image, size)


def segmentation_train_transform(
    *,
    crop_size: Size = (512, 512),
    short_edge: int = 512,
    long_edge: int = 2048,
    scales: tuple[float, float] = (0.5, 2.0),
    max_class_share: float = 0.75,
    hflip: float = 0.5,
    photometric: bool = True,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
) -> SegmentationTransform:
    """The training transform of the published segmenters; all samples come in one size.

    Random resize, random crop, flip, photometric distortion, padding, in this order.

    Args:
        crop_size: Rows and columns of the result.
        short_edge: Limit of the shorter side at factor 1, pixels.
        long_edge: Limit of the longer side at factor 1, pixels.
        scales: Range of the factor that both edges are multiplied by.
        max_class_share: As in `RandomCrop`.
        hflip: Probability of a horizontal flip.
        photometric: Whether colours are changed.
        mean: Of the network's input, per channel, in [0, 1]; the colour of the padding.

    Raises:
        ValueError: A number out of range.
    """
    steps: list[SegmentationTransform] = [
        RandomResize(short_edge, long_edge, scales),
        RandomCrop(crop_size, max_class_share),
        HorizontalFlip(hflip),
    ]
    if photometric:
        steps.append(PhotometricDistortion())
    transform: SegmentationTransform = Compose([*steps, PadTo(crop_size, mean)])
    return transform


def segmentation_eval_transform(
    *, short_edge: int = 512, long_edge: int = 2048, size_rule: SizeRule = "multiple_of_16"
) -> ImageTransform:
    """The resize that segmenters are evaluated at.

    Args:
        short_edge: Limit of the shorter side, pixels.
        long_edge: Limit of the longer side, pixels.
        size_rule: How edges make a size; the official one by default.

    Returns:
        Takes and returns a uint8 ``(3, H, W)`` image.

    Raises:
        ValueError: An edge out of range, or no such rule.
    """
    return EvalResize(short_edge, long_edge, size_rule)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images as a network takes them.

    Args:
        images: uint8 ``(B, 3, H, W)`` or ``(3, H, W)``, RGB, on any device.
        mean: Per channel, of values in [0, 1].
        std: Per channel, of values in [0, 1].

    Returns:
        float32, contiguous, of the same shape and on the same device.
    """
    values = images.to(torch.float32, memory_format=torch.contiguous_format)
    centre, spread = (
        255 * torch.tensor(list(numbers), dtype=torch.float32, device=images.device).view(3, 1, 1)
        for numbers in (mean, std)
    )
    return values.sub_(centre).div_(spread)


def padding_colour(mean: Sequence[float]) -> tuple[int, int, int]:
    """The levels nearest to a mean colour.

    Args:
        mean: Per channel, in [0, 1].
    """
    red, green, blue = (round(255 * value) for value in mean)
    return red, green, blue


def _check_edges(short_edge: int, long_edge: int) -> None:
    if not 1 <= short_edge <= long_edge:
        raise ValueError(
            "expected a short edge of at least one pixel and no longer than the long edge, got "
            f"{short_edge} and {long_edge}"
        )


def _check_crop(size: Size) -> None:
    if min(size) < 1:
        raise ValueError(f"expected rows and columns in pixels, got {tuple(size)}")
