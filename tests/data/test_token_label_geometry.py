"""Map and image stay together through the whole augmentation: the map is painted into the image.

The map's three classes are red, green and blue, and their scores the colour of each cell. The image
is that map enlarged as RoIAlign reads it, and the fill is black as scores of zero are, so that the
mean colour of a token's cell must be what the crop of the map says there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wavevit.data.geometry import View, policy_operations
from wavevit.data.label_maps.reader import LabelMap
from wavevit.data.loader import seeded
from wavevit.data.token_labels import crop_label_map
from wavevit.data.transforms import TracedTransform, train_transform

MOVES = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
CHANNEL_CLASSES = (41, 7, 230)  # red, green, blue: not in rising order
COLOURS = (5, 7)  # rows and columns of random colours
MAP_SIZE = (15, 28)
IMAGE_SIZE = (150, 224)
GRID = (5, 7)
VIEW_SIZE = (80, 112)
NUM_VIEWS = 300
MEAN, STD = (0.0, 0.0, 0.0), (0.5, 0.25, 0.75)  # a mean of 0 makes the fill black
DARK = 50


def enlarge(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(values[None], size, mode="bilinear")[0]


@cache
def painted() -> tuple[Image.Image, LabelMap]:
    """An image and its map, of colours in [60, 250]: never as dark as the fill."""
    colours = torch.from_numpy(np.random.default_rng(0).uniform(60, 250, (3, *COLOURS))).float()
    scores = enlarge(colours, MAP_SIZE)
    pixels = enlarge(scores, IMAGE_SIZE).round().byte().permute(1, 2, 0).numpy()
    classes = np.broadcast_to(np.array(CHANNEL_CLASSES)[:, None, None], scores.shape)
    return Image.fromarray(pixels), LabelMap(scores.numpy() / 255, classes)


def augmentation() -> TracedTransform:
    """Crop, both flips, RandAugment at full strength with its moves only, normalisation."""
    transform: Any = train_transform(
        VIEW_SIZE,
        crop_scale=(0.08, 1.0),
        crop_ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        vflip=0.5,
        rand_augment="rand-m10-n3-p0.7-mstd0.5-inc1",
        color_jitter=None,
        random_erasing=0.0,
        interpolation="random",
        mean=MEAN,
        std=STD,
    )
    for step in transform.transforms:
        if list(policy_operations(step)):
            step.ops = [operation for operation in step.ops if operation.name in MOVES]
            assert len(step.ops) == len(MOVES)
    return TracedTransform(transform)


def cells(values: torch.Tensor) -> np.ndarray:
    """``(C, H, W)`` cut up by the grid: ``(N, C, h, w)``."""
    C, H, W = values.shape
    rows, columns = GRID
    blocks = values.numpy().reshape(C, rows, H // rows, columns, W // columns)
    return blocks.transpose(1, 3, 0, 2, 4).reshape(rows * columns, C, H // rows, W // columns)


@dataclass
class Augmented:
    """The cells of one augmented image.

    Attributes:
        colours: Their mean colours ``(N, 3)``, in [0, 255].
        dark: The share of their pixels that are dark as the fill, ``(N,)``.
        view: What they show by the trace.
    """

    colours: np.ndarray
    dark: np.ndarray
    view: View


@pytest.fixture(scope="module")
def augmented() -> list[Augmented]:
    image, _ = painted()
    transform = augmentation()
    result = []
    for seed in range(NUM_VIEWS):
        with seeded(seed):
            tensor, view = transform(image)
        colours = tensor * torch.tensor(STD)[:, None, None] * 255
        dark = (colours.amax(0, keepdim=True) < DARK).float()
        result.append(Augmented(cells(colours).mean((2, 3)), cells(dark).mean((1, 2, 3)), view))
    return result


def said(view: View, finer: int = 1) -> np.ndarray:
    """Colours by the crop of the map, in [0, 255], ``(1 + N, 3)``; the mean of finer tokens."""
    _, label_map = painted()
    rows, columns = GRID
    tokens = crop_label_map(label_map, view, (rows * finer, columns * finer))
    order = [tokens.classes.tolist().index(index) for index in CHANNEL_CLASSES]
    colours = tokens.logits[:, order] * 255
    blocks = colours[1:].reshape(rows, finer, columns, finer, 3)
    return np.concatenate([colours[:1], blocks.mean((1, 3)).reshape(-1, 3)])


def compare(
    augmented: list[Augmented], tangle: Callable[[View], View], finer: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All cells: their colours, what the map says of them, and how much of each is dark."""
    found = [said(tangle(item.view), finer)[1:] for item in augmented]
    seen = [item.colours for item in augmented]
    return np.concatenate(seen), np.concatenate(found), np.concatenate([i.dark for i in augmented])


