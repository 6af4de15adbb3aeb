"""Tiny pictures and data sets, built on the fly."""

import io
from collections.abc import Callable
from pathlib import Path
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


@pytest.fixture
def write_images() -> Callable[..., None]:
    """`write_images(root, *paths)`: a different small picture, 40 x 36, at each path."""

    def write(root: Path, *paths: str, seed: int = 0) -> None:
        for number, path in enumerate(paths):
            rng = np.random.default_rng((seed, number))
            pixels = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target)

    return write
