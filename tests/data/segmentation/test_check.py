"""Checking images and masks finds every planted problem with its file, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wavevit.data.segmentation.check import check_segmentation
from wavevit.data.segmentation.masks import LabelRule
from wavevit.data.segmentation.problems import ERROR_KINDS, WARNING_KINDS
from wavevit.data.segmentation.report import SegmentationReport, report_lines

WritePairs = Callable[..., None]


def found(report: SegmentationReport) -> set[tuple[str, str]]:
    return {(problem.kind, problem.file) for problem in report.problems}


def test_a_clean_set_has_no_problems_but_class_frequencies(folder: Path) -> None:
    report = check_segmentation(folder)
    assert report.problems == []
    assert report.num_errors == 0
    masks = [np.asarray(Image.open(path)) for path in sorted(folder.glob("labels/train/*.png"))]
    counts = np.bincount(np.concatenate(masks).ravel(), minlength=256)
    train = report.splits["train"]
    assert (train.num_images, train.num_pixels) == (6, 6 * 24 * 30)
    assert train.num_ignored == counts[255] == 6 * 30
    assert list(train.class_pixels.values()) == counts[:4].tolist()
    assert list(train.class_images.values()) == [6, 6, 6, 6]
    assert train.unknown_pixels == {}
    assert train.statistics["height"]["median"] == 24
    assert report.format_counts == {"PNG": 9}
    lines = list(report_lines(report))
    assert "no problems found" in lines
    assert any("6 images with masks, 4,320 pixels, 4.17 % of them ignored" in x for x in lines)
    share = 100 * counts[2] / counts[:4].sum()
    assert any(x.split() == [f"{share:.2f}", "%", "6", "car"] for x in lines)
    assert json.loads(json.dumps(report.as_dict()))["splits"]["val"]["num_images"] == 3


def spoil(folder: Path, write_pairs: WritePairs) -> None:
    """One of each kind of problem."""
    images, labels = folder / "images/train", folder / "labels/train"
    more = [(f"images/train/{i}.png", f"labels/train/{i}.png") for i in range(6, 16)]
    write_pairs(folder, *more, ("images/test/0.png", "labels/test/0.png"), seed=20)
    black_and_white = np.arange(720).reshape(24, 30) % 2 * 255
    Image.fromarray(black_and_white.astype(np.uint8)).save(folder / "labels/test/0.png")
    (labels / "0.png").unlink()
    (images / "1.png").unlink()
    shutil.copy(images / "2.png", images / "2.jpg")
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:600])
    (labels / "4.png").write_bytes((labels / "4.png").read_bytes()[:60])
    Image.open(labels / "5.png").convert("RGB").save(labels / "5.png")
    Image.new("L", (30, 25)).save(labels / "6.png")
    numbers = np.array(Image.open(labels / "7.png"))
    numbers[0, :8], numbers[1, 3] = 7, 200
    Image.fromarray(numbers).save(labels / "7.png")
    Image.new("L", (30, 24), 255).save(labels / "8.png")
    shutil.copy(images / "9.png", folder / "images/lost.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images / "10.png").save(images / "10.png", exif=exif)
    shutil.copy(images / "11.png", folder / "images/val/0.png")
    shutil.copy(images / "12.png", images / "13.png")
    Image.open(images / "14.png").save(images / "14.png", "BMP")
    (folder / "images/valid2").mkdir()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_planted_problem_is_found_in_one_pass_and_nothing_else(
    folder: Path, write_pairs: WritePairs, num_workers: int
) -> None:
    spoil(folder, write_pairs)
    (folder / "classes.txt").write_text("sky\nroad\ncar\nvoid\n")
    calls: list[tuple[int, int, int]] = []
    report = check_segmentation(
        folder, num_workers=num_workers, on_progress=lambda *numbers: calls.append(numbers)
    )
    assert found(report) == {
        ("missing_mask", "images/train/0.png"),
        ("missing_mask", "images/valid2"),
        ("orphan_mask", "labels/train/1.png"),
        ("duplicate_name", "images/train/2.png"),
        ("unreadable_image", "images/train/3.png"),
        ("unreadable_mask", "labels/train/4.png"),
        ("mask_kind", "labels/train/5.png"),
        ("mask_size", "labels/train/6.png"),
        ("unknown_label", "labels/train/7.png"),
        ("nothing_labelled", "labels/train/8.png"),
        ("unused_file", "images/lost.png"),
        ("turned", "labels/train/10.png"),
        ("leakage", "images/train/11.png"),
        ("duplicate_image", "images/train/12.png"),
        ("extension", "images/train/14.png"),
        ("extension", "images/train/2.jpg"),
        ("no_class", "classes.txt"),
        ("black_and_white", "labels/test"),
    }
    # All kinds but the one for masks that no list of classes belongs to.
    assert set(report.problem_counts) == {*ERROR_KINDS, *WARNING_KINDS} - {"unused_label"}
    total = sum(split.num_images for split in report.splits.values())
    assert [call[:2] for call in calls] == [(i, total) for i in range(1, total + 1)]
    ranks = [[*ERROR_KINDS, *WARNING_KINDS].index(problem.kind) for problem in report.problems]
    assert ranks == sorted(ranks)
    assert report.splits["train"].unknown_pixels == {7: 8, 200: 1}
    assert report.splits["train"].unknown_images == {7: 1, 200: 1}
    text = "\n".join(report_lines(report))
    for problem in report.problems:
        assert str(problem) in text
    assert "7 in 8 pixels, 200 in 1 pixel; the 4 classes are 0 to 3" in text
    assert "label 200 has no class: 1 pixel in 1 mask" in text
    assert f"18 problems found: {report.num_errors} errors" in text


def test_masks_that_tell_no_classes_are_listed_all_the_same(folder: Path) -> None:
    (folder / "classes.txt").unlink()
    for path in folder.rglob("labels/*/*.png"):
        Image.open(path).convert("RGB").save(path)
    report = check_segmentation(folder)
    assert report.problem_counts == {"mask_kind": 9}
    assert report.class_names == ["class_0", "class_1"]


def test_labels_by_which_classes_are_not_to_be_counted_are_listed(folder: Path) -> None:
    (folder / "classes.txt").unlink()
    path = folder / "labels/train/4.png"
    numbers = np.array(Image.open(path)).astype(np.uint16)
    for stray, kind in ((200, "unused_label"), (65535, "unknown_label")):
        numbers[3, 3] = stray
        Image.fromarray(numbers).save(path)
        report = check_segmentation(folder)
        assert report.problem_counts == {kind: 1}
        assert report.problems[0].file == "labels/train/4.png"
        assert f"ignore_index={stray}" in report.problems[0].detail
        assert len(report.class_names) == (201 if stray == 200 else 4)
        assert check_segmentation(folder, rule=LabelRule(stray)).problems == []


def test_rules_and_numbers_of_classes(folder: Path) -> None:
    (folder / "classes.txt").unlink()
    assert check_segmentation(folder).class_names == [f"class_{i}" for i in range(4)]
    few = check_segmentation(folder, num_classes=3)
    assert few.problem_counts == {"unknown_label": 9}
    assert few.splits["val"].unknown_images == {3: 3}
    ignored = check_segmentation(folder, num_classes=3, rule=LabelRule(3))
    assert ignored.problems == []
    assert ignored.splits["val"].num_ignored > few.splits["val"].num_ignored
    reduced = check_segmentation(folder, rule=LabelRule(None, True))
    assert reduced.problems == []
    pixels = check_segmentation(folder).splits["val"].class_pixels
    assert list(reduced.splits["val"].class_pixels.values()) == list(pixels.values())[1:]


def test_many_classes_and_odd_names_are_shown_in_lines(folder: Path) -> None:
    (folder / "classes.txt").write_text("".join(f"class \u202e{i:03d}\n" for i in range(100)))
    for number, path in enumerate(sorted(folder.rglob("labels/train/*.png"))):
        numbers = (np.arange(720).reshape(24, 30) + number) % 60
        Image.fromarray(numbers.astype(np.uint8)).save(path)
    lines = list(report_lines(check_segmentation(folder)))
    assert any("... 40 classes between ..." in line for line in lines)
    assert any("60 of 100 classes have pixels" in line for line in lines)
    assert any("without pixels: class \\u202e060" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_wrong_arguments_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="num_workers is not negative, got -1"):
        check_segmentation(folder, num_workers=-1)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        check_segmentation(folder / "missing")
