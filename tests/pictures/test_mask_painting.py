"""Masks painted one by one look as those painted all at once."""

import numpy as np
import pytest
from PIL import Image

from wavevit.pictures.annotate import font_size
from wavevit.pictures.detection import DrawnObjects, class_color, draw_objects
from wavevit.pictures.mask_painting import PaintedMask, frame_width, paint_masks


@pytest.fixture
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_the_picture_is_that_of_masks_over_the_whole_of_it(image: Image.Image) -> None:
    masks = np.zeros((3, 300, 400), bool)
    masks[0, 20:250, 30:300] = True
    masks[1, 100:300, 200:400] = np.random.default_rng(1).random((200, 200)) < 0.9
    boxes = np.array([[30.0, 20, 300, 250], [200, 100, 400, 300], [5, 5, 50, 50]])
    labels = np.array([0, 4, 2])
    objects = DrawnObjects(boxes, labels, ["a", "b", "c", "d", "e"], np.array([0.9, 0.8, 0.1]))
    at_once = draw_objects(image, DrawnObjects(**{**vars(objects), "masks": masks}))
    outline = frame_width(font_size(*image.size)) // 2
    painted = [
        PaintedMask(20, 30, masks[0, 20:250, 30:300], class_color(0)),
        PaintedMask(100, 200, masks[1, 100:, 200:], class_color(4)),
        PaintedMask(7, 7, np.zeros((3, 3), bool), class_color(2)),
    ]
    one_by_one = draw_objects(paint_masks(image, iter(painted), outline=outline), objects)
    np.testing.assert_array_equal(np.asarray(one_by_one), np.asarray(at_once))


def test_the_given_picture_stays_as_it_is(image: Image.Image) -> None:
    before = np.array(image)
    full = PaintedMask(0, 0, np.ones((300, 400), bool), (255, 0, 0))
    assert np.asarray(paint_masks(image, [full], outline=2)).std() < before.std()
    np.testing.assert_array_equal(np.asarray(image), before)
