"""Pascal VOC folders are read as they are meant, and every fault is told with its file."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wavevit.data.detection.files import read_detection, read_split
from wavevit.data.detection.layouts import find_detection_layout
from wavevit.data.images import UnreadableImageError

WriteImages = Callable[..., None]
W, H = 40, 36  # of the pictures of `write_images`


def box(name: str, xmin: object, ymin: object, xmax: object, ymax: object, more: str = "") -> str:
    return (
        f"<object><name>{name}</name>{more}<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin>"
        f"<xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
    )


def write(root: Path, name: str, *objects: str, width: object = W, height: object = H) -> None:
    path = root / "Annotations" / f"{name}.xml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f"<annotation><filename>{name}.png</filename><size><width>{width}</width>"
        f"<height>{height}</height><depth>3</depth></size>{''.join(objects)}</annotation>"
    )


@pytest.fixture
def root(tmp_path: Path, write_images: WriteImages) -> Path:
    """Two training images with a picture of object numbers for one, and one for validation."""
    write_images(tmp_path, *(f"JPEGImages/{name}.png" for name in ("a", "b", "c")))
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    write(tmp_path, "a", box("dog", 1, 1, 10, 20, part), box("cat", 11.5, 5, W, H))
    write(tmp_path, "b", box("cat", 5, 5, 6, 6, "<difficult>1</difficult>"))
    write(tmp_path, "c")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\n")
    (lists / "cat_train.txt").write_text("a  1\nb -1\n")
    return tmp_path


def write_numbers(root: Path) -> None:
    numbers = np.zeros((H, W), np.uint8)
    numbers[2:8, 1:9], numbers[10:20, 15:30], numbers[9] = 1, 2, 255
    (root / "SegmentationObject").mkdir()
    picture = Image.fromarray(numbers)
    picture.putpalette((np.arange(768) % 251).tolist())
    picture.save(root / "SegmentationObject" / "a.png")


def test_pixels_count_from_1_and_both_ends_belong_to_the_box(root: Path) -> None:
    annotations = read_detection(root)
    assert annotations.class_names == ["cat", "dog"]
    assert list(annotations.sample_ids()) == ["JPEGImages/a.png", "JPEGImages/b.png"]
    objects = annotations.objects(0)
    assert objects.boxes.tolist() == [[0, 0, 10, 20], [10.5, 4, W, H]]
    assert objects.labels.tolist() == [1, 0]
    assert objects.crowd.tolist() == [False, False]
    assert annotations.objects(1).boxes.tolist() == [[4, 4, 6, 6]]


def test_difficult_objects_are_crowd(root: Path) -> None:
    assert read_detection(root).objects(1).crowd.tolist() == [True]


def test_splits_are_the_lists_of_all_classes(root: Path) -> None:
    layout = find_detection_layout(root)
    assert layout.format == "voc"
    assert list(layout.splits) == ["train", "val"]
    (root / "ImageSets/Main/train.txt").unlink()
    (root / "ImageSets/Main/val.txt").unlink()
    (root / "ImageSets/Main/cat_train.txt").unlink()
    layout = find_detection_layout(root)
    assert list(layout.splits) == ["all"]
    assert len(read_detection(layout, "all")) == 3


def test_classes_are_those_of_all_files_or_of_a_list(root: Path) -> None:
    (root / "ImageSets/Main/val.txt").write_text("a\n")
    assert read_detection(root, "val").class_names == ["cat", "dog"]
    (root / "classes.txt").write_text("dog\nbird\n\ncat\n")
    annotations = read_detection(root, "val")
    assert annotations.class_names == ["dog", "bird", "cat"]
    assert annotations.category_ids.tolist() == [1, 2, 3]
    assert annotations.objects(0).labels.tolist() == [0, 2]


def test_masks_come_from_the_picture_of_object_numbers(root: Path) -> None:
    assert not read_detection(root).has_masks
    write_numbers(root)
    annotations = read_detection(root)
    assert annotations.num_masks == 2
    assert not annotations.has_masks  # the image b has none
    dog, cat = annotations.masks(0)
    assert (int(dog.sum()), int(cat.sum())) == (6 * 8, 10 * 15)
    assert dog[2:8, 1:9].all()
    assert cat[10:20, 15:30].all()
    codes = annotations.segments(0)
    assert all(isinstance(code, bytes) for code in codes)
    truth = annotations.to_coco()["annotations"]
    assert truth[0]["segmentation"]["size"] == [H, W]
    assert "segmentation" not in truth[2]
    Image.new("L", (W, H + 1)).save(root / "SegmentationObject" / "a.png")
    with pytest.raises(UnreadableImageError, match="expected a PNG of 8 bits"):
        annotations.masks(0)


def test_a_list_may_name_an_image_with_a_space_in_it(root: Path, write_images: WriteImages) -> None:
    write_images(root, "JPEGImages/my dog.png", seed=2)
    write(root, "my dog", box("dog", 1, 1, 5, 5))
    (root / "ImageSets/Main/train.txt").write_text("my dog\na 1\n")
    assert list(read_detection(root).sample_ids()) == ["JPEGImages/my dog.png", "JPEGImages/a.png"]


def test_entities_are_not_expanded(root: Path) -> None:
    bomb = '<!DOCTYPE bomb [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    text = (root / "Annotations/a.xml").read_text().replace("dog", "&b;")
    (root / "Annotations/a.xml").write_text(bomb + text)
    with pytest.raises(
        ValueError, match=r"Annotations/a.xml: no valid XML: a document type 'bomb'"
    ):
        read_detection(root)


@pytest.mark.parametrize(
    ("objects", "kind", "words"),
    [
        ([box("dog", 5, 5, 4, 9)], "box_size", "object 1: xmin 5 to xmax 4, ymin 5 to ymax 9"),
        ([box("dog", 45, 5, 50, 9)], "box_outside", "the box 6 x 5 at (44, 4) lies outside"),
        ([box("dog", 1, 1, 9, 9), box("dog", 1, 1, 60, 9)], "box_outside", "object 2: the box 60"),
        ([box("dog", 1, "nan", 5, 9)], "box_size", "is not finite"),
        ([box("dog", 1, "x", 5, 9)], "entry", "no <bndbox> with numbers xmin, ymin, xmax, ymax"),
        (["<object><name>dog</name></object>"], "entry", "no <bndbox> with numbers"),
        ([box("", 1, 1, 5, 9)], "entry", "object 1: no <name>"),
    ],
)
def test_every_fault_is_named_with_file_and_object(
    root: Path, objects: list[str], kind: str, words: str
) -> None:
    write(root, "a", *objects)
    problems = read_split(find_detection_layout(root), "train").problems
    assert problems[0].kind == kind
    assert words in str(problems[0])
    with pytest.raises(ValueError, match=rf"^Annotations/a.xml.*{re.escape(words)}"):
        read_detection(root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty (0 bytes)"),
        ("<annotation>", "no valid XML"),
        ("<html/>", "expected <annotation>, got <html>"),
        ("<annotation/>", "no <size> with whole numbers <width> and <height> above 0"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "unknown encoding"),
    ],
)
def test_files_of_another_kind_are_named(root: Path, text: str, words: str) -> None:
    (root / "Annotations/a.xml").write_text(text)
    with pytest.raises(ValueError, match=rf"^Annotations/a.xml: .*{re.escape(words)}"):
        read_detection(root)


def test_images_and_files_that_do_not_go_together(root: Path) -> None:
    (root / "ImageSets/Main/train.txt").write_text("a\nb\nb\ngone\n")
    (root / "JPEGImages/a.png").unlink()
    write(root, "b", box("dog", 1, 1, 5, 9), height=W, width=H)
    problems = read_split(find_detection_layout(root), "train").problems
    assert [(p.kind, p.file, p.place) for p in problems] == [
        ("missing_image", "Annotations/a.xml", ""),
        ("duplicate_id", "ImageSets/Main/train.txt", "b"),
        ("annotation_file", "Annotations/gone.xml", ""),
    ]
    (root / "ImageSets/Main/train.txt").write_text("b\n")
    with pytest.raises(ValueError, match=r"JPEGImages/b.png: 40 x 36 pixels, its annotations are"):
        read_detection(root)


def test_unknown_classes_and_unfit_lists_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match="the class 'dog' is not among the 1 known ones"):
        read_detection(root, class_names=["cat"])
    (root / "ImageSets/Main/train.txt").write_bytes(b"a\xff")
    with pytest.raises(ValueError, match=r"train.txt: expected UTF-8 text, got byte 0xff"):
        read_detection(root)
    (root / "ImageSets/Main/train.txt").write_text("")
    with pytest.raises(ValueError, match=r"ImageSets/Main/train.txt: no images listed in it"):
        read_detection(root)
