"""Random transforms of detection and the published recipes made of them.

A transform takes and returns a `DetectionSample`. Those with chance in them draw from the global
generators of ``random`` and torch, which the loader seeds per sample: so a sample is the same for
any number of workers and after any interruption.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from torchvision.transforms import Compose
from torchvision.transforms.v2 import ColorJitter

from wavevit.data.detection.resize import SIZE_RULES, Size, SizeRule
from wavevit.data.detection.sample import DetectionSample, cropped, flipped, padded, resized

Recipe = Literal["single_scale", "multi_scale", "large_scale_jitter"]

DetectionTransform = Callable[[DetectionSample], DetectionSample]


class Resize:
    """Resizes to a short edge drawn from a list, unless the long one would get too long.

    Args:
        short_edges: To draw from, pixels; one of them is no draw.
        long_edge: Limit of the longer side, pixels.
        rule: "multiple_of_16" is the official one, "keep_ratio" the plain one.
        antialias: Whether shrinking averages over all pixels; officially it does not.

    Raises:
        ValueError: No short edge, an edge that is not positive, a short one longer than the long
            one, or no such rule.
    """

    def __init__(
        self,
        short_edges: Sequence[int],
        long_edge: int,
        *,
        rule: SizeRule = "multiple_of_16",
        antialias: bool = False,
    ) -> None:
        if not short_edges or not 1 <= min(short_edges) <= max(short_edges) <= long_edge:
            raise ValueError(
                "expected short edges of at least one pixel and no longer than the long edge, got "
                f"{list(short_edges)} and {long_edge}"
            )
        if rule not in SIZE_RULES:
            raise ValueError(f"expected a size rule of {', '.join(SIZE_RULES)}; got {rule!r}")
        self.short_edges = list(short_edges)
        self.long_edge = long_edge
        self.antialias = antialias
        self._size = SIZE_RULES[rule]

    def __call__(self, sample: DetectionSample) -> DetectionSample:
        short_edge = random.choice(self.short_edges)
        size = self._size(sample.size, short_edge, self.long_edge)
        return resized(sample, size, antialias=self.antialias)


class RandomCrop:
    """A window of random size at a random place (DETR's); it may hold no object at all.

    Args:
        sizes: Least and largest side, pixels; both sides are drawn from it, independently. An
            image shorter than that is left as long as it is.

    Raises:
        ValueError: No such range.
    """

    def __init__(self, sizes: tuple[int, int] = (384, 600)) -> None:
        if not 1 <= sizes[0] <= sizes[1]:
            raise ValueError(f"expected a crop's least and largest side in pixels, got {sizes}")
        self.sizes = sizes

    def __call__(self, sample: DetectionSample) -> DetectionSample:
        smallest, largest = self.sizes
        H, W = (random.randint(min(side, smallest), min(side, largest)) for side in sample.size)
        top, left = (
            random.randint(0, have - take) for have, take in zip(sample.size, (H, W), strict=True)
        )
        return cropped(sample, top, left, (H, W))


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

    def __call__(self, sample: DetectionSample) -> DetectionSample:
        return flipped(sample) if random.random() < self.probability else sample


class OneOf:
    """Applies one of several transforms, each as likely as the others.

    Args:
        *transforms: At least one.
    """

    def __init__(self, *transforms: DetectionTransform) -> None:
        self.transforms = transforms

    def __call__(self, sample: DetectionSample) -> DetectionSample:
        return random.choice(self.transforms)(sample)


class LargeScaleJitter:
    """Scales by a random factor, then crops or pads to a fixed canvas (Ghiasi et al. 2021).

    Args:
        size: Rows and columns of the canvas.
        scales: Range of the factor; at 1 the image just fits on the canvas.
        antialias: Whether shrinking averages over all pixels. At a tenth of the size little is
            left of an image otherwise.

    Raises:
        ValueError: No such canvas or range.
    """

    def __init__(
        self,
        size: Size = (1024, 1024),
        scales: tuple[float, float] = (0.1, 2.0),
        *,
        antialias: bool = True,
    ) -> None:
        if min(size) < 1 or not 0 < scales[0] <= scales[1]:
            raise ValueError(
                f"expected a canvas in pixels and a range of positive factors, got {size} and "
                f"{scales}"
            )
        self.size = size
        self.scales = scales
        self.antialias = antialias

    def __call__(self, sample: DetectionSample) -> DetectionSample:
        scale = random.uniform(*self.scales)
        (H0, W0), (canvas_height, canvas_width) = sample.size, self.size
        factor = min(canvas_height * scale / H0, canvas_width * scale / W0)
        enlarged = max(round(H0 * factor), 1), max(round(W0 * factor), 1)
        sample = resized(sample, enlarged, antialias=self.antialias)
        H, W = (min(side, limit) for side, limit in zip(enlarged, self.size, strict=True))
        top, left = random.randint(0, enlarged[0] - H), random.randint(0, enlarged[1] - W)
        return padded(cropped(sample, top, left, (H, W)), self.size)


class PhotometricJitter:
    """Changes brightness, contrast and saturation by random factors, in a random order.

    Args:
        strength: Factors lie in [1 - strength, 1 + strength]; in [0, 1].

    Raises:
        ValueError: A strength out of range.
    """

    def __init__(self, strength: float) -> None:
        if not 0 <= strength <= 1:
            raise ValueError(f"expected a strength in [0, 1], got {strength}")
        self._jitter = ColorJitter(strength, strength, strength)

    def __call__(self, sample: DetectionSample) -> DetectionSample:
        return replace(sample, image=self._jitter(sample.image))


def detection_train_transform(
    recipe: Recipe,
    *,
    short_edges: Sequence[int],
    long_edge: int,
    size_rule: SizeRule = "multiple_of_16",
    hflip: float = 0.5,
    color_jitter: float = 0.0,
    short_edges_before_crop: Sequence[int] = (400, 500, 600),
    crop_sizes: tuple[int, int] = (384, 600),
    jitter_canvas: Size = (1024, 1024),
    jitter_scales: tuple[float, float] = (0.1, 2.0),
) -> DetectionTransform:
    """The training transform of a published recipe.

    * "single_scale": resize, flip. Officially to (800, 1333): RetinaNet and Mask R-CNN.
    * "multi_scale": flip; then either resize, or resize, crop and resize again (Carion et al. 2020,
      appendix A.4). Officially to short edges of 480, 512, ..., 800: the other four detectors.
    * "large_scale_jitter": flip, `LargeScaleJitter`. Edges and size rule have no effect.

    Args:
        recipe: One of these.
        short_edges: To draw from, pixels.
        long_edge: Limit of the longer side, pixels.
        size_rule: How edges make a size; the official one by default.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of brightness, contrast and saturation jitter in [0, 1]; officially
            there is none.
        short_edges_before_crop: To draw from before a crop, pixels; for "multi_scale".
        crop_sizes: Least and largest side of a crop, pixels; for "multi_scale".
        jitter_canvas: Rows and columns of the result; for "large_scale_jitter".
        jitter_scales: Range of the factor; for "large_scale_jitter".

    Raises:
        ValueError: A number out of range, or no such recipe or rule.
    """
    if recipe not in get_args(Recipe):
        raise ValueError(f"expected a recipe of {', '.join(get_args(Recipe))}; got {recipe!r}")
    resize = Resize(short_edges, long_edge, rule=size_rule)
    flip = HorizontalFlip(hflip)
    steps: list[DetectionTransform]
    if recipe == "single_scale":
        steps = [resize, flip]
    elif recipe == "multi_scale":
        before = Resize(short_edges_before_crop, long_edge, rule=size_rule)
        steps = [flip, OneOf(resize, Compose([before, RandomCrop(crop_sizes), resize]))]
    else:
        steps = [flip, LargeScaleJitter(jitter_canvas, jitter_scales)]
    if color_jitter:
        steps.insert(0, PhotometricJitter(color_jitter))
    transform: DetectionTransform = Compose(steps)
    return transform


def detection_eval_transform(
    *, short_edge: int = 800, long_edge: int = 1333, size_rule: SizeRule = "multiple_of_16"
) -> DetectionTransform:
    """The resize that detectors are evaluated at; `restore_boxes` and `restore_masks` undo it.

    Args:
        short_edge: Limit of the shorter side, pixels.
        long_edge: Limit of the longer side, pixels.
        size_rule: How edges make a size; the official one by default.

    Raises:
        ValueError: An edge out of range, or no such rule.
    """
    return Resize([short_edge], long_edge, rule=size_rule)
