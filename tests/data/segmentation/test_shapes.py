"""The generated set for segmentation: the scenes of detection, the same everywhere."""

from typing import Any

import numpy as np
import pytest
import torch

from wavevit.data.detection.shapes import DetectionShapes
from wavevit.data.segmentation.shapes import SegmentationShapes
from wavevit.data.shapes import CLASS_NAMES


def shapes(split: Any = "train", num_images: int = 20, **settings: Any) -> SegmentationShapes:
    return SegmentationShapes(split, num_images=num_images, image_size=64, **settings)


def test_labels_are_those_of_the_objects_of_detection() -> None:
    data = shapes()
    objects = DetectionShapes("train", num_images=20, image_size=64, with_masks=True)
    assert data.class_names == ["background", *CLASS_NAMES]
    assert data.palette[0] == [0, 0, 0]
    assert len(data.palette) == 10
    found = set()
    for index in range(20):
        sample, other = data.load(index), objects.load(index)
        assert data.sample_id(index) == objects.sample_id(index)
        assert torch.equal(sample.image, other.image)
        expected = torch.zeros(64, 64, dtype=torch.uint8)
        for label, mask in zip(other.labels.tolist(), other.target()["masks"], strict=True):
            expected[mask.bool()] = label + 1
        assert torch.equal(sample.labels, expected)
        assert sample.labels.dtype == torch.uint8
        found |= set(expected.unique().tolist())
    assert found == set(range(10))


def test_a_subset_keeps_names_and_images() -> None:
    data = shapes("val", seed=3)
    part = data.subset(np.array([7, 2])).subset(np.array([1, 0]))
    assert list(part.sample_ids()) == ["shapes/val/000002", "shapes/val/000007"]
    assert torch.equal(part.load(1).image, data.load(7).image)
    assert len(data) == 20
    with pytest.raises(IndexError, match="index 2 out of range for 2 images"):
        part.load(2)


def test_default_sizes_and_wrong_arguments() -> None:
    assert (len(SegmentationShapes("train")), len(SegmentationShapes("val"))) == (4000, 500)
    with pytest.raises(ValueError, match="'train' or 'val', got 'test'"):
        shapes("test")
