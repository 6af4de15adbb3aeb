"""COCO files are read as they are meant, and every fault is told with its annotation's id."""

import copy
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wavevit.data.detection.annotation_builder import Reading
from wavevit.data.detection.annotations import DetectionAnnotations
from wavevit.data.detection.coco_files import CocoSplit, read_coco
from wavevit.data.detection.files import read_detection
from wavevit.data.detection.object_masks import encode_mask

H, W = 36, 40
SQUARE = [[10.0, 8.0, 20.0, 8.0, 20.0, 18.0, 10.0, 18.0]]


def content() -> dict[str, Any]:
    """Three images, one without objects; ids with holes, and a box, polygons, and both codes."""
    crowd = np.zeros((H, W), np.uint8)
    crowd[2:6, 3:30] = 1
    counts = [2 * H, 3 * H, H * W - 5 * H]
    return {
        "images": [
            {"id": 30, "file_name": "c.png", "height": H, "width": W},
            {"id": 7, "file_name": "a.png", "height": H, "width": W},
            {"id": 900, "file_name": "b.png", "height": H, "width": W},
        ],
        "categories": [
            {"id": 90, "name": "zebra"},
            {"id": 1, "name": "person"},
            {"id": 13, "name": "car"},
        ],
        "annotations": [
            {
                "id": 501,
                "image_id": 7,
                "category_id": 90,
                "bbox": [10.0, 8.0, 10.0, 10.0],
                "area": 99.5,
                "iscrowd": 0,
                "segmentation": SQUARE,
            },
            {
                "id": 3,
                "image_id": 30,
                "category_id": 1,
                "bbox": [3.1, 2.2, 27.3, 4.4],
                "area": 108,
                "iscrowd": 1,
                "segmentation": {"size": [H, W], "counts": encode_mask(crowd).decode()},
            },
            {
                "id": 4,
                "image_id": 7,
                "category_id": 13,
                "bbox": [2, 0, 3, H],
                "segmentation": {"size": [H, W], "counts": counts},
            },
        ],
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], CocoSplit]:
    """`write(content)`: the split of a COCO data set with that annotation file."""

    def write_content(data: Any) -> CocoSplit:
        images = tmp_path / "images" / "train"
        images.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate("abc"):
            pixels = np.random.default_rng(number).integers(0, 256, (H, W, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / f"{name}.png")
        path = tmp_path / "annotations" / "instances_train.json"
        path.parent.mkdir(exist_ok=True)
        text = data if isinstance(data, bytes) else json.dumps(data).encode()
        path.write_bytes(text)
        return CocoSplit(tmp_path, path, images)

    return write_content


def sound(reading: Reading) -> DetectionAnnotations:
    assert reading.problems == []
    assert reading.annotations is not None
    return reading.annotations


def test_images_boxes_labels_and_ids(write: Callable[[Any], CocoSplit]) -> None:
    annotations = sound(read_coco(write(content())))
    assert annotations.class_names == ["person", "car", "zebra"]
    assert annotations.category_ids.tolist() == [1, 13, 90]
    assert annotations.image_ids.tolist() == [30, 7, 900]
    assert list(annotations.sample_ids()) == [f"images/train/{name}.png" for name in "cab"]
    assert annotations.num_objects.tolist() == [1, 2, 0]
    first, second, third = (annotations.objects(index) for index in range(3))
    assert first.crowd.tolist() == [True]
    np.testing.assert_allclose(first.boxes, [[3.1, 2.2, 30.4, 6.6]])
    assert second.boxes.tolist() == [[10, 8, 20, 18], [2, 0, 5, H]]
    assert second.labels.tolist() == [2, 1]
    assert second.areas.tolist() == [99.5, 3 * H]  # the second from its run lengths
    assert second.annotation_ids.tolist() == [501, 4]
    assert second.crowd.tolist() == [False, False]
    assert len(third) == 0
    assert annotations.labels.tolist() == [0, 2, 1]
    assert annotations.path(1).is_file()
    assert annotations.size(0) == (H, W)


def test_masks_of_polygons_and_both_kinds_of_run_lengths(
    write: Callable[[Any], CocoSplit],
) -> None:
    annotations = sound(read_coco(write(content())))
    assert annotations.has_masks
    annotations.check_masks()
    square, column = annotations.masks(1)
    assert square.dtype == np.uint8
    expected = np.zeros((H, W), np.uint8)
    expected[8:18, 10:20] = 1
    np.testing.assert_array_equal(square, expected)
    expected = np.zeros((H, W), np.uint8)
    expected[:, 2:5] = 1
    np.testing.assert_array_equal(column, expected)
    assert annotations.masks(0).sum() == 4 * 27
    assert annotations.masks(2).shape == (0, H, W)


def test_ground_truth_for_evaluation_is_that_of_the_file(
    write: Callable[[Any], CocoSplit],
) -> None:
    data = content()
    truth = sound(read_coco(write(data))).to_coco()
    by_id = {entry["id"]: entry for entry in truth["annotations"]}
    for entry in data["annotations"]:
        ours = by_id[entry["id"]]
        for key in ("image_id", "category_id", "bbox"):
            assert ours[key] == entry[key]
        assert ours["iscrowd"] == entry.get("iscrowd", 0)
    assert by_id[501]["segmentation"] == SQUARE
    assert by_id[501]["area"] == 99.5
    assert by_id[3]["segmentation"] == data["annotations"][1]["segmentation"]
    assert {c["id"]: c["name"] for c in truth["categories"]} == {
        1: "person",
        13: "car",
        90: "zebra",
    }
    assert json.loads(json.dumps(truth)) == truth
    without = sound(read_coco(write(data))).to_coco(with_masks=False)
    assert not any("segmentation" in entry for entry in without["annotations"])


def test_the_annotation_id_0_is_renumbered_in_the_ground_truth(
    write: Callable[[Any], CocoSplit],
) -> None:
    data = content()
    data["annotations"][0]["id"] = 0
    annotations = sound(read_coco(write(data)))
    assert annotations.objects(1).annotation_ids.tolist() == [0, 4]
    assert [entry["id"] for entry in annotations.to_coco()["annotations"]] == [1, 2, 3]


def test_boxes_only(write: Callable[[Any], CocoSplit]) -> None:
    data = content()
    without = sound(read_coco(write(data), with_masks=False))
    assert not without.has_masks
    assert without.segments(1) == [None, None]
    data["annotations"][0]["segmentation"] = []
    del data["annotations"][2]["segmentation"]
    annotations = sound(read_coco(write(data)))
    assert annotations.objects(1).areas.tolist() == [99.5, 3 * H]  # the second of its box
    assert not annotations.has_masks
    with pytest.raises(
        ValueError, match="2 of 3 objects have no mask, the first is annotation 501"
    ):
        annotations.check_masks()
    with pytest.raises(ValueError, match="annotation 501 has no mask"):
        annotations.masks(1)


def test_subsets_share_the_objects(write: Callable[[Any], CocoSplit]) -> None:
    annotations = sound(read_coco(write(content())))
    subset = annotations.subset(np.array([2, 1]))
    assert subset.image_ids.tolist() == [900, 7]
    assert subset.labels.tolist() == [2, 1]
    assert subset.objects(1).annotation_ids.tolist() == [501, 4]
    np.testing.assert_array_equal(subset.masks(1), annotations.masks(1))
    again = pickle.loads(pickle.dumps(subset))
    np.testing.assert_array_equal(again.masks(1), annotations.masks(1))
    assert again.sample_id(0) == "images/train/b.png"
    assert again.to_coco() == subset.to_coco()


def test_rounding_beyond_the_edge_is_clipped_without_a_word(
    write: Callable[[Any], CocoSplit],
) -> None:
    data = content()
    data["annotations"][0]["bbox"] = [-1.5, -0.2, W + 3, H + 2]
    data["annotations"][0]["segmentation"] = [[-1.5, 0, W + 1, 0, W + 1, H + 1.5]]
    annotations = sound(read_coco(write(data)))
    assert annotations.objects(1).boxes[0].tolist() == [0, 0, W, H]
    assert annotations.to_coco()["annotations"][1]["bbox"] == [-1.5, -0.2, W + 3, H + 2]


def test_boxes_without_area_are_a_warning_and_not_used(write: Callable[[Any], CocoSplit]) -> None:
    """COCO's train2017 has two of them."""
    data = content()
    data["annotations"][0]["bbox"] = [10, 8, 1.03, 0.0]
    split = write(data)
    reading = read_coco(split)
    assert [problem.kind for problem in reading.problems] == ["empty_box"]
    annotations = read_detection(split.root)
    assert annotations.objects(1).annotation_ids.tolist() == [4]
    assert annotations.masks(1).shape == (1, H, W)
    assert len(annotations.to_coco()["annotations"]) == 3  # pycocotools counts it


def with_first(**changes: Any) -> dict[str, Any]:
    """The content with a changed first annotation."""
    data = content()
    data["annotations"][0] |= changes
    return data


def with_image(number: int, **changes: Any) -> dict[str, Any]:
    data = content()
    data["images"][number] |= changes
    return data


def with_categories(*categories: dict[str, Any]) -> dict[str, Any]:
    data = content()
    data["categories"] += categories
    return data


FAULTS = [
    (b"", "annotation_file", "instances_train.json: the file is empty (0 bytes)"),
    (b" \n", "annotation_file", "the file is empty (2 bytes)"),
    (b'{"images": [', "annotation_file", "line 1, column 13: no valid JSON"),
    (b"\xff\xfe\xfa{}", "annotation_file", "no valid JSON"),
    (b"[" * 100_000, "annotation_file", "no valid JSON"),
    ([{"image_id": 1, "score": 0.5}], "annotation_file", "a list of results"),
    ([1, 2], "annotation_file", "expected a COCO file; no list 'images' and 'annotations' and"),
    ("x", "annotation_file", "expected a COCO file; no list 'images' and 'annotations' and"),
    ({"images": []}, "annotation_file", "no list 'annotations' and 'categories' in it"),
    ({**content(), "images": []}, "annotation_file", "the list 'images' is empty"),
    (
        with_first(bbox=[100, 100, 5, 5]),
        "box_outside",
        "annotation 501: the box 5 x 5 at (100, 100",
    ),
    (with_first(bbox=[W, 5, 5, 5]), "box_outside", "lies outside of the image, 40 x 36"),
    (with_first(bbox=[30, 5, 20, 5]), "box_outside", "sticks out of the image by 10 pixels"),
    (with_first(bbox=[-5, 5, 20, 5]), "box_outside", "sticks out of the image by 5 pixels"),
    (with_first(bbox=[5, 5, -2, 5]), "box_size", "the box -2 x 5 at (5, 5) is negative"),
    (with_first(bbox=[5, float("nan"), 2, 5]), "box_size", "is not finite"),
    (with_first(bbox=[5, 5, float("inf"), 5]), "box_size", "is not finite"),
    (with_first(bbox=[5, 5, 1e300, 1e300]), "box_outside", "sticks out of the image by"),
    (with_first(bbox=[5, 5, 5]), "entry", "expected 'bbox': [left, top, width, height]"),
    (with_first(bbox=None), "entry", "expected 'bbox': [left, top, width, height], got None"),
    (
        with_first(bbox=[5, 5, "5", 5]),
        "entry",
        "annotation 501: expected numbers in 'bbox', got \"5\"",
    ),
    (
        with_first(bbox=[5, 5, 10**400, 5]),
        "entry",
        f"expected numbers in 'bbox', got 1{39 * '0'}...",
    ),
    (with_first(area=-3), "entry", "expected 'area' to be a number of at least 0, got -3"),
    (with_first(area="big"), "entry", "expected 'area' to be a number of at least 0, got \"big\""),
    (with_first(area=float("nan")), "entry", "a number of at least 0, got NaN"),
    (with_first(iscrowd="false"), "entry", "expected 'iscrowd' to be 0 or 1, got \"false\""),
    (with_first(iscrowd=2), "entry", "annotation 501: expected 'iscrowd' to be 0 or 1, got 2"),
    (with_first(iscrowd=None), "entry", "expected 'iscrowd' to be 0 or 1, got null"),
    (with_first(iscrowd=0.5), "entry", "expected 'iscrowd' to be 0 or 1, got 0.5"),
    (with_first(category_id=2), "unknown_category", "annotation 501: no category has the id 2"),
    (with_first(image_id=2), "unknown_image", "annotation 501: no image has the id 2"),
    (with_first(id=4), "duplicate_id", "annotation 4: the id is there already"),
    (with_first(id="x"), "entry", "annotations[0]: expected a whole number 'id', got 'x'"),
    (with_first(id=10**30), "entry", "expected a whole number 'id'"),
    (with_first(image_id=7.5), "entry", "annotation 501: expected a whole number 'image_id'"),
    ({**content(), "annotations": [3]}, "entry", "annotations[0]: an annotation that is no JSON"),
    (with_first(segmentation=[[1, 2, 3, 4, 5]]), "mask", "an odd number of coordinates"),
    (with_first(segmentation=[[1, 2, 3, 4]]), "mask", "without three points"),
    (with_first(segmentation=[1, 2, 3, 4, 5, 6]), "mask", "a list of lists"),
    (
        with_first(segmentation=[[1, 2, 3, 4, 5, None]]),
        "entry",
        "annotation 501: expected numbers in 'segmentation', got null",
    ),
    (with_first(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "mask", "not finite"),
    (
        with_first(segmentation=[[1, 2, 3, 4, 5, 80]]),
        "mask_outside",
        "sticks out of the image by 44",
    ),
    (with_first(segmentation="x"), "mask", "expected polygons or run lengths, got str"),
    (
        with_first(segmentation={"size": [W, H], "counts": [H * W]}),
        "mask",
        "annotation 501: run lengths for [height, width] [40, 36], the image is [36, 40]",
    ),
    (with_first(segmentation={"size": [H, W], "counts": [5, 6]}), "mask", "counts for 11 pixels"),
    (with_first(segmentation={"size": [H, W], "counts": "P@1"}), "mask", "annotation 501"),
    (with_first(segmentation={"size": [H, W], "counts": "é"}), "mask", "without 'counts'"),
    (with_first(segmentation={"size": [H, W]}), "mask", "without 'counts'"),
    (with_image(1, id=30), "duplicate_id", "image 30: the id is there already"),
    (with_image(2, file_name="c.png"), "duplicate_id", "'images/train/c.png' is listed already"),
    (with_image(2, file_name="x.png"), "missing_image", "image 900: no such file: 'images/train/x"),
    (with_image(2, file_name=None), "entry", "images[2]: the image 900 has no 'file_name'"),
    (with_image(2, height=0), "entry", "needs a whole number 'height' above 0, got 0"),
    (with_image(2, width=None), "entry", "needs a whole number 'width' above 0, got None"),
    (with_image(2, id=None), "entry", "images[2]: an image whose 'id' is no whole number"),
    (
        with_categories({"id": 13, "name": "x"}),
        "duplicate_id",
        "the category id 13 is there already",
    ),
    (with_categories({"id": 14}), "entry", "categories[3]: a category without a text 'name'"),
    (with_categories({"id": "a", "name": "x"}), "entry", "categories[3]: expected a whole number"),
]


@pytest.mark.parametrize(("data", "kind", "words"), FAULTS, ids=range(len(FAULTS)))
def test_every_fault_is_named_and_keeps_training_from_starting(
    write: Callable[[Any], CocoSplit], data: Any, kind: str, words: str
) -> None:
    split = write(data)
    problems = read_coco(split).problems
    assert problems[0].kind == kind
    assert words in str(problems[0])
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        read_detection(split.root)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("annotations/instances_train.json")


def test_the_first_error_comes_with_the_count(write: Callable[[Any], CocoSplit]) -> None:
    data = content()
    data["annotations"][0]["category_id"] = 5
    data["annotations"][1]["bbox"] = [3, 3, -1, 5]
    data["annotations"][2]["image_id"] = 6
    split = write(data)
    reading = read_coco(split)
    assert [(p.kind, p.place) for p in reading.problems] == [
        ("unknown_category", "annotation 501"),
        ("unknown_image", "annotation 4"),
        ("box_size", "annotation 3"),
    ]
    assert reading.annotations is not None
    assert reading.annotations.num_objects.sum() == 0
    with pytest.raises(ValueError, match=r"annotation 501: .*\(the first of 3 errors; `wavevit"):
        read_detection(split.root)


def test_what_is_sound_can_be_had_beside_the_errors(write: Callable[[Any], CocoSplit]) -> None:
    data = content()
    data["annotations"][1]["bbox"] = [3, 3, -1, 5]
    data["images"][2]["file_name"] = "missing.png"
    annotations = read_coco(write(data)).annotations
    assert annotations is not None
    assert annotations.image_ids.tolist() == [30, 7]
    assert annotations.num_objects.tolist() == [0, 2]
    assert annotations.masks(1).shape == (2, H, W)


def test_clipping_can_be_asked_for(write: Callable[[Any], CocoSplit]) -> None:
    data = with_first(bbox=[-5, 5, 30, 60], segmentation=[[-5, 5, 25, 5, 25, 65]])
    split = write(data)
    annotations = read_detection(split.root, clip=True)
    assert annotations.objects(1).boxes[0].tolist() == [0, 5, 25, H]
    (ring,) = annotations.segments(1)[0] or []
    assert np.asarray(ring).tolist() == [[0, 5], [25, 5], [25, H]]
    kinds = [problem.kind for problem in read_coco(split, clip=True).problems]
    assert kinds == ["clipped", "clipped"]
    with pytest.raises(ValueError, match="lies outside"):
        read_detection(write(with_first(bbox=[100, 5, 30, 60])).root, clip=True)


def test_no_image_is_there(write: Callable[[Any], CocoSplit]) -> None:
    data = content()
    for image in data["images"]:
        image["file_name"] = f"elsewhere/{image['file_name']}"
    with pytest.raises(
        ValueError, match="none of the 3 images is there, such as 'images/train/els"
    ):
        read_detection(write(data).root)


@pytest.mark.parametrize("prefix", ["images/train/", "train/", "../images/train/", ".\\"])
def test_file_names_may_be_relative_to_other_folders(
    write: Callable[[Any], CocoSplit], prefix: str
) -> None:
    data = content()
    for image in data["images"]:
        image["file_name"] = prefix + image["file_name"]
    split = write(data)
    if prefix == "train/":
        split = CocoSplit(split.root, split.json_path, split.root / "images")
    annotations = sound(read_coco(split))
    assert annotations.sample_id(1) == "images/train/a.png"


def test_absolute_file_names(write: Callable[[Any], CocoSplit], tmp_path: Path) -> None:
    data = content()
    for image in data["images"]:
        image["file_name"] = str(tmp_path / "images" / "train" / image["file_name"])
    annotations = sound(read_coco(write(data)))
    assert annotations.path(0) == tmp_path / "images" / "train" / "c.png"


def test_known_classes_give_the_labels(write: Callable[[Any], CocoSplit]) -> None:
    annotations = sound(read_coco(write(content()), class_names=["car", "bus", "zebra", "person"]))
    assert annotations.class_names == ["car", "bus", "zebra", "person"]
    assert annotations.category_ids.tolist() == [13, 91, 90, 1]
    assert annotations.objects(1).labels.tolist() == [2, 0]
    problems = read_coco(write(content()), class_names=["car", "person"]).problems
    assert str(problems[0]).endswith(
        "the class 'zebra' is not among the 2 known ones (car, person)"
    )


def test_classes_that_the_model_does_not_have_are_no_reason_to_repair_the_data(
    write: Callable[[Any], CocoSplit],
) -> None:
    split = write(content())
    assert [p.kind for p in read_coco(split, class_names=["car"]).problems] == ["other_class"] * 2
    with pytest.raises(ValueError, match="'zebra' is not among the 1 known ones") as caught:
        read_detection(split.root, class_names=["car"])
    assert "with 2 objects: the data have other classes than the model" in str(caught.value)
    assert "repair" not in str(caught.value)


def test_whole_numbers_may_be_written_as_floats_and_crowd_as_a_truth_value(
    write: Callable[[Any], CocoSplit],
) -> None:
    """As pandas writes columns that had holes."""
    data = content()
    for name, fields in {
        "images": ("id", "height", "width"),
        "annotations": ("id", "image_id", "category_id"),
        "categories": ("id",),
    }.items():
        for entry in data[name]:
            entry.update({field: float(entry[field]) for field in fields})
    data["annotations"][0]["iscrowd"] = False
    data["annotations"][1]["iscrowd"] = True
    data["annotations"][2]["iscrowd"] = 0.0
    annotations = sound(read_coco(write(data)))
    expected = sound(read_coco(write(content())))
    assert annotations.to_coco() == expected.to_coco()
    assert json.dumps(annotations.to_coco()) == json.dumps(expected.to_coco())
    (problem, *_) = read_coco(write(with_image(0, height=36.5))).problems
    assert str(problem).endswith("needs a whole number 'height' above 0, got 36.5")


def test_a_class_that_has_the_projects_name_is_left_aside(
    write: Callable[[Any], CocoSplit],
) -> None:
    reading = read_coco(write(with_categories({"id": 0, "name": "car"})))
    assert [problem.kind for problem in reading.problems] == ["unused_category"]
    assert reading.annotations is not None
    assert reading.annotations.category_ids.tolist() == [1, 13, 90]
    data = with_categories({"id": 0, "name": "car"})
    data["annotations"].append({"id": 9, "image_id": 7, "category_id": 0, "bbox": [1, 1, 5, 5]})
    (problem,) = read_coco(write(data)).problems
    assert str(problem).endswith("category 13: the name 'car' is that of category 0 too")
    assert problem.is_error


def test_images_of_another_size_are_found(write: Callable[[Any], CocoSplit]) -> None:
    data = with_image(2, height=W, width=H)
    split = write(data)
    with pytest.raises(ValueError, match=r"b.png: 40 x 36 pixels, its annotations are for 36 x 40"):
        read_detection(split.root)
    # Unless the picture is turned by its EXIF orientation, and was annotated without.
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (H, W)).save(split.images / "b.png", exif=exif)
    assert read_detection(split.root).size(2) == (W, H)


def test_a_set_without_objects_is_refused(write: Callable[[Any], CocoSplit]) -> None:
    with pytest.raises(ValueError, match="no objects in the split 'train'"):
        read_detection(write({**content(), "annotations": []}).root)


def test_the_content_is_not_shared_between_tests() -> None:
    assert content() == copy.deepcopy(content())


@pytest.mark.parametrize(
    ("name", "images", "objects", "crowd"),
    [("bccd", 205, 2804, 0), ("coco_mini80_clean", 90, 803, 9), ("balloon1024", 61, 255, 0)],
)
def test_genuine_files_read_without_a_word(
    shared_data: Path, tmp_path: Path, name: str, images: int, objects: int, crowd: int
) -> None:
    with zipfile.ZipFile(shared_data / f"{name}.zip") as archive:
        members = [m for m in archive.namelist() if "/train/" in m or m.endswith("_train.json")]
        archive.extractall(tmp_path, members)
    annotations = read_detection(tmp_path / name, "train")
    assert len(annotations) == images
    assert annotations.num_objects.sum() == objects
    assert annotations.crowd.sum() == crowd
    assert annotations.has_masks == (name != "bccd")
    with pytest.raises(ValueError, match="no split 'val'"):
        read_detection(tmp_path / name, "val")
