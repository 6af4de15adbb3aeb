"""The generated set for detection: the same everywhere, and a ground truth of its own images."""

from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask

from wavevit.data.detection.loader import detection_train_loader
from wavevit.data.detection.shapes import MAX_OBJECTS, DetectionShapes
from wavevit.data.detection.transforms import detection_train_transform
from wavevit.data.samplers import TrainSampler
from wavevit.data.shapes import CLASS_NAMES


def shapes(split: Any = "train", num_images: int = 40, **settings: Any) -> DetectionShapes:
    return DetectionShapes(split, num_images=num_images, image_size=64, **settings)


def test_same_index_same_sample() -> None:
    for index in (0, 7, 39):
        one, two = (shapes(with_masks=True).load(index) for _ in range(2))
        assert torch.equal(one.image, two.image)
        for name, values in one.target().items():
            assert torch.equal(values, two.target()[name])
    assert not torch.equal(shapes().load(0).image, shapes(seed=1).load(0).image)


def test_scenes_are_pinned() -> None:
    """Users compare accuracies between versions: a change here is a new data set."""
    data = shapes()
    assert [len(data.load(index).labels) for index in range(8)] == [2, 4, 2, 0, 0, 6, 2, 0]
    assert data.load(1).labels.tolist() == [5, 2, 2, 3]
    # Another libm may round otherwise.
    np.testing.assert_allclose(data.load(1).boxes[0], [9, 4, 29, 29], atol=1)


def test_train_and_val_share_no_image() -> None:
    both = shapes(), shapes("val")
    pictures = {data.load(i).image.numpy().tobytes() for data in both for i in range(40)}
    assert len(pictures) == 80
    assert shapes("val").sample_id(2) == "shapes/val/000002"
    assert len(set(shapes().sample_ids()) | set(shapes("val").sample_ids())) == 80


def test_samples_keep_the_detectors_contract() -> None:
    data = shapes(with_masks=True)
    counts = set()
    for index in range(40):
        target = data.load(index).target()
        N = len(target["labels"])
        counts.add(N)
        assert target["boxes"].shape == (N, 4)
        assert (target["boxes"].dtype, target["labels"].dtype) == (torch.float32, torch.int64)
        assert target["masks"].shape == (N, 64, 64)
        for box, mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
            x1, y1, x2, y2 = box
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
            assert mask[y1].any()
            assert mask[:, x2 - 1].any()
    assert counts <= set(range(MAX_OBJECTS + 1))
    assert 0 in counts
    assert len(counts) > 4


def test_ground_truth_is_that_of_the_samples() -> None:
    data = shapes("val", with_masks=True)
    truth = data.to_coco()
    assert [item["name"] for item in truth["categories"]] == list(CLASS_NAMES)
    assert [item["id"] for item in truth["images"]] == [data.image_id(i) for i in range(40)]
    of_image: dict[int, list[Any]] = {}
    for item in truth["annotations"]:
        of_image.setdefault(item["image_id"], []).append(item)
    for index in range(40):
        target = data.load(index).target()
        items = of_image.get(data.image_id(index), [])
        labels = [data.category_ids.index(item["category_id"]) for item in items]
        assert labels == target["labels"].tolist()
        boxes = np.array([item["bbox"] for item in items]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_array_equal(boxes, target["boxes"].numpy())
        for item, mask in zip(items, target["masks"].numpy(), strict=True):
            np.testing.assert_array_equal(coco_mask.decode(item["segmentation"]), mask)
            assert item["area"] == mask.sum()
    assert not any("segmentation" in item for item in shapes("val").to_coco()["annotations"])


def test_it_trains_like_files_do() -> None:
    data = shapes(with_masks=True)
    transform = detection_train_transform("single_scale", short_edges=[48, 64], long_edge=96)
    sampler = TrainSampler(len(data), 4, seed=0, start=0, stop=2)
    batches = list(detection_train_loader(data, transform, sampler, num_workers=0))
    assert [len(batch) for batch in batches] == [4, 4]
    assert set(batches[0].original_sizes) == {(64, 64)}


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="'train' or 'val', got 'test'"):
        shapes("test")
    with pytest.raises(ValueError, match="num_images is at least 1, got 0"):
        shapes(num_images=0)
    with pytest.raises(ValueError, match=r"at least 32 pixels .* got 64 and -1"):
        shapes(seed=-1)
    with pytest.raises(IndexError, match="index 40 out of range for 40 images"):
        shapes().load(40)
