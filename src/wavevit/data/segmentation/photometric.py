"""Photometric distortion: brightness, contrast, saturation and hue, each changed by chance.

Shape legend: H rows, W columns, h rows of a part.
"""

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wavevit.data.segmentation.sample import SegmentationSample

_Pixels = NDArray[np.float32]

BRIGHTNESS = 32.0  # levels up or down
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = (-18, 17)  # steps of 2 degrees, as 8-bit hues are counted; both ends are drawn
_STEPS_OF_HUE = 180

# Of a part that is worked on: its dozen of float planes then stay in the processor's cache, which
# makes all of it three times as fast.
_PIXELS_AT_ONCE = 2**15
_TINY = np.float32(1e-6)  # instead of a division by zero, for grey


@dataclass(frozen=True)
class PhotometricChange:
    """What is done to an image, in the order of the fields but for `contrast_last`.

    Attributes:
        brightness: Levels that are added.
        contrast: Factor of all values.
        contrast_last: Whether contrast comes after hue rather than before saturation.
        saturation: Factor of the saturation.
        hue: Turn of the hue, in steps of 2 degrees.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    contrast_last: bool = False
    saturation: float = 1.0
    hue: int = 0

    @classmethod
    def draw(cls) -> "PhotometricChange":
        """The published one: each of the four with probability 1/2, contrast early or late."""
        change = cls()
        if random.random() < 0.5:
            change = replace(change, brightness=random.uniform(-BRIGHTNESS, BRIGHTNESS))
        change = replace(change, contrast_last=random.random() < 0.5)
        if random.random() < 0.5:
            change = replace(change, contrast=random.uniform(*CONTRAST))
        if random.random() < 0.5:
            change = replace(change, saturation=random.uniform(*SATURATION))
        if random.random() < 0.5:
            change = replace(change, hue=random.randint(*HUE))
        return change

    def __call__(self, image: Tensor) -> Tensor:
        """The changed image; after each step values beyond [0, 255] are cut.

        In between they are not rounded, as the official ones in 8 bits are.

        Args:
            image: uint8 ``(3, H, W)``, RGB.

        Returns:
            uint8 ``(3, H, W)``.
        """
        if self == PhotometricChange(contrast_last=self.contrast_last):
            return image
        _, H, W = image.shape
        changed = torch.empty((3, H, W), dtype=torch.uint8)
        rows = max(_PIXELS_AT_ONCE // W, 1)
        for top in range(0, H, rows):
            part = image[:, top : top + rows]
            values = part.to(torch.float32, memory_format=torch.contiguous_format)
            self._change(values.numpy())
            changed[:, top : top + rows] = values.add_(0.5)  # what follows is cut off: rounded
        return changed

    def _change(self, rgb: _Pixels) -> None:
        """Changes (3, h, W) values in [0, 255] in place."""
        if self.brightness:
            rgb += np.float32(self.brightness)
            _cut(rgb, 255)
        if self.contrast != 1 and not self.contrast_last:
            rgb *= np.float32(self.contrast)
            _cut(rgb, 255)
        if self.saturation != 1:
            saturate(rgb, self.saturation)
        if self.hue:
            turn_hue(rgb, self.hue / _STEPS_OF_HUE)
        if self.contrast != 1 and self.contrast_last:
            rgb *= np.float32(self.contrast)
            _cut(rgb, 255)


class PhotometricDistortion:
    """Changes colours as the published segmenters' training does (from SSD, Liu et al. 2016)."""

    def __call__(self, sample: SegmentationSample) -> SegmentationSample:
        return replace(sample, image=PhotometricChange.draw()(sample.image))


def saturate(rgb: _Pixels, factor: float) -> None:
    """Multiplies the saturation of HSV, as far as there is such a colour, in place.

    With the same hue and value, the distance of each channel to the largest one is proportional to
    the saturation: no conversion is needed.

    Args:
        rgb: ``(3, h, W)``, values of at least 0.
        factor: Not negative.
    """
    top, span = _largest_and_span(rgb)
    np.maximum(span, _TINY, out=span)
    largest_factor = np.divide(top, span, out=span)  # gives saturation 1
    factors = np.minimum(largest_factor, np.float32(factor), out=span)
    rgb -= top
    rgb *= factors
    rgb += top


def turn_hue(rgb: _Pixels, turns: float) -> None:
    """Turns the hue of HSV, with the same saturation and value, in place.

    Args:
        rgb: ``(3, h, W)``, values of at least 0.
        turns: Of the whole circle; 1/3 makes red green.
    """
    red, green, blue = rgb
    top, span = _largest_and_span(rgb)
    low = top - span
    hue = _hue(rgb, top, span)
    hue += np.float32(6 * turns)
    other = np.floor(np.multiply(hue, np.float32(1 / 6)))
    other *= 6
    hue -= other  # in [0, 6) again: red is at 0, green at 2, blue at 4
    # Each channel is at its largest over a third of the circle, at its lowest over another one.
    for channel, centre in ((red, 3), (green, 2), (blue, 4)):
        np.abs(np.subtract(hue, np.float32(centre), out=other), out=other)
        if channel is red:  # around its opposite, as its own place is at both ends
            other -= 1
        else:
            np.subtract(np.float32(2), other, out=other)
        _cut(other, 1)
        other *= span
        np.add(other, low, out=channel)


def _hue(rgb: _Pixels, top: _Pixels, span: _Pixels) -> _Pixels:
    """(h, W) hue in sixths of the circle, in [-1, 5]."""
    red, green, blue = rgb
    # Factors of 0 and 1: choosing with np.where takes several times as long.
    is_red = red == top
    is_green = (green == top) > is_red
    is_blue = ~(is_red | is_green)
    hue: _Pixels = (green - blue) * is_red
    hue += (blue - red) * is_green
    hue += (red - green) * is_blue
    hue /= np.maximum(span, _TINY)
    hue += np.multiply(is_green, np.float32(2))
    hue += np.multiply(is_blue, np.float32(4))
    return hue


def _largest_and_span(rgb: _Pixels) -> tuple[_Pixels, _Pixels]:
    red, green, blue = rgb
    top: _Pixels = np.maximum(np.maximum(red, green), blue)
    span: _Pixels = top - np.minimum(np.minimum(red, green), blue)
    return top, span


def _cut(values: _Pixels, largest: float) -> None:
    # Twice as fast as np.clip.
    np.minimum(np.maximum(values, np.float32(0), out=values), np.float32(largest), out=values)
