"""Colours of classes: those of a palette PNG, or generated ones that can be told apart.

Shape legend: K classes, N candidates.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_LEVELS = np.linspace(0, 255, 16).round()  # of each channel of the colours to choose from
_LIGHTNESS = (0.35, 0.92)  # of Oklab: neither black nor white
_MIN_CHROMA = 0.04  # greys are for what has no class
_BLACK = (0, 0, 0)

# Linear RGB to the cones' responses, and their cube roots to lightness and two opponent colours:
# Ottosson 2020, "A perceptual color space for image processing".
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def generated_palette(num_classes: int) -> list[list[int]]:
    """Colours that are far from each other as seen; the first ones are the same for any number.

    Each is the one farthest from all before it, black, white and grey among them.

    Args:
        num_classes: K, in [1, 255].

    Returns:
        K lists of red, green, blue in [0, 255].

    Raises:
        ValueError: A number out of range.
    """
    if not 1 <= num_classes <= 255:
        raise ValueError(f"expected 1 to 255 classes, got {num_classes}")
    return [list(colour) for colour in _all_colours()[:num_classes]]


def class_palette(class_names: Sequence[str]) -> list[list[int]]:
    """A generated colour for each class; black for a first one that is called background.

    Args:
        class_names: K names.

    Returns:
        K lists of red, green, blue in [0, 255].

    Raises:
        ValueError: No names, or more than 255.
    """
    palette = generated_palette(len(class_names))
    if class_names[0].lower() == "background":
        return [list(_BLACK), *palette[:-1]]
    return palette


def is_colourful(palette: Sequence[Sequence[int]]) -> bool:
    """Whether every class has a colour of its own, and not all of them are grey.

    Args:
        palette: K colours.
    """
    is_grey = all(red == green == blue for red, green, blue in palette)
    return len({tuple(colour) for colour in palette}) == len(palette) and not is_grey


@lru_cache(maxsize=1)
def _all_colours() -> tuple[tuple[int, int, int], ...]:
    grid = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), -1).reshape(-1, 3)
    places = _oklab(grid)
    is_usable = (
        (places[:, 0] >= _LIGHTNESS[0])
        & (places[:, 0] <= _LIGHTNESS[1])
        & (np.hypot(places[:, 1], places[:, 2]) >= _MIN_CHROMA)
    )
    grid, places = grid[is_usable], places[is_usable]
    taken = _oklab(np.array([[0, 0, 0], [128, 128, 128], [255, 255, 255]], np.float64))
    distances = np.linalg.norm(places[:, None] - taken, axis=2).min(axis=1)
    colours: list[tuple[int, int, int]] = []
    for _ in range(255):
        farthest = int(distances.argmax())
        red, green, blue = grid[farthest].astype(int).tolist()
        colours.append((red, green, blue))
        new = np.linalg.norm(places - places[farthest], axis=1)
        distances = np.minimum(distances, new)
    return tuple(colours)


def _oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) lightness and opponent colours of (N, 3) levels of sRGB."""
    values = rgb / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    oklab: NDArray[np.float64] = np.cbrt(linear @ _TO_CONES.T) @ _TO_OKLAB.T
    return oklab.round(6)  # so that the last bit of a machine's arithmetic chooses nothing