def compare_means(
    augmented: list[Augmented], tangle: Callable[[View], View]
) -> tuple[np.ndarray, np.ndarray]:
    """Whole views: their colours, and what the map says for the class token."""
    found = [said(tangle(item.view))[0] for item in augmented]
    return np.stack([item.colours.mean(0) for item in augmented]), np.stack(found)


def correlation(seen: np.ndarray, found: np.ndarray) -> float:
    return float(np.corrcoef(seen.ravel(), found.ravel())[0, 1])


def untangled(view: View) -> View:
    return view


def test_every_cell_of_a_view_has_the_colour_that_the_map_gives_it(
    augmented: list[Augmented],
) -> None:
    seen, found, dark = compare(augmented, untangled)
    seen, found = seen[dark == 0], found[dark == 0]
    assert len(seen) > 4000
    for channel in range(3):
        assert correlation(seen[:, channel], found[:, channel]) > 0.9995
    # RoIAlign takes few samples of a cell, Pillow rounds down up to four times.
    error = np.abs(seen - found)
    assert error.mean() < 1.5
    assert error.max() < 10


def test_the_map_says_nothing_of_a_cell_that_is_all_fill(augmented: list[Augmented]) -> None:
    _, found, dark = compare(augmented, untangled)
    assert (dark == 1).sum() > 3000
    assert (found[dark == 1] == 0).all()


def test_a_cell_partly_in_the_fill_has_its_mean_colour_within_the_sampling(
    augmented: list[Augmented],
) -> None:
    """A cell has 1 x 1 sampling points in small crops, 3 x 4 in large ones; each is fill or not."""
    seen, found, dark = compare(augmented, untangled)
    partly = (dark > 0) & (dark < 1)
    assert partly.sum() > 2500
    assert np.abs(seen - found)[partly].mean() < 12
    assert abs((seen - found)[partly].mean()) < 4  # points fall on either side alike
    assert correlation(seen[partly], found[partly]) > 0.97

    # With 8 x 8 points at least, what remains are filters that mix image and fill at the edge.
    seen, found, dark = compare(augmented[:60], untangled, finer=8)
    partly = (dark > 0) & (dark < 1)
    assert partly.sum() > 400
    error = np.abs(seen - found)[partly]
    assert error.mean() < 2.5
    assert error.max() < 20
    assert correlation(seen[partly], found[partly]) > 0.998


def test_the_class_token_has_the_mean_colour_of_the_view_with_its_fill(
    augmented: list[Augmented],
) -> None:
    seen, found = compare_means(augmented, untangled)
    error = np.abs(seen - found)
    assert error.mean() < 2.5
    assert error.max() < 20  # in crops of 4 x 8 cells a sampling point stands for 1/32 of 250
    assert correlation(seen, found) > 0.998


FLIP = np.array([[-1, 0, 1], [0, 1, 0], [0, 0, 1]])
HALF_A_CELL = [[0, 0, 0.5 / MAP_SIZE[1]], [0, 0, 0.5 / MAP_SIZE[0]]]
MISTAKES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "crops transposed, as by the official toolbox": lambda a: a[[1, 0]][:, [1, 0, 2]],
    "map not flipped": lambda a: a @ FLIP if a[0, 0] < 0 else a,
    "map neither turned nor sheared": lambda a: a * [[1, 0, 1], [0, 1, 1]],
    "half a cell off": lambda a: a + HALF_A_CELL,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_tangled_geometry_would_be_noticed(augmented: list[Augmented], mistake: str) -> None:
    """Each of these fails the first test above, most by far."""

    def tangle(view: View) -> View:
        return replace(view, to_source=MISTAKES[mistake](view.to_source))

    seen, found, dark = compare(augmented, tangle)
    seen, found = seen[dark == 0], found[dark == 0]
    assert correlation(seen, found) < (0.98 if mistake.startswith("half") else 0.8)
    error = np.abs(seen - found)
    assert error.mean() > 5
    assert error.max() > 25


FILL_MISTAKES: dict[str, Callable[[View], View]] = {
    "no windows": lambda view: replace(view, windows=()),
    "only that of the crop": lambda view: replace(view, windows=view.windows[-1:]),
    "only that of the last step": lambda view: replace(view, windows=view.windows[:1]),
}


@pytest.mark.parametrize("mistake", FILL_MISTAKES)
def test_fill_taken_for_the_image_would_be_noticed(
    augmented: list[Augmented], mistake: str
) -> None:
    """Each of these fails all tests above but the first, by far."""
    tangle = FILL_MISTAKES[mistake]
    seen, found, dark = compare(augmented, tangle)
    assert found[dark == 1].mean() > 30
    partly = (dark > 0) & (dark < 1)
    assert np.abs(seen - found)[partly].mean() > 30
    assert correlation(seen[partly], found[partly]) < 0.7
    seen, found = compare_means(augmented, tangle)
    assert np.abs(seen - found).mean() > 15
