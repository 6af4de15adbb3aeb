"""Tiny pictures, built on the fly."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """(37, 53) RGB picture with noise, so that no two pixels are alike by chance."""
    rows, columns = np.mgrid[:37, :53]
    smooth = np.stack([columns * 4, rows * 6, rows + columns], -1)
    noise = np.random.default_rng(0).integers(0, 25, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """`encode(image, format, **options)`: the bytes of a file."""

    def encode_image(image: Image.Image, image_format: str, **options: Any) -> bytes:
        stream = io.BytesIO()
        image.save(stream, image_format, **options)
        return stream.getvalue()

    return encode_image
