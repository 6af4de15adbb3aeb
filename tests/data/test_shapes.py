"""The generated set: the same on every machine, and true to its own annotations."""

import numpy as np
import pytest

from wavevit.data.shapes import CLASS_NAMES, OUTLINES, TEXTURES, ShapesDataset, render_scene


def test_same_index_same_image() -> None:
    first, second = ShapesDataset("train"), ShapesDataset("train")
    for index in (0, 7, 3999):
        assert first.load(index).tobytes() == second.load(index).tobytes()
    assert first.load(0).tobytes() != ShapesDataset("train", seed=1).load(0).tobytes()


def test_pixels_are_pinned() -> None:
    """Users compare accuracies between versions: a change here is a new data set."""
    pixels = np.asarray(ShapesDataset("train").load(5)).astype(int)
    assert abs(pixels.mean() - 139.30) < 0.05
    np.testing.assert_allclose(
        pixels[20, 20], [255, 123, 151], atol=1
    )  # another libm may round otherwise


def test_train_and_val_share_no_image() -> None:
    train, val = ShapesDataset("train", num_images=100), ShapesDataset("val", num_images=100)
    pictures = {dataset.load(i).tobytes() for dataset in (train, val) for i in range(100)}
    assert len(pictures) == 200
    assert not set(train.sample_ids()) & set(val.sample_ids())


def test_classes_are_outline_times_texture_and_balanced() -> None:
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == len(OUTLINES) * len(TEXTURES)
    counts = np.bincount(ShapesDataset("val").labels)
    assert counts.min() >= 55
    assert counts.max() <= 56
    assert ShapesDataset("train").sample_id(2) == "shapes/train/disc-dots/000002"


def test_image_holds_the_class_of_its_label() -> None:
    dataset = ShapesDataset("train", num_images=18)
    for index in range(18):
        scene = render_scene(0, index, classes=[int(dataset.labels[index])])
        assert scene.labels.tolist() == [dataset.labels[index]]
        assert np.asarray(dataset.load(index)).tobytes() == scene.image.tobytes()


@pytest.mark.parametrize(("image_size", "num_objects"), [(64, 1), (64, 0), (97, 4), (160, 12)])
def test_masks_boxes_and_label_map_agree(image_size: int, num_objects: int) -> None:
    for index in range(10):
        scene = render_scene(3, index, image_size=image_size, num_objects=num_objects)
        count = len(scene.labels)
        assert count == num_objects if num_objects <= 1 else 1 < count <= num_objects
        assert scene.image.shape == (image_size, image_size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.masks.shape == (count, image_size, image_size)
        assert scene.boxes_xyxy.shape == (count, 4)
        assert scene.boxes_xyxy.dtype == np.float32
        assert scene.masks.sum(0).max(initial=0) <= 1  # no pixel is owned twice
        expected = np.zeros((image_size, image_size), np.uint8)
        for label, mask, box in zip(scene.labels, scene.masks, scene.boxes_xyxy, strict=True):
            expected[mask] = label + 1
            assert mask.sum() >= 16
            left, top, right, bottom = box.astype(int)
            inside = np.zeros_like(mask)
            inside[top:bottom, left:right] = True
            assert not (mask & ~inside).any()
            assert mask[top].any()
            assert mask[bottom - 1].any()
            assert mask[:, left].any()
            assert mask[:, right - 1].any()
        np.testing.assert_array_equal(scene.label_map, expected)


def test_larger_images_show_the_same_scene() -> None:
    small = render_scene(0, 4, image_size=64)
    large = render_scene(0, 4, image_size=256)
    assert small.labels.tolist() == large.labels.tolist()
    np.testing.assert_allclose(small.boxes_xyxy * 4, large.boxes_xyxy, atol=4)
    shrunk = large.image.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(shrunk - small.image).mean() < 12


def test_given_classes_in_painting_order() -> None:
    scene = render_scene(0, 0, image_size=128, classes=[3, 0, 8])
    assert scene.labels.tolist() == [3, 0, 8]


def test_colour_gives_no_class_away() -> None:
    """Mean colours of the classes' objects differ by no more than chance allows."""
    dataset = ShapesDataset("train", num_images=900)
    means = np.stack([np.asarray(dataset.load(i)).mean((0, 1)) for i in range(900)])
    of_class = np.stack([means[dataset.labels == label].mean(0) for label in range(9)])
    chance = means.std(0) / np.sqrt(100)
    assert np.abs(of_class - means.mean(0)).max() < 4 * chance.max()


def test_blurring_removes_the_texture() -> None:
    """Averaged over a texture's period, what is left inside of the object is nearly flat."""
    for label in range(9):
        scene = render_scene(1, label, classes=[label])
        left, top, right, bottom = scene.boxes_xyxy[0].astype(int)
        centre_x, centre_y = (left + right) // 2, (top + bottom) // 2
        patch = scene.image[centre_y - 6 : centre_y + 6, centre_x - 6 : centre_x + 6].mean(-1)
        blurred = patch.reshape(2, 6, 2, 6).mean((1, 3))
        assert patch.std() > 3 * blurred.std()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="'train' or 'val', got 'test'"):
        ShapesDataset("test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 32 pixels, got 16"):
        ShapesDataset("train", image_size=16)
    with pytest.raises(ValueError, match="num_images is at least 1, got 0"):
        ShapesDataset("train", num_images=0)
    with pytest.raises(ValueError, match="not negative, got -1 and 0"):
        render_scene(-1, 0)
    with pytest.raises(ValueError, match=r"labels are 0 to 8, got 9"):
        render_scene(0, 0, classes=[9])
    with pytest.raises(IndexError, match="index 5 out of range for 5 images"):
        ShapesDataset("train", num_images=5).load(5)


def test_a_subset_has_the_same_images_under_the_same_names() -> None:
    dataset = ShapesDataset("val", num_images=20)
    chosen = dataset.subset(np.array([13, 4, 7])).subset(np.array([2, 0]))
    assert len(dataset) == 20
    assert list(chosen.sample_ids()) == [dataset.sample_id(7), dataset.sample_id(13)]
    assert chosen.labels.tolist() == dataset.labels[[7, 13]].tolist()
    assert chosen.load(1).tobytes() == dataset.load(13).tobytes()
