"""Colours of classes: those of a palette PNG, or generated ones that can be told apart.

Shape legend: K classes, N colours to choose from; L, a, b, C lightness, opponents and chroma.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_LEVELS = np.linspace(0, 255, 16).round()  # of each channel of the colours to choose from
_BLACK = (0, 0, 0)

# Least and greatest lightness and chroma of Oklab. Dark colours vanish on what is dark in a
# picture, such as asphalt; greys are for what has no class. The first colours are calm ones, as
# large parts of a picture get them; all are needed to tell very many classes apart.
_CALM = ((0.57, 0.86), (0.07, 0.17))
_NUM_CALM = 24
_ALL = ((0.5, 0.92), (0.05, 0.25))
_FIRST = (68, 136, 221)
# Hue and chroma count for more than lightness, half of which comes from the picture below.
_WEIGHTS = np.array([1.0, 1.5, 1.5])

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

    Each is the one farthest from all before it, black, white and greys among them. None is dark:
    they are made to be seen over pictures.

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
    grid = grid[_are_within(grid, *_ALL)]
    is_calm = _are_within(grid, *_CALM)
    places = _oklab(grid) * _WEIGHTS
    greys = _oklab(np.linspace(0, 255, 6)[:, None].repeat(3, axis=1)) * _WEIGHTS
    distances = np.linalg.norm(places[:, None] - greys, axis=2).min(axis=1)
    chosen = int((grid == _FIRST).all(axis=1).argmax())
    colours: list[tuple[int, int, int]] = []
    while True:
        red, green, blue = grid[chosen].astype(int).tolist()
        colours.append((red, green, blue))
        if len(colours) == 255:
            return tuple(colours)
        distances = np.minimum(distances, np.linalg.norm(places - places[chosen], axis=1))
        is_usable = is_calm | (len(colours) >= _NUM_CALM)
        chosen = int(np.where(is_usable, distances, -1.0).argmax())


def _are_within(
    grid: NDArray[np.float64], lightness: tuple[float, float], chroma: tuple[float, float]
) -> NDArray[np.bool_]:
    """(N,) which of (N, 3) levels of sRGB lie in a range of lightness and chroma."""
    L, a, b = _oklab(grid).T
    C = np.hypot(a, b)
    is_within: NDArray[np.bool_] = (
        (lightness[0] <= L) & (lightness[1] >= L) & (chroma[0] <= C) & (chroma[1] >= C)
    )
    return is_within


def _oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) lightness and opponent colours of (N, 3) levels of sRGB."""
    values = rgb / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    oklab: NDArray[np.float64] = np.cbrt(linear @ _TO_CONES.T) @ _TO_OKLAB.T
    return oklab.round(6)  # so that the last bit of a machine's arithmetic chooses nothing
