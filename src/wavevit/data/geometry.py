"""Where each point of an augmented image lies in its source, and which ones show the fill colour.

Points are ``(x, y)`` on a continuous plane: 0 is the outer edge of the first pixel, the width or
height that of the last one, so pixel centres lie at halves. Pillow's affine matrices speak of the
same points.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import AutoAugment, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

Affine = NDArray[np.float64]
"""``(2, 3)``: ``(x, y)`` goes to ``affine @ (x, y, 1)``."""

Coefficients = tuple[float, float, float, float, float, float]
"""Pillow's affine ``(a, b, c, d, e, f)``, from a step's result to its input, pixels."""


def _rotation(degrees: float, width: int, height: int) -> Coefficients:
    """Counter-clockwise about the centre of the image."""
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    x, y = width / 2, height / 2
    return cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y


# timm's operations by name: what moves the image, and what only changes its colours.
_MOVES: dict[str, Callable[[float, int, int], Coefficients]] = {
    "ShearX": lambda factor, width, height: (1, factor, 0, 0, 1, 0),
    "ShearY": lambda factor, width, height: (1, 0, 0, factor, 1, 0),
    "TranslateX": lambda pixels, width, height: (1, 0, pixels, 0, 1, 0),
    "TranslateY": lambda pixels, width, height: (1, 0, 0, 0, 1, pixels),
    "TranslateXRel": lambda share, width, height: (1, 0, share * width, 0, 1, 0),
    "TranslateYRel": lambda share, width, height: (1, 0, 0, 0, 1, share * height),
    "Rotate": _rotation,
}
_COLOURS = {
    *("AutoContrast", "Equalize", "Invert", "SolarizeAdd", "Desaturate"),
    *("Posterize", "PosterizeIncreasing", "PosterizeOriginal", "Solarize", "SolarizeIncreasing"),
    *("Color", "ColorIncreasing", "Contrast", "ContrastIncreasing"),
    *("Brightness", "BrightnessIncreasing", "Sharpness", "SharpnessIncreasing"),
    *("GaussianBlur", "GaussianBlurRand"),
}
_COLOUR_STEPS = (
    transforms.ColorJitter,
    transforms.ToTensor,
    transforms.Normalize,
    RandomErasing,
)


@dataclass
class View:
    """What an augmented image shows of its source. All planes are scaled to [0, 1] x [0, 1].

    Attributes:
        to_source: From the view's plane to the source's.
        windows: From the view's plane to those of the images on the way, the last one first. A
            point that falls outside of any of them has the colour that was filled in there, even
            if ``to_source`` leads back inside of the source.
    """

    to_source: Affine
    windows: tuple[Affine, ...] = ()


@dataclass
class Trace:
    """What has moved an image in its augmentation so far.

    Attributes:
        steps: Each from its result to its input, with the width and height of that, pixels.
    """

    steps: list[tuple[Coefficients, tuple[int, int]]] = field(default_factory=list)

    def view(self, size: tuple[int, int]) -> View:
        """What there is to be seen of the source after all steps.

        Args:
            size: Width and height of the result, pixels.
        """
        to_input = np.diag([*size, 1.0])
        to_source, windows = np.eye(3)[:2], []
        for step, (width, height) in reversed(self.steps):
            to_input = np.array([step[:3], step[3:], (0, 0, 1)]) @ to_input
            to_source = to_input[:2] / [[width], [height]]
            # Also where a step cannot reach out of its input, such as a flip: it does no harm.
            windows.append(to_source)
        return View(to_source, tuple(windows))


def followed(step: Any, trace: Trace) -> Callable[[Any], Any]:
    """A step of a training transform that notes in the trace where it moves points.

    Args:
        step: Of timm or torchvision; may be changed.
        trace: Where to note it.

    Raises:
        ValueError: It does not move all points by one affine, as far as we know.
    """
    if isinstance(step, RandomResizedCropAndInterpolation):
        step.get_params = _Crop(step.get_params, step.size, trace)
    elif isinstance(step, (transforms.RandomHorizontalFlip, transforms.RandomVerticalFlip)):
        return _Flip(step, trace)
    elif isinstance(step, (RandAugment, AutoAugment)):
        for operation in policy_operations(step):
            if operation.name in _MOVES:
                operation.aug_fn = _Move(operation.aug_fn, operation.name, trace)
            elif operation.name not in _COLOURS:
                raise _not_affine(operation.name)
    elif not isinstance(step, _COLOUR_STEPS):
        raise _not_affine(type(step).__name__)
    following: Callable[[Any], Any] = step
    return following


def policy_operations(step: object) -> Iterator[Any]:
    """The operations of one of timm's policies; none for any other step of a transform.

    Args:
        step: Of a transform.

    Yields:
        timm's ``AugmentOp`` objects.
    """
    yield from getattr(step, "ops", [])  # RandAugment, AugMix
    yield from chain.from_iterable(getattr(step, "policy", []))  # AutoAugment


def _not_affine(name: str) -> ValueError:
    return ValueError(
        "label maps move along with the image only where the result is a single affine view of "
        f"it, which is not known of {name}; choose a RandAugment or AutoAugment policy of timm "
        "such as 'rand-m9-mstd0.5-inc1'"
    )


# Classes, not closures: a transform goes to worker processes, and may be pickled on the way.


class _Crop:
    """Draws the crop, and notes it along with the resize that follows."""

    def __init__(
        self, draw: Callable[..., tuple[int, int, int, int]], size: Sequence[int], trace: Trace
    ) -> None:
        self.draw = draw
        self.size = size
        self.trace = trace

    def __call__(self, image: Image.Image, *ranges: Any) -> tuple[int, int, int, int]:
        top, left, height, width = self.draw(image, *ranges)
        rows, columns = self.size
        step = (width / columns, 0, left, 0, height / rows, top)
        self.trace.steps.append((step, image.size))
        return top, left, height, width


class _Flip:
    """Flips as torchvision does: an image that it leaves alone comes back as the same object."""

    def __init__(self, step: Callable[[Image.Image], Image.Image], trace: Trace) -> None:
        self.step = step
        self.trace = trace

    def __call__(self, image: Image.Image) -> Image.Image:
        result = self.step(image)
        if result is not image:
            if isinstance(self.step, transforms.RandomHorizontalFlip):
                self.trace.steps.append(((-1, 0, image.width, 0, 1, 0), image.size))
            else:
                self.trace.steps.append(((1, 0, 0, 0, -1, image.height), image.size))
        return result


class _Move:
    """An operation of timm's policies that moves the image."""

    def __init__(self, move: Callable[..., Image.Image], name: str, trace: Trace) -> None:
        self.move = move
        self.name = name
        self.trace = trace

    def __call__(self, image: Image.Image, amount: float, **options: Any) -> Image.Image:
        self.trace.steps.append((_MOVES[self.name](amount, *image.size), image.size))
        return self.move(image, amount, **options)
