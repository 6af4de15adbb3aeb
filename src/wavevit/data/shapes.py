"""The built-in generated set: objects told apart by outline and by fine texture, never by colour.

A class is an outline with a texture, such as "triangle-dots". Colours, size, place and rotation are
drawn alike for every class, so neither colour nor outline nor a blurred copy of the image gives the
class away: the textures' periods are some 5 pixels of 64. One scene serves all three tasks.

Shape legend: N objects, H rows, W columns. Lengths inside are in units of the image's side.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

OUTLINES = ("disc", "cross", "triangle")
TEXTURES = ("stripes", "checker", "dots")
CLASS_NAMES = tuple(f"{outline}-{texture}" for outline in OUTLINES for texture in TEXTURES)

NUM_IMAGES = {"train": 4000, "val": 500}
# Added to the scene index of validation images: no data set is long enough to reach it.
_VAL_OFFSET = 2**40

# Sizes of the outlines, as parts of the radius, that give all of them the disc's area.
_CROSS_HALF_LENGTH = np.sqrt(np.pi / 2.56)
_CROSS_HALF_WIDTH = 0.4 * _CROSS_HALF_LENGTH
_TRIANGLE_INRADIUS = np.sqrt(np.pi / np.sqrt(27))
_REACH = 2 * _TRIANGLE_INRADIUS  # of the triangle's corners, the longest of the three

_RADIUS_ALONE = (0.27, 0.32)
_WANDER_ALONE = 0.05  # off the centre; more makes outlines slow to learn for a transformer
_RADIUS_AMONG_OTHERS = (0.10, 0.22)
_SHADOW_WIDTH = 5 / 64
_PERIOD = (5 / 64, 6.5 / 64)
_DOT_THRESHOLD = 1.1  # dots then cover a sixth of their ground, unlike the checker's half
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

_MIN_VISIBLE_FRACTION = 0.35
_MIN_VISIBLE_PIXELS = 16
_PLACING_ATTEMPTS = 12
_DRAWS_PER_OBJECT = 20

_FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class ShapesScene:
    """An image and the truth about it. N may be less than asked for where objects found no room."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    labels: NDArray[np.int64]
    """(N,) index into `CLASS_NAMES`, in painting order: later ones cover earlier ones."""
    boxes_xyxy: NDArray[np.float32]
    """(N, 4) pixels, tight around the visible part: the last column and row plus one."""
    masks: NDArray[np.bool_]
    """(N, H, W) visible pixels of each object; no two overlap."""
    label_map: NDArray[np.uint8]
    """(H, W) label plus one, 0 for background."""


