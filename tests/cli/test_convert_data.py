"""`wavevit convert-data`: all directions, what is lost, and what is never written."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wavevit.cli import counter
from wavevit.cli.main import main
from wavevit.data.detection.annotations import DetectionAnnotations
from wavevit.data.detection.files import read_detection
from wavevit.data.detection.object_masks import encode_mask

H, W = 60, 80


def blob(seed: int) -> np.ndarray:
    """(H, W) mask of two overlapping discs with a hole."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:H, :W]
    mask = np.zeros((H, W), bool)
    for _ in range(2):
        y, x, r = rng.uniform([12, 12, 8], [H - 12, W - 12, 12])
        mask |= (rows - y) ** 2 + (columns - x) ** 2 < r * r
        mask &= (rows - y) ** 2 + (columns - x) ** 2 >= 9
    return mask.astype(np.uint8)


def source(root: Path, *, masks: bool) -> Path:
    """A COCO set: polygons and run lengths (or boxes only), crowd, an image without objects."""
    names = {"train": ["a.png", "deep/b.png", "none.png"], "val": ["a.png"]}
    rng = np.random.default_rng(0)
    for split, files in names.items():
        annotations: list[dict[str, Any]] = []
        for image_id, name in enumerate(files, start=10):
            path = root / "images" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            for number in range(3 if name != "none.png" else 0):
                left, top = rng.uniform(0, 30, 2)
                width, height = rng.uniform(5, 28, 2)
                entry = {
                    "id": 100 + len(annotations),
                    "image_id": image_id,
                    "category_id": (7, 3, 44)[number],
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": int(number == 2 and name == "a.png"),
                }
                if masks and number == 0:
                    right, bottom = left + width, top + height
                    middle = left + width / 3
                    ring = [left, top, right, top, right, bottom, middle, bottom]
                    entry["segmentation"] = [ring]
                elif masks:
                    code = encode_mask(blob(len(annotations))).decode()
                    entry["segmentation"] = {"size": [H, W], "counts": code}
                annotations.append(entry)
        data = {
            "images": [
                {"id": i, "file_name": name, "height": H, "width": W}
                for i, name in enumerate(files, start=10)
            ],
            "categories": [
                {"id": 7, "name": "cat & <dog>"},
                {"id": 3, "name": "bird"},
                {"id": 44, "name": "éléphant"},
            ],
            "annotations": annotations,
        }
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(data))
    return root


def convert(*words: object) -> None:
    assert main(["convert-data", *map(str, words)]) == 0


def in_order_of(one: DetectionAnnotations, two: DetectionAnnotations) -> DetectionAnnotations:
    """`two` with its images in the order of `one`; formats have different orders."""
    index_of = {two.path(index).read_bytes(): index for index in range(len(two))}
    assert len(index_of) == len(one) == len(two)
    return two.subset(np.array([index_of[one.path(i).read_bytes()] for i in range(len(one))]))


