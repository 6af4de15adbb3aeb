"""Annotated files as samples and batches: crowds, EXIF, unreadable files, workers, resuming."""

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from wavevit.data.detection.dataset import DetectionDataset
from wavevit.data.detection.files import read_detection
from wavevit.data.detection.loader import (
    DetectionEvalView,
    DetectionTrainView,
    detection_eval_loader,
    detection_train_loader,
    strict_detections,
    to_unit_range,
)
from wavevit.data.detection.sample import cropped
from wavevit.data.detection.transforms import detection_eval_transform, detection_train_transform
from wavevit.data.images import UnreadableImageError
from wavevit.data.samplers import TrainSampler

TRAIN = detection_train_transform(
    "multi_scale",
    short_edges=[48, 64],
    long_edge=96,
    short_edges_before_crop=[64],
    crop_sizes=(40, 56),
    color_jitter=0.2,
)
EVAL = detection_eval_transform(short_edge=64, long_edge=96)
CATEGORIES = [{"id": 90, "name": "cat"}, {"id": 7, "name": "dog"}]


def found(number: int, image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
    x, y, w, h = box
    ring = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [ring],
        **more,
    }


def crowd(number: int, image: int, size: tuple[int, int]) -> dict[str, Any]:
    """A crowd over the whole image."""
    H, W = size
    code = {"size": [H, W], "counts": [0, H * W]}
    return found(number, image, 7, [0, 0, W, H], iscrowd=1, segmentation=code)