class ShapesDataset:
    """Classification images with one object each, rendered when asked for.

    The same index is the same image on every machine; train and val share none. Classes are equally
    frequent. At another `image_size` the same scenes are drawn larger.

    Args:
        split: "train" or "val".
        num_images: Number of images; None (the default) is 4,000 for train, 500 for val.
        image_size: Side of the square images in pixels, at least 32.
        seed: Another seed is another data set.
    """

    def __init__(
        self,
        split: Literal["train", "val"],
        *,
        num_images: int | None = None,
        image_size: int = 64,
        seed: int = 0,
    ) -> None:
        if split not in NUM_IMAGES:
            raise ValueError(f"expected split 'train' or 'val', got {split!r}")
        if num_images is None:
            num_images = NUM_IMAGES[split]
        if num_images < 1:
            raise ValueError(f"num_images is at least 1, got {num_images}")
        _check_scene_arguments(seed, 0, image_size)
        self.class_names = list(CLASS_NAMES)
        self._scenes = np.arange(num_images, dtype=np.int64)
        self.labels = self._scenes % len(CLASS_NAMES)
        self.split = split
        self.image_size = image_size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def sample_id(self, index: int) -> str:
        """Name of an image, such as "shapes/train/disc-dots/000002"."""
        label = int(self.labels[index])
        return f"shapes/{self.split}/{self.class_names[label]}/{self._scenes[index]:06d}"

    def sample_ids(self) -> Iterator[str]:
        """The names of all images in order."""
        return map(self.sample_id, range(len(self)))

    def load(self, index: int, *, min_size: int | None = None) -> Image.Image:
        """The image, mode RGB, `image_size` pixels a side; `min_size` has no effect."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} out of range for {len(self)} images")
        scene = render_scene(
            self.seed,
            int(self._scenes[index]) + (_VAL_OFFSET if self.split == "val" else 0),
            image_size=self.image_size,
            classes=[int(self.labels[index])],
        )
        return Image.fromarray(scene.image)

    def subset(self, indices: NDArray[np.int64]) -> "ShapesDataset":
        """The data set of the images at `indices`, in that order, with the same class names."""
        chosen = copy.copy(self)
        chosen._scenes, chosen.labels = self._scenes[indices], self.labels[indices]
        return chosen


def render_scene(
    seed: int,
    index: int,
    *,
    image_size: int = 64,
    num_objects: int = 1,
    classes: Sequence[int] | None = None,
) -> ShapesScene:
    """A scene with its classes, boxes, masks and label map.

    Args:
        seed: Seed of the data set, not negative.
        index: Number of the scene, not negative. A scene of one object is the same picture at every
            size, but for the noise.
        image_size: Side of the square image in pixels, at least 32.
        num_objects: Objects to place. A lone object is larger.
        classes: Their labels, in painting order; sets `num_objects`. None draws them evenly.

    Returns:
        The scene. At least 35 % of every object is visible; objects for which no such place was
        found are left out.

    Raises:
        ValueError: If an argument is out of range.
    """
    _check_scene_arguments(seed, index, image_size)
    if classes is not None:
        num_objects = len(classes)
        wrong = [label for label in classes if not 0 <= label < len(CLASS_NAMES)]
        if wrong:
            raise ValueError(f"labels are 0 to {len(CLASS_NAMES) - 1}, got {wrong[0]}")
    if num_objects < 0:
        raise ValueError(f"num_objects is not negative, got {num_objects}")
    # Only `random` is used: the other methods' streams may change between NumPy versions.
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index,))))
    canvas = _background(rng, image_size)
    owner = np.zeros((image_size, image_size), np.uint8)  # object number plus one
    areas: list[int] = []
    labels: list[int] = []
    for number in range(min(num_objects, 255)):
        given = None if classes is None else classes[number]
        label = _place_object(rng, canvas, owner, areas, given, is_alone=num_objects == 1)
        if label is not None:
            labels.append(label)
    noise_level = 0.01 + 0.05 * rng.random()
    noise = rng.random(canvas.shape, dtype=np.float32)
    noise -= 0.5
    noise *= 2 * noise_level
    canvas += noise
    image = (canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return _annotated(image, owner, np.array(labels, np.int64))


def _check_scene_arguments(seed: int, index: int, image_size: int) -> None:
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index are not negative, got {seed} and {index}")
    if image_size < 32:
        raise ValueError(f"image_size is at least 32 pixels, got {image_size}")


def _annotated(
    image: NDArray[np.uint8], owner: NDArray[np.uint8], labels: NDArray[np.int64]
) -> ShapesScene:
    numbers = np.arange(1, len(labels) + 1, dtype=np.uint8)
    masks = owner == numbers[:, None, None]
    boxes = np.zeros((len(labels), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    label_map = np.concatenate([[0], labels + 1]).astype(np.uint8)[owner]
    return ShapesScene(image, labels, boxes, masks, label_map)


def _colour(draws: NDArray[np.float64], luminance: float) -> _FloatArray:
    """(3,) RGB of a random hue and saturation with about the given luminance in [0, 1]."""
    hue, saturation = draws[0], 0.25 + 0.65 * draws[1]
    pure = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    rgb = (1 - saturation + saturation * pure.clip(0, 1)).astype(np.float32)
    scaled: _FloatArray = rgb * np.float32(luminance / float(rgb @ _LUMA))
    return scaled.clip(0, 1)


def _background(rng: np.random.Generator, size: int) -> _FloatArray:
    """(size, size, 3) gradient between two colours with a few faint discs and bars on it."""
    draws = rng.random(48)
    start = _colour(draws[0:2], 0.2 + 0.6 * draws[2])
    end = _colour(draws[3:5], 0.2 + 0.6 * draws[5])
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    angle = 2 * np.pi * draws[6]
    along = np.float32(np.cos(angle)) * (centres - 0.5)
    across = np.float32(np.sin(angle)) * (centres - 0.5)
    ramp = (across[:, None] + along + 0.5)[..., None].clip(0, 1)
    canvas: _FloatArray = start + ramp * (end - start)
    for number in range(4):
        part = draws[8 + number * 10 : 18 + number * 10]
        tint = _colour(part[0:2], 0.2 + 0.6 * part[2])
        angle = 2 * np.pi * part[3]
        cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        x, y = centres - np.float32(part[4]), (centres - np.float32(part[5]))[:, None]
        if number % 2:
            distance = np.abs(x * cosine + y * sine) - np.float32(0.02 + 0.08 * part[6])
        else:
            distance = np.sqrt(x * x + y * y) - np.float32(0.08 + 0.22 * part[6])
        cover = (0.5 - distance * size).clip(0, 1)[..., None] * np.float32(0.15 + 0.3 * part[7])
        canvas += cover * (tint - canvas)
    return canvas


def _place_object(
    rng: np.random.Generator,
    canvas: _FloatArray,
    owner: NDArray[np.uint8],
    areas: list[int],
    given_label: int | None,
    *,
    is_alone: bool,
) -> int | None:
    """Paints one more object; appends its area in pixels. Returns its label, None without room."""
    size = len(canvas)
    smallest, largest = _RADIUS_ALONE if is_alone else _RADIUS_AMONG_OTHERS
    for _ in range(_PLACING_ATTEMPTS):
        draws = rng.random(_DRAWS_PER_OBJECT)
        label = int(draws[0] * len(CLASS_NAMES)) if given_label is None else given_label
        radius = smallest + (largest - smallest) * draws[1]
        # Corners of objects among others may reach over the edge.
        margin = 0.5 - _WANDER_ALONE if is_alone else 0.9 * radius
        centre_x, centre_y = margin + (1 - 2 * margin) * draws[2:4]
        reach = _REACH * radius + _SHADOW_WIDTH
        rows = _window(centre_y, reach, size)
        columns = _window(centre_x, reach, size)
        x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5) / size - centre_x
        y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / size - centre_y
        x, y = x.astype(np.float32), y.astype(np.float32)[:, None]
        distance = _outline_distance(label // len(TEXTURES), x, y, radius, 2 * np.pi * draws[4])
        inside = distance < 0
        if not _leaves_others_visible(owner[rows, columns], inside, areas, owner):
            continue
        texture = _texture(label % len(TEXTURES), x, y, draws[5:9], size)
        _paint(canvas[rows, columns], distance * size, texture, draws[9:17], size)
        areas.append(int(inside.sum()))
        owner[rows, columns][inside] = len(areas)
        return label
    return None


def _window(centre: float, reach: float, size: int) -> slice:
    return slice(max(int((centre - reach) * size), 0), min(int((centre + reach) * size) + 1, size))


def _outline_distance(
    outline: int, x: _FloatArray, y: _FloatArray, radius: float, angle: float
) -> _FloatArray:
    """(h, w) distance from the outline, negative inside."""
    if OUTLINES[outline] == "disc":
        disc: _FloatArray = np.sqrt(x * x + y * y) - np.float32(radius)
        return disc
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = cosine * x + sine * y, cosine * y - sine * x
    if OUTLINES[outline] == "cross":
        longer, shorter = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
        cross: _FloatArray = np.maximum(
            longer - np.float32(_CROSS_HALF_LENGTH * radius),
            shorter - np.float32(_CROSS_HALF_WIDTH * radius),
        )
        return cross
    slant = np.abs(u) * np.float32(np.sqrt(0.75)) - v * np.float32(0.5)
    triangle: _FloatArray = np.maximum(slant, v)
    triangle -= np.float32(_TRIANGLE_INRADIUS * radius)
    return triangle


def _texture(
    texture: int, x: _FloatArray, y: _FloatArray, draws: NDArray[np.float64], size: int
) -> _FloatArray:
    """(h, w) mixing weight in [0, 1] of the two colours, with edges about one pixel soft."""
    angle = 2 * np.pi * draws[0]
    wave_number = 2 * np.pi / (_PERIOD[0] + (_PERIOD[1] - _PERIOD[0]) * draws[1])
    cosine, sine = np.float32(np.cos(angle) * wave_number), np.float32(np.sin(angle) * wave_number)
    u = cosine * x + sine * y + np.float32(2 * np.pi * draws[2])
    name = TEXTURES[texture]
    if name == "stripes":
        height = np.sin(u)
    else:
        v = cosine * y - sine * x + np.float32(2 * np.pi * draws[3])
        height = np.sin(u) * np.sin(v) * 2 if name == "checker" else np.sin(u) + np.sin(v)
        if name == "dots":
            height -= np.float32(_DOT_THRESHOLD)
    weight: _FloatArray = 0.5 + height * np.float32(1.2 * size / 64)
    return weight.clip(0, 1)


def _paint(
    window: _FloatArray,
    distance: _FloatArray,
    texture: _FloatArray,
    draws: NDArray[np.float64],
    size: int,
) -> None:
    """Blends a two-coloured object with a soft shadow into a window; distances in pixels."""
    dark = _colour(draws[0:2], 0.08 + 0.22 * draws[2])
    light = _colour(draws[3:5], 0.60 + 0.35 * draws[5])
    # Which of the two the dots are, and which the ground, is open.
    first, second = (dark, light) if draws[6] < 0.5 else (light, dark)
    cover = (0.5 - distance).clip(0, 1)[..., None]
    shadow = (1 - distance / np.float32(_SHADOW_WIDTH * size)).clip(0, 1)[..., None]
    window *= 1 - np.float32(0.35) * shadow
    window += cover * (first + texture[..., None] * (second - first) - window)


def _leaves_others_visible(
    window: NDArray[np.uint8],
    inside: NDArray[np.bool_],
    areas: list[int],
    owner: NDArray[np.uint8],
) -> bool:
    """True if every earlier object keeps enough visible pixels under a new one."""
    if not areas:
        return True
    visible = np.bincount(owner.ravel(), minlength=len(areas) + 1)[1:]
    hidden = np.bincount(window[inside], minlength=len(areas) + 1)[1:]
    least = np.maximum(np.array(areas) * _MIN_VISIBLE_FRACTION, _MIN_VISIBLE_PIXELS)
    return bool(np.all(visible - hidden >= least))