def same_boxes(one: DetectionAnnotations, two: DetectionAnnotations, *, crowd: bool) -> None:
    """Boxes to a thousandth of a pixel, and the classes; with crowd or without."""
    assert one.class_names == two.class_names
    two = in_order_of(one, two)
    for index in range(len(one)):
        ours, theirs = one.objects(index), two.objects(index)
        kept = np.ones(len(ours), bool) if crowd else ~ours.crowd
        np.testing.assert_allclose(ours.boxes[kept], theirs.boxes, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(ours.labels[kept], theirs.labels)
        if crowd:
            np.testing.assert_array_equal(ours.crowd, theirs.crowd)


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
@pytest.mark.parametrize("through", ["coco", "yolo", "voc"])
def test_boxes_survive_the_way_through_any_format_to_any_other(
    tmp_path: Path, through: str, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    original = source(tmp_path / "original", masks=False)
    convert(original, tmp_path / "first", "--to", through)
    convert(tmp_path / "first", tmp_path / "second", "--to", to, "--link")
    before = read_detection(original)
    after = read_detection(tmp_path / "second")
    same_boxes(before, after, crowd="yolo" not in (through, to))
    val = read_detection(tmp_path / "second", "val", class_names=before.class_names)
    same_boxes(read_detection(original, "val"), val, crowd="yolo" not in (through, to))
    output = capsys.readouterr().out
    if "yolo" in (through, to):
        assert "2 crowd or difficult objects: left out" in output
    if through == to == "coco":
        assert after.to_coco()["annotations"] == before.to_coco()["annotations"]
        assert after.to_coco()["categories"] == before.to_coco()["categories"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "original", "second"]


def test_masks_become_outlines_and_come_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = source(tmp_path / "original", masks=True)
    convert(original, tmp_path / "yolo", "--to", "yolo")
    output = capsys.readouterr().out
    assert "train: 3 images, 6 objects, 6 of them with masks" in output
    for loss in (
        "crowd or difficult objects: left out",
        "run lengths: written as outlines along pixel edges",
        "outlines of several parts: joined by bridges to one",
        "boxes that differ from their outline: become those around it",
    ):
        assert loss in output
    convert(tmp_path / "yolo", tmp_path / "coco", "--to", "coco")
    before = read_detection(original)
    after = in_order_of(before, read_detection(tmp_path / "coco"))
    assert after.category_ids.tolist() == [1, 2, 3]
    for index in range(2):
        kept = ~before.objects(index).crowd
        ours, theirs = before.masks(index)[kept], after.masks(index)
        np.testing.assert_array_equal(ours[1:], theirs[1:])  # run lengths, with holes
        polygon = before.segments(index)[0]
        again = after.segments(index)[0]
        assert isinstance(polygon, list)
        assert isinstance(again, list)
        np.testing.assert_allclose(again[0], polygon[0], rtol=0, atol=1e-3)
    assert after.masks(2).shape == (0, H, W)


def test_masks_become_a_picture_of_object_numbers_and_come_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = source(tmp_path / "original", masks=True)
    convert(original, tmp_path / "voc", "--to", "voc")
    output = capsys.readouterr().out
    assert "masks that lose the pixels where a smaller one lies over them" in output
    assert "2 crowd objects: they become difficult objects" in output
    convert(tmp_path / "voc", tmp_path / "coco", "--to", "coco")
    assert "2 difficult objects: they become crowd" in capsys.readouterr().out
    before = read_detection(original)
    after = in_order_of(before, read_detection(tmp_path / "coco"))
    assert after.has_masks
    for index in range(2):
        ours, theirs = before.masks(index), after.masks(index)
        areas = ours.sum((1, 2))
        for row in range(3):
            in_front = ours[areas < areas[row]].any(0)
            np.testing.assert_array_equal(theirs[row], ours[row] * ~in_front)
    with Image.open(tmp_path / "voc/SegmentationObject/a.png") as picture:
        assert picture.mode == "P"
        assert (picture.getpalette() or [])[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]


def test_masks_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = source(tmp_path / "original", masks=True)
    for to in ("coco", "yolo", "voc"):
        convert(original, tmp_path / to, "--to", to, "--no-masks")
        annotations = read_detection(tmp_path / to)
        assert annotations.num_masks == 0
        same_boxes(read_detection(original), annotations, crowd=to != "yolo")


def test_files_are_as_the_formats_have_them(tmp_path: Path) -> None:
    original = source(tmp_path / "original", masks=False)
    convert(original, tmp_path / "voc", "--to", "voc")
    voc = tmp_path / "voc"
    # One folder for all splits: "a" is in both of them.
    names = ["a.png", "a_2.png", "deep_b.png", "none.png"]
    assert sorted(path.name for path in (voc / "JPEGImages").iterdir()) == names
    assert (voc / "ImageSets/Main/val.txt").read_text() == "a_2\n"
    assert (voc / "classes.txt").read_text() == "bird\ncat & <dog>\néléphant\n"
    document = ElementTree.parse(voc / "Annotations/a.xml").getroot()
    assert document.findtext("object/name") == "cat & <dog>"
    assert [e.text for e in document.findall("object/difficult")] == ["0", "0", "1"]
    convert(original, tmp_path / "yolo", "--to", "yolo")
    yolo = tmp_path / "yolo"
    assert (yolo / "data.yaml").read_text() == (
        "train: images/train\nval: images/val\nnames:\n  0: bird\n  1: cat & <dog>\n  2: éléphant\n"
    )
    assert (yolo / "labels/train/none.txt").read_text() == ""
    assert (yolo / "images/train/deep/b.png").is_file()
    assert len((yolo / "labels/train/deep/b.txt").read_text().splitlines()) == 3


def test_images_are_copied_or_linked(tmp_path: Path) -> None:
    original = source(tmp_path / "original", masks=False)
    for word, is_same in ((), False), (("--link",), True):
        out = tmp_path / f"out{len(word)}"
        convert(original, out, "--to", "yolo", *word)
        image = out / "images/val/a.png"
        assert image.samefile(original / "images/val/a.png") == is_same
        assert not image.is_symlink()


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line on standard error of a command that exits 2."""
    assert main(["convert-data", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


def test_nothing_is_overwritten_and_nothing_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = source(tmp_path / "original", masks=False)
    (tmp_path / "there").mkdir()
    assert "exists; name a folder" in refused(capsys, original, tmp_path / "there", "--to", "voc")
    line = refused(capsys, original, tmp_path / "no" / "where", "--to", "voc")
    assert "no such folder" in line
    assert "lies in the source" in refused(capsys, original, original / "out", "--to", "voc")
    assert "--to" in refused(capsys, original, tmp_path / "out", "--to", "pascal")
    assert "no such file or folder" in refused(
        capsys, tmp_path / "gone", tmp_path / "out", "--to", "voc"
    )

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("wavevit.data.detection.writers.YoloWriter.finish", fail)
        assert "no space left" in refused(capsys, original, tmp_path / "out", "--to", "yolo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original", "there"]


def test_faulty_data_is_refused_or_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = source(tmp_path / "original", masks=False)
    path = original / "annotations/instances_train.json"
    data = json.loads(path.read_text())
    data["annotations"][0]["bbox"] = [200, 5, 5, 5]
    data["annotations"][1]["bbox"] = [70, 5, 50, 5]
    data["annotations"][2]["category_id"] = 1
    path.write_text(json.dumps(data))
    Image.new("RGB", (W, H + 1)).save(original / "images/train/deep/b.png")
    line = refused(capsys, original, tmp_path / "out", "--to", "coco")
    assert "annotation 102: no category has the id 1 (the first of 4 errors" in line
    assert "--repair` writes a copy without them" in line
    convert(original, tmp_path / "out", "--to", "coco", "--repair")
    output = capsys.readouterr().out
    assert "left out: annotations/instances_train.json, annotation 100: the box" in output
    assert "left out: images/train/deep/b.png: 80 x 61 pixels" in output
    assert "3 errors: their images or objects are left out" in output
    assert "1 boxes or outlines that stuck out of their image: clipped" in output
    repaired = read_detection(tmp_path / "out")
    assert list(repaired.sample_ids()) == ["images/train/a.png", "images/train/none.png"]
    assert repaired.objects(0).boxes.tolist() == [[70, 5, W, 10]]


def test_annotations_of_stored_pixels_are_wrong_for_yolo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = source(tmp_path / "original", masks=False)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(original / "images/val/a.png").save(original / "images/val/a.png", exif=exif)
    convert(original, tmp_path / "voc", "--to", "voc")
    assert "warning: 1 images that EXIF turns" in capsys.readouterr().out
    assert read_detection(tmp_path / "voc", "val").size(0) == (H, W)
    line = refused(capsys, original, tmp_path / "yolo", "--to", "yolo")
    assert "images/val/a.png: 60 x 80 pixels, its annotations are for 80 x 60" in line


def test_a_trainval_split_is_not_written_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(source(tmp_path / "original", masks=False), tmp_path / "voc", "--to", "voc")
    lists = tmp_path / "voc/ImageSets/Main"
    both = (lists / "train.txt").read_text() + (lists / "val.txt").read_text()
    (lists / "trainval.txt").write_text(both)
    convert(tmp_path / "voc", tmp_path / "yolo", "--to", "yolo")
    assert "the split 'trainval': its images are in 'train' and 'val'" in capsys.readouterr().out
    folders = sorted(path.name for path in (tmp_path / "yolo/images").iterdir())
    assert folders == ["train", "val"]


def test_progress_goes_to_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counter, "_SECONDS_BETWEEN_LINES", 0.0)
    convert(source(tmp_path / "original", masks=False), tmp_path / "out", "--to", "coco")
    captured = capsys.readouterr()
    assert "converting: 4 of 4 images" in captured.err
    assert "converting" not in captured.out