def write(root: Path, sizes: list[tuple[int, int]], annotations: list[dict[str, Any]]) -> Path:
    """A COCO folder with a PNG of every size (rows, columns); ids are 101, 102, ..."""
    rng = np.random.default_rng(0)
    images = []
    (root / "images/train").mkdir(parents=True)
    (root / "annotations").mkdir()
    for number, (H, W) in enumerate(sizes):
        path = root / f"images/train/{number}.png"
        Image.fromarray(rng.integers(0, 256, (H, W, 3), np.uint8)).save(path)
        images.append({"id": 101 + number, "file_name": path.name, "height": H, "width": W})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images: two objects; one; a crowd and an object; only a crowd; nothing; very small."""
    sizes = [(40, 60), (60, 40), (50, 50), (40, 60), (40, 60), (24, 60)]
    annotations = [
        found(1, 101, 90, [2, 3, 20, 10]),
        found(2, 101, 7, [30, 5, 25, 30]),
        found(3, 102, 7, [5, 5, 30, 50]),
        crowd(4, 103, (50, 50)),
        found(5, 103, 90, [10, 10, 30.5, 20]),
        crowd(6, 104, (40, 60)),
        found(7, 106, 90, [10, 10, 10, 10]),
    ]
    return write(tmp_path, sizes, annotations)


def dataset(folder: Path, *, with_masks: bool = True) -> DetectionDataset:
    return DetectionDataset(read_detection(folder, "train"), with_masks=with_masks)


def load(folder: Path, num_workers: int, *, start: int = 0, stop: int = 5) -> list[Any]:
    data = dataset(folder).for_training()
    sampler = TrainSampler(len(data), 2, seed=3, start=start, stop=stop)
    return list(detection_train_loader(data, TRAIN, sampler, num_workers=num_workers))


def test_a_sample_has_the_image_and_what_is_to_be_found_in_it(folder: Path) -> None:
    data = dataset(folder)
    assert (len(data), data.class_names, data.category_ids) == (6, ["dog", "cat"], [7, 90])
    sample = data.load(0)
    expected = np.asarray(Image.open(folder / "images/train/0.png"))
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), expected)
    target = sample.target()
    assert target["boxes"].tolist() == [[2, 3, 22, 13], [30, 5, 55, 35]]
    assert target["labels"].tolist() == [1, 0]
    assert target["labels"].dtype == torch.int64
    assert target["masks"].sum((1, 2)).tolist() == [200, 750]
    assert target["masks"].dtype == torch.uint8
    assert "masks" not in dataset(folder, with_masks=False).load(0).target()
    assert data.image_id(0) == 101


def test_crowds_are_not_to_be_learned_but_evaluation_knows_them(folder: Path) -> None:
    data = dataset(folder)
    assert data.load(2).target()["boxes"].tolist() == [[10, 10, 40.5, 30]]
    assert data.load(2).target()["masks"].shape == (1, 50, 50)
    for empty in (3, 4):  # nothing but a crowd, and nothing at all
        assert data.load(empty).target()["masks"].shape == (0, 40, 60)
        assert data.load(empty).target()["boxes"].shape == (0, 4)
    truth = data.to_coco()
    assert sum(item["iscrowd"] for item in truth["annotations"]) == 2
    assert [item["id"] for item in truth["categories"]] == [7, 90]


def test_training_leaves_out_small_images_and_those_without_objects(folder: Path) -> None:
    data = dataset(folder)

    def kept(**settings: Any) -> list[str]:
        return [Path(name).stem for name in data.for_training(**settings).sample_ids()]

    assert kept() == ["0", "1", "2"]
    assert kept(keep_empty=True) == ["0", "1", "2", "3", "4"]
    assert kept(min_side=1) == ["0", "1", "2", "5"]
    with pytest.raises(ValueError, match=r"none of the 6 .*: 6 are smaller than 99 .* 2 have no"):
        data.for_training(min_side=99)


def test_a_box_without_area_is_nothing_to_train_on(tmp_path: Path) -> None:
    boxes = [found(1, 101, 7, [0, 0, 9, 9]), found(2, 102, 7, [50, 10, 0, 9], segmentation=[])]
    data = dataset(write(tmp_path, [(40, 60)] * 2, boxes), with_masks=False)
    assert [len(data.load(index).boxes) for index in range(2)] == [1, 0]
    assert len(data.for_training()) == 1


def test_batches_are_the_same_for_any_number_of_workers_and_any_start(folder: Path) -> None:
    plain = load(folder, 0)
    for other in (load(folder, 2), plain[:2] + load(folder, 0, start=2)):
        assert len(plain) == len(other) == 5
        for one, two in zip(plain, other, strict=True):
            assert torch.equal(one.indices, two.indices)
            assert one.original_sizes == two.original_sizes
            for a, b in zip(one.images, two.images, strict=True):
                assert torch.equal(a, b)
            for a, b in zip(one.targets, two.targets, strict=True):
                assert set(a) == set(b) == {"boxes", "labels", "masks"}
                assert all(torch.equal(a[name], b[name]) for name in a)


def test_loading_in_the_main_process_leaves_the_global_generators_alone(folder: Path) -> None:
    states = random.getstate(), torch.get_rng_state()
    load(folder, 0, stop=2)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_views_can_be_sent_to_spawned_workers(folder: Path) -> None:
    data = dataset(folder).for_training()
    one = DetectionTrainView(data, TRAIN)
    two = pickle.loads(pickle.dumps(one))
    assert torch.equal(one[(0, 1)].image, two[(0, 1)].image)
    assert torch.equal(one[(0, 1)].target["masks"], two[(0, 1)].target["masks"])
    pickle.dumps(DetectionEvalView(data, EVAL))


def test_a_batch_on_a_device_is_what_detectors_take(folder: Path) -> None:
    batch = load(folder, 0, stop=1)[0]
    assert len(batch) == 2
    assert all(image.dtype == torch.uint8 for image in batch.images)
    moved = batch.to(torch.device("cpu"))
    for image, levels in zip(moved.images, batch.images, strict=True):
        assert image.dtype == torch.float32
        torch.testing.assert_close(image * 255, levels.float())
        assert image.shape[0] == 3
        assert image.is_contiguous()
    again = moved.to(torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(again.images, moved.images, strict=True))
    assert moved.original_sizes == batch.original_sizes
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0, 1]


def test_a_cropped_image_takes_only_itself_along(folder: Path) -> None:
    """What lies around a crop would be copied to the main process with it."""
    data = dataset(folder).for_training()
    view = DetectionTrainView(data, lambda sample: cropped(sample, 1, 2, (8, 9)))
    image = view[(0, 0)].image
    assert image.untyped_storage().nbytes() == image.nbytes == 3 * 8 * 9


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_file_is_replaced_and_listed(folder: Path, num_workers: int) -> None:
    data = dataset(folder).for_training()
    (folder / "images/train/1.png").write_bytes(b"\x89PNG\r\n")
    sampler = TrainSampler(len(data), 3, seed=3, start=0, stop=2)
    batches = list(detection_train_loader(data, TRAIN, sampler, num_workers=num_workers))
    listed = {Path(name).name for batch in batches for name in batch.unreadable}
    assert listed == {"1.png"}
    assert all(len(batch) == 3 for batch in batches)
    assert not any(1 in batch.indices for batch in batches)
    with pytest.raises(ValueError, match=r"evaluation does not skip images, .*1\.png"):
        list(strict_detections(detection_eval_loader(data, EVAL, batch_size=2, num_workers=0)))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_gives_every_image_once_and_in_order(folder: Path, batch_size: int) -> None:
    data = dataset(folder, with_masks=False)
    loader = detection_eval_loader(data, EVAL, batch_size=batch_size, num_workers=0)
    batches = list(strict_detections(loader))
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(6))
    sizes = [size for batch in batches for size in batch.original_sizes]
    assert sizes == [(40, 60), (60, 40), (50, 50), (40, 60), (40, 60), (24, 60)]
    assert batches[0].images[0].shape == (3, 64, 96)
    shares = [
        index
        for rank in range(3)
        for batch in strict_detections(
            detection_eval_loader(
                data, EVAL, batch_size=batch_size, num_workers=0, rank=rank, num_processes=3
            )
        )
        for index in batch.indices.tolist()
    ]
    assert sorted(shares) == list(range(6))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_annotations_may_be_for_the_upright_or_the_stored_picture(
    folder: Path, orientation: int
) -> None:
    """Upright where the size allows it, as viewers and annotation tools show it; else as stored."""
    data = dataset(folder)
    path = folder / "images/train/0.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif)
    stored = Image.open(path)
    upright = ImageOps.exif_transpose(stored)
    assert (upright.size == (60, 40)) == (orientation < 5)
    expected = upright if orientation < 5 else stored
    image = data.load(0).image.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(image, np.asarray(expected))


def test_an_image_of_another_size_is_unreadable(folder: Path) -> None:
    data = dataset(folder)
    Image.new("RGB", (61, 40)).save(folder / "images/train/0.png")
    with pytest.raises(UnreadableImageError, match=r"it has 61 x 40 pixels, .* are for 60 x 40"):
        data.load(0)
    Image.new("RGB", (40, 60)).save(folder / "images/train/0.png")
    with pytest.raises(UnreadableImageError, match=r"it has 40 x 60 pixels, .* are for 60 x 40"):
        data.load(0)
    assert isinstance(DetectionEvalView(data, EVAL)[0], dict)


def test_masks_are_refused_where_an_object_has_none(tmp_path: Path) -> None:
    bare = found(1, 101, 7, [5, 5, 20, 10])
    del bare["segmentation"]
    root = write(tmp_path, [(40, 60)], [bare])
    with pytest.raises(ValueError, match="1 of 1 objects have no mask, the first is annotation 1"):
        dataset(root)
    assert len(dataset(root, with_masks=False).load(0).boxes) == 1
