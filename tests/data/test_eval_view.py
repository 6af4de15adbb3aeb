"""`eval_view` says which part of a picture the transform of evaluation shows."""

import numpy as np
import pytest
from PIL import Image

from wavevit.data.transforms import eval_transform, eval_view


@pytest.mark.parametrize("crop_pct", [0.8, 0.96, 1.0])
@pytest.mark.parametrize("image_size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("size", [(200, 200), (240, 150), (130, 250), (30, 30), (800, 20)])
def test_the_edges_of_the_result_are_those_of_the_view(
    size: tuple[int, int], image_size: tuple[int, int], crop_pct: float
) -> None:
    width, height = size
    # Red is the place along the width, green that along the height, as parts of 255.
    x = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    y = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width))
    pixels = np.rint(255 * np.stack([x, y, 0 * x], axis=2)).astype(np.uint8)
    transform = eval_transform(
        image_size, crop_pct=crop_pct, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
    )
    seen = transform(Image.fromarray(pixels))[:2].numpy()
    left, top, right, bottom = eval_view(size, image_size, crop_pct=crop_pct)
    rows, columns = image_size
    # In the middle of the result the interpolation knows no borders.
    for place, low, high, length, count in (
        (seen[0].mean(axis=0), left, right, width, columns),
        (seen[1].mean(axis=1), top, bottom, height, rows),
    ):
        expected = (low + (np.arange(count) + 0.5) / count * (high - low)) / length
        pixel = (high - low) / count / length  # of the result; crops are at whole ones
        inner = slice(count // 8, -(count // 8))
        np.testing.assert_allclose(place[inner], expected[inner], atol=1.0 * pixel + 2 / 255)
