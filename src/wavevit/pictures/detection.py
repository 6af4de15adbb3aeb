"""Boxes, masks and names drawn on a picture, legible on any background.

Shape legend: N objects, H rows, W columns of the picture.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wavevit.pictures.annotate import font_size
from wavevit.pictures.mask_painting import Color, PaintedMask, frame_width, paint_masks
from wavevit.pictures.style import fitting_with_ending, font_for

_Plate = tuple[float, float, float, float]  # xyxy

_DARK, _LIGHT = (20, 26, 33), (255, 255, 255)
_LEAST_LETTERS = 9  # pixels; smaller ones cannot be read
_MOST_HIDDEN = 0.2  # of an object, by other objects' names
_MOST_HIDDEN_OWN = 0.5  # and with its own
# Told apart by most people who see colours differently, too: for the first classes.
_COLORS: tuple[Color, ...] = (
    (47, 111, 181),
    (224, 129, 47),
    (43, 154, 92),
    (207, 63, 63),
    (129, 88, 182),
    (0, 158, 173),
    (214, 93, 158),
    (191, 160, 25),
    (122, 82, 60),
    (98, 112, 127),
)
_GOLDEN = 0.618033988749895


@dataclass(frozen=True)
class DrawnObjects:
    """What is to be drawn on a picture.

    Attributes:
        boxes_xyxy: (N, 4) pixels of the picture.
        labels: (N,) indices of `class_names`.
        class_names: Names of all classes.
        scores: (N,) in [0, 1], written behind the names; None for the truth.
        masks: (N, H, W) bool or uint8, or None.
    """

    boxes_xyxy: NDArray[np.floating]
    labels: NDArray[np.integer]
    class_names: Sequence[str]
    scores: NDArray[np.floating] | None = None
    masks: NDArray[np.bool_] | NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.integer]) -> "DrawnObjects":
        """Some of the objects.

        Args:
            chosen: Indices, or one truth value for each object.
        """
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[chosen],
            labels=self.labels[chosen],
            scores=None if self.scores is None else self.scores[chosen],
            masks=None if self.masks is None else self.masks[chosen],
        )


def class_color(label: int) -> Color:
    """The colour of a class, RGB; the same in every picture.

    Args:
        label: Index of the class.
    """
    if label < len(_COLORS):
        return _COLORS[label]
    number = label - len(_COLORS)
    lightness = (0.45, 0.6, 0.35)[number % 3]
    channels = colorsys.hls_to_rgb(number * _GOLDEN % 1, lightness, 0.65)
    red, green, blue = (round(255 * value) for value in channels)
    return red, green, blue


def draw_objects(
    image: Image.Image, objects: DrawnObjects, *, letters: int | None = None
) -> Image.Image:
    """A copy of the picture with a frame, a name and perhaps a mask for every object.

    A class has its colour; where there is but one class, an object has. Frames have a dark and a
    light edge, so that one of them stands out. Names keep clear of each other and of other objects;
    where there is no room they are written smaller, or left out, the least certain ones first.

    Args:
        image: Any mode that Pillow converts to RGB.
        objects: Where they are in it.
        letters: Height of the names, pixels; None chooses it by the picture's size.

    Raises:
        ValueError: Masks of another size than the picture's.
    """
    canvas = image.convert("RGB")
    size = letters or font_size(canvas.width, canvas.height)
    width = frame_width(size)
    by_object = len(objects.class_names) == 1
    colors = [class_color(i if by_object else int(c)) for i, c in enumerate(objects.labels)]
    if objects.masks is not None:
        if objects.masks.shape[1:] != (canvas.height, canvas.width):
            raise ValueError(
                f"expected masks of {canvas.height} x {canvas.width} pixels, those of the picture, "
                f"got {objects.masks.shape[1]} x {objects.masks.shape[2]}"
            )
        canvas = _with_masks(canvas, objects.masks.astype(bool), colors, width)
    draw = ImageDraw.Draw(canvas)
    boxes = objects.boxes_xyxy.astype(np.float64).reshape(-1, 4)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for i in np.argsort(-areas, kind="stable").tolist():  # small ones on top
        _draw_frame(draw, boxes[i], colors[i], width, canvas.size)
    _draw_names(draw, objects, boxes, colors, size, canvas.size)
    return canvas


def _with_masks(
    image: Image.Image, masks: NDArray[np.bool_], colors: Sequence[Color], width: int
) -> Image.Image:
    painted = []
    for i in np.argsort(-masks.sum(axis=(1, 2)), kind="stable").tolist():  # small ones on top
        rows, columns = (np.flatnonzero(masks[i].any(axis=axis)) for axis in (1, 0))
        if len(rows):
            top, left = int(rows[0]), int(columns[0])
            part = masks[i][top : rows[-1] + 1, left : columns[-1] + 1]
            painted.append(PaintedMask(top, left, part, colors[i]))
    return paint_masks(image, painted, outline=width // 2)


def _draw_frame(
    draw: ImageDraw.ImageDraw,
    box: NDArray[np.float64],
    color: Color,
    width: int,
    size: tuple[int, int],
) -> None:
    # On the continuous plane a box ends where its last pixel does; frames stay inside the picture.
    left, top = np.floor(box[:2]).clip(0).astype(int).tolist()
    right, bottom = (np.ceil(box[2:]) - 1).clip(None, np.array(size) - 1).astype(int).tolist()
    right, bottom = max(right, left), max(bottom, top)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_DARK)
    draw.rectangle((left, top, right, bottom), outline=color, width=width)
    if min(right - left, bottom - top) > 4 * width:
        inside = (left + width, top + width, right - width, bottom - width)
        draw.rectangle(inside, outline=_LIGHT)


def _draw_names(
    draw: ImageDraw.ImageDraw,
    objects: DrawnObjects,
    boxes: NDArray[np.float64],
    colors: Sequence[Color],
    size: int,
    picture: tuple[int, int],
) -> None:
    """Names on plates of the classes' colours; those of the best scores choose their places."""
    places = _Places(boxes, picture)
    order = np.arange(len(boxes))
    if objects.scores is not None:
        order = np.argsort(-objects.scores, kind="stable")
    for i in order.tolist():
        name = str(objects.class_names[int(objects.labels[i])])
        share = "" if objects.scores is None else f" {float(objects.scores[i]):.0%}"
        for letters in dict.fromkeys((size, max(min(size, _LEAST_LETTERS), round(0.75 * size)))):
            padding = max(2, letters // 5)
            height = letters + 2 * padding
            room = max(picture[0] - 2 * padding, 3 * letters)
            text = fitting_with_ending(name, share, letters, room)
            font = font_for(text, letters)
            plate = places.take(i, font.getlength(text) + 2 * padding, height)
            if plate is not None:
                draw.rectangle(plate, fill=colors[i], outline=_DARK)
                ink = _LIGHT if _luminance(colors[i]) < 0.36 else _DARK
                draw.text((plate[0] + padding, plate[1] + height / 2), text, ink, font, anchor="lm")
                break


class _Places:
    """Where names can go without hiding each other or what they are not about.

    Args:
        boxes: (N, 4) xyxy of the objects.
        picture: Width and height.
    """

    def __init__(self, boxes: NDArray[np.float64], picture: tuple[int, int]) -> None:
        self.boxes = boxes
        self.picture = picture
        self.areas = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)
        self.hidden = np.zeros(len(boxes))  # area of each that is behind names
        self.taken: list[_Plate] = []

    def take(self, number: int, width: float, height: float) -> _Plate | None:
        """A place for a name, which is taken from then on; None where there is no room.

        The first name gets one in any case.

        Args:
            number: Of its object.
            width: Of its plate.
            height: Of its plate.
        """
        plates = _plates(self.boxes[number], (width, height), self.picture)
        for plate in plates:
            if any(_overlap(plate, other) for other in self.taken):
                continue
            hidden = self.hidden + self._shared(plate)
            most = _MOST_HIDDEN * self.areas
            most[number] = _MOST_HIDDEN_OWN * self.areas[number]
            # What is hidden already is no reason against a place elsewhere.
            if ((hidden <= most) | (hidden == self.hidden)).all():
                break
        else:
            if self.taken:
                return None
            plate = plates[0]
        self.taken.append(plate)
        self.hidden += self._shared(plate)
        return plate

    def _shared(self, plate: _Plate) -> NDArray[np.float64]:
        """Area of each object behind a plate."""
        first = np.maximum(self.boxes[:, :2], plate[:2])
        last = np.minimum(self.boxes[:, 2:], plate[2:])
        shared: NDArray[np.float64] = (last - first).clip(0).prod(axis=1)
        return shared


def _plates(
    box: NDArray[np.float64], plate: tuple[float, float], picture: tuple[int, int]
) -> list[_Plate]:
    """Where a name may go, best first: above its box, else inside or below it."""
    left, top, right, bottom = box.tolist()
    width, height = plate
    places = [
        (left, top - height),
        (left, top),
        (left, bottom),
        (right - width, top - height),
        (right - width, bottom - height),
        (left, bottom - height),
    ]
    inside = [
        (min(max(x, 0.0), max(picture[0] - 1 - width, 0.0)), y)
        for x, y in places
        if 0 <= y <= picture[1] - 1 - height
    ] or [(min(max(left, 0.0), max(picture[0] - 1 - width, 0.0)), 0.0)]
    return [(x, y, x + width, y + height) for x, y in inside]


def _overlap(a: _Plate, b: _Plate) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _luminance(color: Color) -> float:
    """Relative luminance in [0, 1] (WCAG 2.2, "relative luminance", with its gamma as 2.2)."""
    red, green, blue = ((value / 255) ** 2.2 for value in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
