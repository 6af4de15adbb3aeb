"""From any Pillow mode to RGB: the rules for wide, float, transparent and ink pixels.

Shape legend: H rows, W columns.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_TIFF_BITS_PER_SAMPLE = 258
_TIFF_PHOTOMETRIC = 262
_TIFF_SAMPLE_FORMAT = 339
_ROWS_AT_ONCE = 256  # bounds the temporary float64 copies of wide pixels


def to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB image of a loaded image in any mode that the readable formats have.

    Args:
        image: Loaded image; its `info` and, for TIFF, its tags are consulted.

    Returns:
        RGB image of the same size; where `image` is RGB already, it may share the pixels.

    Raises:
        ValueError: If Pillow has no conversion for the mode.
    """
    if image.mode == "I" or image.mode.startswith("I;"):
        return _wide_grey_to_rgb(image)
    if image.mode == "F":
        return Image.fromarray(float_to_grey(np.asarray(image))).convert("RGB")
    if image.mode == "CMYK":
        return _cmyk_to_rgb(image)
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    if image.mode == "RGB" and not image.readonly:
        # As Pillow's own methods make results; `convert` would copy every pixel once more.
        return image._new(image.im)
    return image.convert("RGB")


def float_to_grey(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Grey levels of a float image, whose file does not say which value is white.

    Finite values all within [0, 1]: 1 is white. All within [0, 255]: levels as they are, rounded.
    Anything else (heights, temperatures): the smallest value is black, the largest white, as in
    scientific viewers. NaN is black, infinities are black and white.

    Args:
        values: (H, W) floats.

    Returns:
        (H, W) levels.
    """
    finite = np.isfinite(values)
    low = float(np.min(values, where=finite, initial=np.inf))
    high = float(np.max(values, where=finite, initial=-np.inf))
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    span = high - low if high > low else 1.0
    levels = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        scaled = (values[rows].astype(np.float64) - low) * (255.0 / span)
        scaled = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0)
        levels[rows] = np.rint(scaled.clip(0, 255))
    return levels


def _wide_grey_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    white, is_signed = _value_of_white(image)
    if values.dtype == np.int32 and not is_signed:
        values = values.view(np.uint32)
    levels = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        levels[rows] = np.rint(values[rows].clip(0, white) * (255.0 / white))
    if _tags(image).get(_TIFF_PHOTOMETRIC) == 0:  # white is zero; Pillow inverts 8 bits only
        levels = 255 - levels
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # PNG: this one grey value is see-through
        levels[values == transparent] = 255
    return Image.fromarray(levels).convert("RGB")


def _value_of_white(image: Image.Image) -> tuple[int, bool]:
    """The value shown as white, by sample type and never by content; True if it has a sign."""
    tags = _tags(image)
    bits = _first(tags.get(_TIFF_BITS_PER_SAMPLE, 16))
    is_signed = _first(tags.get(_TIFF_SAMPLE_FORMAT, 1)) == 2
    return 2 ** (bits - 1 if is_signed else bits) - 1, is_signed


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)


def _on_white(rgba: Image.Image) -> Image.Image:
    rgb = Image.new("RGB", rgba.size, "white")
    rgb.paste(rgba, mask=rgba.getchannel("A"))
    return rgb


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            converted = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except (ImageCms.PyCMSError, OSError, ImportError):
            pass  # a broken profile, one of another colour space, or Pillow built without LCMS
        else:
            if converted is not None:
                return converted
    return image.convert("RGB")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    transform = ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # None is for in-place work only
    return converted
