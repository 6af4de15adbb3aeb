"""Image transforms of training and evaluation: timm's, with our names.

An image is a PIL picture in RGB; a transformed one is a float32 tensor ``(3, H, W)``, normalised.
"""

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize as timm_posterize
from torch import Tensor
from torchvision.transforms import Compose, Normalize, ToTensor

from wavevit.data.geometry import Trace, View, followed, policy_operations

MAX_ASPECT = 16

Transform = Callable[[Image.Image], Tensor]


def eval_transform(
    image_size: tuple[int, int],
    *,
    crop_pct: float,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Transform:
    """Resize of the short side to ``image_size / crop_pct``, centre crop, normalisation.

    Args:
        image_size: Rows and columns of the result, pixels.
        crop_pct: Centre crop over resized side, in (0, 1].
        interpolation: "bicubic" or "bilinear".
        mean: Per channel, of values in [0, 1].
        std: Per channel, of values in [0, 1].
    """
    prepare = create_transform(
        (3, *image_size),
        is_training=False,
        crop_pct=crop_pct,
        interpolation=interpolation,
        mean=tuple(mean),
        std=tuple(std),
    )
    transform: Transform = Compose([_without_far_ends, *prepare.transforms])
    return transform


def eval_view(
    size: tuple[int, int], image_size: tuple[int, int], *, crop_pct: float
) -> tuple[float, float, float, float]:
    """Which part of a picture `eval_transform` shows: left, top, right, bottom in its pixels.

    Args:
        size: Width and height of the picture.
        image_size: As of `eval_transform`: rows, columns.
        crop_pct: As of `eval_transform`.
    """
    width, height = size
    rows, columns = image_size
    scale = min(height / math.floor(rows / crop_pct), width / math.floor(columns / crop_pct))
    seen_width, seen_height = min(columns * scale, width), min(rows * scale, height)
    left, top = (width - seen_width) / 2, (height - seen_height) / 2
    return left, top, left + seen_width, top + seen_height


def _without_far_ends(image: Image.Image) -> Image.Image:
    """The middle of an image longer than 16 times its short side.

    The centre crop throws its ends away anyhow, but only after they have been enlarged with the
    rest: a strip of 65,000 x 1 pixels would take gigabytes.
    """
    width, height = image.size
    limit = MAX_ASPECT * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
    return image.crop((left, top, left + min(width, limit), top + min(height, limit)))


def train_transform(
    image_size: tuple[int, int],
    *,
    crop_scale: tuple[float, float],
    crop_ratio: tuple[float, float],
    hflip: float,
    vflip: float,
    rand_augment: str | None,
    color_jitter: float | None,
    random_erasing: float,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> Transform:
    """Random resized crop, flips, RandAugment or colour jitter, normalisation, random erasing.

    Draws from the global generators of ``random``, numpy and torch; the data set seeds them per
    sample. `TracedTransform` makes it tell which part of the image came out, too.

    Args:
        image_size: Rows and columns of the result, pixels.
        crop_scale: Range of the crop's area over the image's area.
        crop_ratio: Range of the crop's width over its height.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        rand_augment: timm's policy text such as "rand-m9-mstd0.5-inc1", or None.
        color_jitter: Strength of brightness, contrast and saturation jitter, or None; not used
            together with ``rand_augment``.
        random_erasing: Probability of erasing a rectangle, with noise per pixel.
        interpolation: "bicubic", "bilinear" or "random" (one of both per image).
        mean: Per channel, of values in [0, 1].
        std: Per channel, of values in [0, 1].

    Raises:
        ValueError: A RandAugment policy that timm does not know.
    """
    try:
        transform: Transform = create_transform(
            (3, *image_size),
            is_training=True,
            scale=crop_scale,
            ratio=crop_ratio,
            hflip=hflip,
            vflip=vflip,
            auto_augment=rand_augment,
            color_jitter=None if rand_augment else color_jitter,
            re_prob=random_erasing,
            re_mode="pixel",
            interpolation=interpolation,
            mean=tuple(mean),
            std=tuple(std),
        )
    except (AssertionError, KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"rand_augment must be a policy of timm such as 'rand-m9-mstd0.5-inc1', got "
            f"{rand_augment!r}"
        ) from error
    _mend_posterize(transform)
    _join_last_steps(transform)
    return transform


class TracedTransform:
    """A training transform that also says which part of the image its result shows.

    It draws the same random numbers as the transform it is made from, and gives the same tensor,
    bit for bit. One call at a time: threads need copies.

    Args:
        transform: What `train_transform` returned; it is copied.

    Raises:
        ValueError: The result is no single affine view of the image, as with AugMix.
    """

    def __init__(self, transform: Transform) -> None:
        steps = copy.deepcopy(getattr(transform, "transforms", [transform]))
        self._trace = Trace()
        self._steps = [followed(step, self._trace) for step in steps]

    def __call__(self, image: Image.Image) -> tuple[Tensor, View]:
        """The augmented image, and what it shows of the image.

        Args:
            image: RGB picture.

        Returns:
            The tensor ``(3, H, W)``, and its way back to the image.
        """
        self._trace.steps.clear()
        result: Any = image
        for step in self._steps:
            result = step(result)
        H, W = result.shape[-2:]
        return result, self._trace.view((W, H))


def _join_last_steps(transform: Transform) -> None:
    """Makes one step of the two that turn a picture into a normalised tensor."""
    steps: list[Any] = getattr(transform, "transforms", [])
    for place, (step, following) in enumerate(itertools.pairwise(steps)):
        if isinstance(step, ToTensor) and isinstance(following, Normalize):
            steps[place : place + 2] = [_ToNormalizedTensor(following)]
            return


class _ToNormalizedTensor(Normalize):
    """torchvision's ``ToTensor`` and then ``Normalize``: the same bits, in half of their time."""

    def __init__(self, step: Normalize) -> None:
        mean, std = (torch.as_tensor(x, dtype=torch.float32) for x in (step.mean, step.std))
        super().__init__(mean.view(-1, 1, 1), std.view(-1, 1, 1))

    def forward(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)


def _mend_posterize(transform: Transform) -> None:
    """Lets timm's policies posterize to 0 bits, which Pillow 13 refuses: black, as ever before."""
    for step in getattr(transform, "transforms", []):
        for operation in policy_operations(step):
            if operation.aug_fn is timm_posterize:
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: object) -> Image.Image:
    if bits < 1:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = timm_posterize(image, bits, **options)
    return posterized
