"""Checking annotated images finds every planted problem with its place, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wavevit.data.detection.check import check_detection
from wavevit.data.detection.files import read_detection
from wavevit.data.detection.layouts import detection_formats, find_detection_layout
from wavevit.data.detection.problems import ERROR_KINDS, WARNING_KINDS, DetectionProblem
from wavevit.data.detection.report import DetectionReport, report_lines

WriteImages = Callable[..., None]
W, H = 40, 36  # of the pictures of `write_images`


def found(report: DetectionReport) -> set[tuple[str, str]]:
    return {(problem.kind, problem.place or problem.file) for problem in report.problems}


def coco(names: list[str], boxes: list[tuple[int, int, list[float]]]) -> dict[str, Any]:
    """A file of images with ids from 1, and of boxes as (image id, category id, [x, y, w, h])."""
    return {
        "images": [
            {"id": i, "file_name": name, "width": W, "height": H}
            for i, name in enumerate(names, start=1)
        ],
        "categories": [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
            for i, (image, category, box) in enumerate(boxes, start=1)
        ],
    }


def write(root: Path, split: str, data: dict[str, Any] | str) -> None:
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))


@pytest.fixture
def clean(tmp_path: Path, write_images: WriteImages) -> Path:
    root = tmp_path / "set"
    write_images(root, *(f"images/train2017/{i}.png" for i in range(6)))
    write_images(root, "images/val2017/0.png", "images/val2017/1.png", seed=1)
    boxes = [(1, 2, [1, 1, 5, 5]), (1, 5, [3, 3, 35, 33]), (2, 2, [9.5, 1, 2, 30])]
    write(root, "train2017", coco([f"{i}.png" for i in range(6)], boxes))
    write(root, "val2017", coco(["0.png", "1.png"], [(1, 5, [1, 1, 5, 5])]))
    return root


def test_a_clean_set_has_no_problems_but_statistics(clean: Path) -> None:
    report = check_detection(clean)
    assert report.problems == []
    assert report.num_errors == 0
    train, val = report.splits["train"], report.splits["val"]
    assert (train.num_images, train.num_without_objects, train.num_objects) == (6, 4, 3)
    assert train.class_counts == {"cat": 2, "dog": 1}
    assert train.class_images == {"cat": 2, "dog": 1}
    assert train.size_counts == {"small": 2, "medium": 1, "large": 0}
    assert train.statistics["box height"]["max"] == 33
    assert train.statistics["objects per image"]["median"] == 0
    assert val.class_counts == {"cat": 0, "dog": 1}
    assert report.format_counts == {"PNG": 8}
    lines = list(report_lines(report))
    assert "no problems found" in lines
    assert any("6 images, 4 without objects; 3 objects, 0 of them crowd" in line for line in lines)
    assert any("without objects: cat" in line for line in lines)
    assert json.loads(json.dumps(report.as_dict()))["splits"]["train"]["num_objects"] == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_planted_problem_is_found_in_one_pass_and_nothing_else(
    clean: Path, num_workers: int
) -> None:
    images = clean / "images"
    names = [f"{i}.png" for i in range(6)] + ["gone.png", "cut.png", "named.jpg", "other.png"]
    names += ["sideways.png"]
    boxes: list[tuple[int, int, list[float]]] = [
        (1, 2, [100, 1, 5, 5]),
        (1, 2, [30, 1, 50, 5]),
        (1, 2, [1, 1, -5, 5]),
        (1, 3, [1, 1, 5, 5]),
        (77, 2, [1, 1, 5, 5]),
        (2, 2, [1, 1, 0, 5]),
        (2, 5, [1, 1, 5, 5]),
        (2, 5, [1, 1, 5, 5]),
        (2, 5, [1, 2, 5, 5]),
        (3, 5, [1, 1, 5, 5]),
        (3, 5, [1, 1, 6, 5]),
        (3, 5, [1, 1, 7, 5]),
        (3, 5, [1, 1, 8, 5]),
        (7, 5, [1, 1, 8, 5]),
    ]
    data = coco(names, boxes)
    entries = data["annotations"]
    entries[8]["id"] = 1
    entries[9]["segmentation"] = [[1, 1, 2]]
    entries[10]["segmentation"] = {"size": [H, W], "counts": "abc"}
    entries[11]["segmentation"] = [[1, 1, 200, 2, 3, 3]]
    entries[12]["segmentation"] = [[1, 1, 20, 2, 3, 30], [1, 1, 2, 2]]
    entries.append({"id": 15, "image_id": 1})
    data["categories"].append({"id": 9, "name": "cat"})
    write(clean, "train2017", data)
    (images / "train2017/cut.png").write_bytes((images / "train2017/0.png").read_bytes()[:600])
    Image.open(images / "train2017/0.png").rotate(5).save(images / "train2017/named.jpg", "PNG")
    Image.new("RGB", (H, W), "red").save(images / "train2017/other.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (W, H), "blue").save(images / "train2017/sideways.png", exif=exif)
    shutil.copy(images / "train2017/1.png", images / "val2017/1.png")
    shutil.copy(images / "train2017/2.png", images / "train2017/3.png")
    write(clean, "extra", "{")
    calls: list[tuple[int, int, int]] = []
    report = check_detection(
        clean, num_workers=num_workers, on_progress=lambda *numbers: calls.append(numbers)
    )
    assert found(report) == {
        ("box_outside", "annotation 1"),
        ("box_outside", "annotation 2"),
        ("box_size", "annotation 3"),
        ("unknown_category", "annotation 4"),
        ("unknown_image", "annotation 5"),
        ("empty_box", "annotation 6"),
        ("duplicate_box", "annotation 8"),
        ("duplicate_id", "annotation 1"),
        ("mask", "annotation 10"),
        ("mask", "annotation 11"),
        ("mask_outside", "annotation 12"),
        ("mask_part", "annotation 13"),
        ("entry", "annotation 15"),
        ("unused_category", "category 9"),
        ("missing_image", "image 7"),
        ("unreadable_image", "images/train2017/cut.png"),
        ("extension", "images/train2017/named.jpg"),
        ("image_size", "images/train2017/other.png"),
        ("turned", "images/train2017/sideways.png"),
        ("leakage", "images/train2017/1.png"),
        ("duplicate_image", "images/train2017/2.png"),
        ("annotation_file", "line 1, column 2"),
    }
    # What is not here can only be in folders of YOLO or VOC or a later split, or come of clipping.
    planted = set(report.problem_counts)
    assert {*ERROR_KINDS, *WARNING_KINDS} - planted == {
        "clipped",
        "empty_mask",
        "other_class",
        "unused_file",
    }
    assert [done for done, _, _ in calls] == list(range(1, 13))
    assert {total for _, total, _ in calls} == {12}
    ranks = [[*ERROR_KINDS, *WARNING_KINDS].index(p.kind) for p in report.problems]
    assert ranks == sorted(ranks)
    text = "\n".join(report_lines(report))
    for problem in report.problems:
        assert str(problem) in text
    assert f"22 problems found: {report.num_errors} errors" in text
    with pytest.raises(ValueError, match=r"categories|annotation"):
        read_detection(clean)


def test_yolo_and_voc_are_told_apart_and_checked(tmp_path: Path, write_images: WriteImages) -> None:
    yolo, voc = tmp_path / "yolo", tmp_path / "voc"
    write_images(yolo, "images/train/a.png", "images/val/b.png")
    (yolo / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    for split, name in (("train", "a"), ("val", "b"), ("val", "nobody")):
        path = yolo / "labels" / split / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0 0.5 0.5 0.5 0.5\n")
    report = check_detection(yolo)
    assert report.format == "yolo"
    assert found(report) == {("unused_file", "labels/val/nobody.txt")}
    assert read_detection(yolo).num_objects.sum() == 1  # a warning does not keep it from starting

    write_images(voc, "JPEGImages/a.png")
    (voc / "Annotations").mkdir()
    one = (
        "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
        "<ymax>9</ymax></bndbox></object>"
    )
    (voc / "Annotations/a.xml").write_text(
        f"<annotation><size><width>{W}</width><height>{H}</height></size>{one}"
        f"{one.replace('9', '8')}</annotation>"
    )
    (voc / "SegmentationObject").mkdir()
    numbers = np.zeros((H, W), np.uint8)
    numbers[:9, :9] = 1
    Image.fromarray(numbers).save(voc / "SegmentationObject/a.png")
    report = check_detection(voc)
    assert report.format == "voc"
    assert found(report) == {("empty_mask", "object 2")}
    assert report.splits["all"].num_with_masks == 2
    Image.fromarray(numbers[1:]).save(voc / "SegmentationObject/a.png")
    assert found(check_detection(voc)) == {("mask", "SegmentationObject/a.png")}


def test_two_layouts_at_once_need_a_word(clean: Path) -> None:
    (clean / "data.yaml").write_text("train: images/train2017\nval: images/val2017\nnames: [x]\n")
    assert detection_formats(clean) == ["coco", "yolo"]
    with pytest.raises(ValueError, match="looks like coco and yolo at once; say which one"):
        check_detection(clean)
    assert check_detection(clean, format="coco").problems == []


def test_a_file_names_its_data_set(clean: Path) -> None:
    layout = find_detection_layout(clean / "annotations" / "instances_val2017.json")
    assert list(layout.splits) == ["val"]
    assert layout.root == clean
    assert read_detection(layout, "val").num_objects.sum() == 1


@pytest.mark.parametrize(
    ("json_path", "folder"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/train.json", "images/train"),
        ("annotations/train.json", "images/train2014"),
        ("annotations/instances_train.json", "images"),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_places_of_files_and_images(
    tmp_path: Path, write_images: WriteImages, json_path: str, folder: str
) -> None:
    write_images(tmp_path, f"{folder}/a.png")
    path = tmp_path / json_path
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(coco(["a.png"], [(1, 2, [1, 1, 5, 5])])))
    if json_path.startswith("annotations"):
        (path.parent / "captions_train2017.json").write_text("{}")
    annotations = read_detection(tmp_path)
    assert annotations.sample_id(0) == f"{folder}/a.png"


def test_other_data_is_none_of_these(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, "cat/1.png", "dog/1.png", "images/1.png", "labels/1.png")
    (tmp_path / "notes.yaml").write_text("author: me\n")
    assert detection_formats(tmp_path) == []
    assert detection_formats(tmp_path / "cat" / "1.png") == []
    assert detection_formats("s3://bucket/set") == []
    with pytest.raises(ValueError, match="looks like neither; expected COCO"):
        check_detection(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        check_detection(tmp_path / "missing")
    with pytest.raises(ValueError, match="num_workers is not negative, got -1"):
        check_detection(tmp_path, num_workers=-1)


def test_many_classes_and_odd_names_are_shown_in_lines(clean: Path) -> None:
    data = coco(["0.png"], [])
    data["categories"] = [{"id": i, "name": f"class\n{i:03d}"} for i in range(1, 101)]
    data["annotations"] = [
        {"id": i, "image_id": 1, "category_id": i, "bbox": [1, 1, 5, 5]} for i in range(1, 51)
    ]
    write(clean, "train2017", data)
    report = check_detection(clean / "annotations" / "instances_train2017.json")
    lines = list(report_lines(report))
    assert any("30 classes between" in line for line in lines)
    assert any("class\\n001" in line for line in lines)
    assert not any("\n" in line for line in lines)
    problem = DetectionProblem("mask", "a\nb", "annotation 3", "broken")
    assert problem.is_error
    assert str(problem) == "a\nb, annotation 3: broken"
