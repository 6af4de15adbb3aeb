"""YOLO folders are read as they are meant, and every fault is told with its file and line."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wavevit.data.detection.files import read_detection, read_split
from wavevit.data.detection.layouts import find_detection_layout

WriteImages = Callable[..., None]
W, H = 40, 36  # of the pictures of `write_images`

YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


@pytest.fixture
def root(tmp_path: Path, write_images: WriteImages) -> Path:
    """Two training images, one of them with labels, and one for validation."""
    write_images(tmp_path, "images/train/a.png", "images/train/sub/b.png", "images/val/c.png")
    write(tmp_path, "a", "0 0.5 0.5 0.25 0.5\n\n1 0.1 0.1 0.5 0.1 0.5 0.9\n")
    write(tmp_path, "c", "1 0.5 0.5 1 1\n", split="val")
    (tmp_path / "data.yaml").write_text(YAML)
    return tmp_path


def write(root: Path, name: str, text: str | bytes, split: str = "train") -> None:
    path = root / "labels" / split / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_boxes_outlines_and_images_without_labels(root: Path) -> None:
    annotations = read_detection(root)
    assert annotations.class_names == ["cat", "dog"]
    assert list(annotations.sample_ids()) == ["images/train/a.png", "images/train/sub/b.png"]
    assert annotations.num_objects.tolist() == [2, 0]
    objects = annotations.objects(0)
    np.testing.assert_allclose(
        objects.boxes, [[15, 9, 25, 27], [0.1 * W, 0.1 * H, 0.5 * W, 0.9 * H]]
    )
    assert objects.labels.tolist() == [0, 1]
    np.testing.assert_allclose(objects.areas, [180, 0.4 * W * 0.8 * H / 2])
    assert not objects.crowd.any()
    outlines = annotations.segments(0)
    assert outlines[0] is None
    assert isinstance(outlines[1], list)
    np.testing.assert_allclose(outlines[1][0], [[4, 3.6], [20, 3.6], [20, 32.4]])
    assert annotations.num_masks == 1
    assert read_detection(root, with_masks=False).num_masks == 0
    val = read_detection(root, "val", class_names=["dog", "cat"])
    assert val.objects(0).labels.tolist() == [0]
    assert val.objects(0).boxes.tolist() == [[0, 0, W, H]]


def test_turned_pictures_have_the_size_a_viewer_shows(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 60)).save(root / "images/train/turned.jpg", exif=exif)
    write(root, "turned", "0 0.5 0.5 1 1")
    annotations = read_detection(root)
    index = list(annotations.sample_ids()).index("images/train/turned.jpg")
    assert annotations.size(index) == (100, 60)
    assert annotations.objects(index).boxes.tolist() == [[0, 0, 60, 100]]


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("0 0.5 0.5 0.2", "entry", "labels/train/a.txt, line 1: expected class cx cy w h, or"),
        ("\n0 0.5 0.5 0.2 0.2 0.9", "entry", "line 2: expected class cx cy w h"),
        ("0 0.5 0.5 0.2 0.2 0.9", "entry", "got 6 fields; a confidence is no part of it"),
        ("0 0.1 0.1 0.2 0.2 0.9 0.9 0.4", "entry", "got 8 fields"),
        ("cat 0.5 0.5 0.2 0.2", "entry", "expected numbers, got 'cat 0.5 0.5 0.2 0.2'"),
        ("0.5 0.5 0.5 0.2 0.2", "entry", "expected a whole class number first, got '0.5'"),
        ("nan 0.5 0.5 0.2 0.2", "entry", "expected a whole class number first, got 'nan'"),
        ("0,0.5,0.5,0.2,0.2", "entry", "expected numbers"),
        ("2 0.5 0.5 0.2 0.2", "unknown_category", "class 2 is not among the 2 named ones, from 0"),
        ("-1 0.5 0.5 0.2 0.2", "unknown_category", "the class -1 is not among"),
        ("0 0.5 0.5 0.2 -0.2", "box_size", "line 1: the box 8 x -7.2 at (16, 21.6) is negative"),
        ("0 0.5 nan 0.2 0.2", "box_size", "is not finite"),
        ("0 0.5 inf 0.2 0.2", "box_outside", "expected parts of the image's size, from 0 to 1"),
        ("0 120 80 40 30", "box_outside", "from 0 to 1, got 120"),
        ("0 1.2 0.5 0.2 0.2", "box_outside", "lies outside of the image, 40 x 36"),
        ("0 0.9 0.5 0.6 0.2", "box_outside", "sticks out of the image by 8 pixels"),
        ("0 0.1 0.1 0.9 1.4 0.5 0.5", "box_outside", "sticks out of the image by 14.4 pixels"),
        ("0 10 10 20 20 10 20", "mask_outside", "expected parts of the image's size"),
        (b"0 0.5 0.5 0.2 0.2 \xff", "annotation_file", "expected UTF-8 text, got byte 0xff"),
    ],
)
def test_every_fault_is_named_with_file_and_line(
    root: Path, text: str | bytes, kind: str, words: str
) -> None:
    write(root, "a", text)
    problems = read_split(find_detection_layout(root), "train").problems
    assert problems[0].kind == kind
    assert words in str(problems[0])
    with pytest.raises(ValueError, match=re.escape(words)):
        read_detection(root)


def test_rounding_and_zero_sizes(root: Path) -> None:
    write(root, "a", "0 0.48 0.5 1 1.05\n0 0.5 0.5 0 0.5\n")
    reading = read_split(find_detection_layout(root), "train")
    assert [problem.kind for problem in reading.problems] == ["empty_box"]
    objects = read_detection(root).objects(0)
    np.testing.assert_allclose(objects.boxes, [[0, 0, 0.98 * W, H]])


def test_images_and_labels_that_do_not_go_together(root: Path, write_images: WriteImages) -> None:
    write(root, "nobody", "0 0.5 0.5 0.2 0.2")
    write(root, "classes", "cat\ndog")
    write_images(root, "images/train/a.bmp", seed=3)
    (root / "images/train/broken.png").write_bytes(b"")
    problems = read_split(find_detection_layout(root), "train").problems
    assert [(p.kind, p.file) for p in problems] == [
        ("duplicate_id", "images/train/a.png"),
        ("unused_file", "labels/train/nobody.txt"),
        ("unreadable_image", "images/train/broken.png"),
    ]


def test_no_labels_at_all_are_an_error(root: Path) -> None:
    (root / "labels/train/a.txt").unlink()
    with pytest.raises(
        ValueError, match="labels/train: no text file in it for any of the 2 images"
    ):
        read_detection(root)


def test_the_yaml_may_be_as_ultralytics_writes_it(root: Path) -> None:
    (root / "data.yaml").write_text(
        "path: ../datasets/pets\ntrain: images/train  # 2 images\nval: images/val\ntest:\n"
        "names:\n  0: cat\n  1: dog\nnc: 2\ndownload: https://example.org/pets.zip\n"
    )
    layout = find_detection_layout(root)
    assert layout.format == "yolo"
    assert list(layout.splits) == ["train", "val"]
    assert read_detection(root).class_names == ["cat", "dog"]
    (root / "data.yaml").rename(root / "pets.yaml")
    assert read_detection(root / "pets.yaml").num_objects.sum() == 2
    assert read_detection(root).num_objects.sum() == 2


def test_split_folders_with_images_and_labels_in_them(
    tmp_path: Path, write_images: WriteImages
) -> None:
    """As Roboflow exports them, with paths that lead out of the folder, and no test images."""
    write_images(tmp_path, "train/images/a.png", "valid/images/b.png")
    (tmp_path / "train/labels").mkdir()
    (tmp_path / "train/labels/a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: ['7']\nnc: 1\n"
    )
    annotations = read_detection(tmp_path)
    assert annotations.class_names == ["7"]
    assert annotations.sample_id(0) == "train/images/a.png"
    assert annotations.num_objects.tolist() == [1]


def test_lists_of_images(root: Path) -> None:
    (root / "train.txt").write_text(
        "./images/train/a.png\n\nimages/train/sub/b.png\nimages/x.png\n"
    )
    (root / "data.yaml").write_text(
        "train: [train.txt, images/val]\nval: images/val\nnames: [a, b]"
    )
    layout = find_detection_layout(root)
    reading = read_split(layout, "train")
    assert [(p.kind, p.file) for p in reading.problems] == [("missing_image", "images/x.png")]
    assert reading.annotations is not None
    assert reading.annotations.num_objects.tolist() == [2, 0, 1]


def test_folders_without_a_yaml_need_the_names_of_the_classes(root: Path) -> None:
    (root / "data.yaml").unlink()
    with pytest.raises(ValueError, match=r"expected data.yaml with 'names', or classes.txt"):
        find_detection_layout(root)
    (root / "classes.txt").write_text("cat\ndog\n")
    layout = find_detection_layout(root)
    assert list(layout.splits) == ["train", "val"]
    assert read_detection(layout, "val").objects(0).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: images/train\nval: images/val\n", "expected 'names'"),
        (YAML + "nc: 3\n", "'nc' is 3, but there are 2 'names'"),
        ("train: images/train\nnames: {1: cat}\n", "a mapping from 0, 1"),
        ("train: images/train\nnames: [cat, cat]\n", "more than once in 'names'"),
        ("names: [cat, dog]\n", "expected 'train' and 'val'"),
        ("train: 3\nnames: [cat, dog]\n", "expected a path or a list of paths for 'train'"),
        ("train: [1\n", "no valid YAML"),
        ("- 1\n", "got no mapping"),
        (YAML + "kpt_shape: [17, 3]\n", "a data set of keypoints"),
    ],
)
def test_faults_of_the_yaml_are_named(root: Path, text: str, words: str) -> None:
    (root / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        find_detection_layout(root)


def test_folders_that_the_yaml_names_must_be_there(root: Path) -> None:
    (root / "data.yaml").write_text("train: images/gone\nnames: [cat, dog]\n")
    with pytest.raises(FileNotFoundError, match=r"data.yaml names \['images/gone'\] for 'train'"):
        find_detection_layout(root)
