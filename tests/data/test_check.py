"""Checking a data set finds every planted problem with its path, and nothing else."""

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wavevit.data.check import check_dataset
from wavevit.data.check_report import PROBLEM_KINDS, CheckReport, printable, report_lines

WriteImages = Callable[..., None]
Found = set[tuple[str, tuple[str, ...]]]


def found(report: CheckReport) -> Found:
    return {(problem.kind, problem.paths) for problem in report.problems}


def png_header(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    return data + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + bytes(4) + b"IDAT" + bytes(12)


@pytest.fixture
def clean(tmp_path: Path, write_images: WriteImages) -> Path:
    root = tmp_path / "set"
    write_images(root, *(f"train/{c}/{i}.png" for c in ("cat", "dog") for i in range(4)))
    write_images(root, *(f"val/{c}/{i}.bmp" for c in ("cat", "dog") for i in range(2)), seed=1)
    return root


def test_a_clean_set_has_no_problems(clean: Path) -> None:
    report = check_dataset(clean)
    assert report.problems == []
    assert report.class_counts == {"train": {"cat": 4, "dog": 4}, "val": {"cat": 2, "dog": 2}}
    assert report.num_images == 12
    assert report.format_counts == {"PNG": 8, "BMP": 4}
    assert report.size_statistics["width"]["median"] == 40
    assert report.imbalance("train") == 1
    assert "no problems found" in list(report_lines(report))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_every_planted_problem_is_found_and_nothing_else(
    clean: Path, write_images: WriteImages, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    monkeypatch.setattr("wavevit.data.check.HUGE_PIXELS", 10**6)  # for the sake of the test's time
    train, val = clean / "train", clean / "val"
    good = (train / "cat" / "0.png").read_bytes()
    (train / "cat" / "cut.png").write_bytes(good[: len(good) // 2])
    (train / "cat" / "empty.jpg").touch()
    (train / "cat" / "text.jpg").write_text("no image")
    (train / "cat" / "bomb.png").write_bytes(png_header(50_000))
    (train / "cat" / "notes.txt").write_text("notes")
    (train / "cat" / ".hidden.txt").write_text("hidden")
    Image.open(train / "dog" / "0.png").rotate(7).save(train / "dog" / "wrong.jpg", "PNG")
    Image.open(train / "dog" / "0.png").rotate(8).save(train / "dog" / "picture.data", "PNG")
    shutil.copy(train / "cat" / "1.png", train / "cat" / "copy.png")
    Image.open(train / "cat" / "2.png").save(train / "cat" / "recoded.bmp")
    shutil.copy(train / "dog" / "1.png", train / "cat" / "is_a_dog.png")
    Image.open(train / "dog" / "2.png").save(val / "dog" / "leaked.bmp")
    Image.new("RGB", (31, 40), "red").save(train / "dog" / "tiny.png")
    Image.new("L", (1100, 1000)).save(train / "dog" / "huge.png")
    (train / "bird").mkdir()
    write_images(clean, "val/fox/9.png", "train/stray.png", seed=2)
    report = check_dataset(clean, num_workers=num_workers)
    assert found(report) == {
        ("unreadable", ("train/cat/cut.png",)),
        ("unreadable", ("train/cat/empty.jpg",)),
        ("unreadable", ("train/cat/text.jpg",)),
        ("not_image", ("train/cat/notes.txt",)),
        ("extension", ("train/dog/wrong.jpg",)),
        ("extension", ("train/dog/picture.data",)),
        ("duplicate", ("train/cat/1.png", "train/cat/copy.png")),
        ("duplicate", ("train/cat/2.png", "train/cat/recoded.bmp")),
        ("conflict", ("train/cat/is_a_dog.png", "train/dog/1.png")),
        ("leakage", ("train/dog/2.png", "val/dog/leaked.bmp")),
        ("tiny", ("train/dog/tiny.png",)),
        ("huge", ("train/dog/huge.png",)),
        ("huge", ("train/cat/bomb.png",)),
        ("empty_class", ("train/bird",)),
        ("unknown_class", ("val/fox",)),
        ("misplaced", ("train/stray.png",)),
    }
    # Every kind was planted, but for the one that only tar shards have.
    assert set(report.problem_counts) == set(PROBLEM_KINDS) - {"shard"}
    details = {problem.paths: problem.detail for problem in report.problems}
    assert details["train/cat/1.png", "train/cat/copy.png"] == "same file content"
    assert details["train/cat/2.png", "train/cat/recoded.bmp"] == "same pixels in different files"
    assert "zero bytes" in details["train/cat/empty.jpg",]
    assert details["train/cat/is_a_dog.png", "train/dog/1.png"] == "labelled cat, dog"
    text = "\n".join(report_lines(report))
    for problem in report.problems:
        assert all(path in text for path in problem.paths)
    assert f"{len(report.problems)} problems found" in text


def test_one_picture_may_be_duplicate_leakage_and_conflict(clean: Path) -> None:
    source = clean / "train" / "cat" / "0.png"
    for copy in ("train/cat/x.png", "train/dog/x.png", "val/cat/x.png"):
        shutil.copy(source, clean / copy)
    every = ("train/cat/0.png", "train/cat/x.png", "train/dog/x.png", "val/cat/x.png")
    assert found(check_dataset(clean)) == {
        ("conflict", every),
        ("leakage", every),
        ("duplicate", every[:2]),
    }


def test_one_folder_of_classes(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, "a/1.png", "a/2.png", "a/3.png", "b/x/1.png")
    report = check_dataset(tmp_path)
    assert report.problems == []
    assert report.class_counts == {"all": {"a": 3, "b": 1}}
    assert report.imbalance("all") == 3


def test_csv_conflicts_and_leaks(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, *(f"{number}.png" for number in range(5)))
    lines = ["path,label,split", "0.png,cat,train", "1.png,dog,train", "0.png,dog,train"]
    lines += ["2.png,dog,train", "2.png,dog,val", "3.png,cat,val", "gone.png,cat,val"]
    lines += ["4.png,dog,val", "4.png,dog,val"]
    csv_path = tmp_path / "labels.csv"
    csv_path.write_text("\n".join(lines))
    report = check_dataset(csv_path)
    assert found(report) == {
        ("conflict", ("0.png", "0.png")),
        ("leakage", ("2.png", "2.png")),
        ("duplicate", ("4.png", "4.png")),
        ("unreadable", ("gone.png",)),
    }
    assert report.class_counts["val"] == {"cat": 2, "dog": 3}


def test_equal_bytes_of_other_shape_are_no_duplicates(tmp_path: Path) -> None:
    for name, size in (("a", (40, 50)), ("b", (50, 40))):
        (tmp_path / name).mkdir()
        Image.new("RGB", size).save(tmp_path / name / "1.png")
    assert check_dataset(tmp_path).problems == []


def test_order_and_progress_do_not_depend_on_the_workers(clean: Path) -> None:
    (clean / "val" / "cat" / "x.png").touch()
    calls: list[tuple[int, int, int]] = []
    report = check_dataset(clean, num_workers=4, on_progress=lambda *numbers: calls.append(numbers))
    assert [done for done, _, _ in calls] == list(range(1, 14))
    assert {total for _, total, _ in calls} == {13}
    assert calls[-1][2] == 1
    assert report.as_dict() == check_dataset(clean, num_workers=0).as_dict()


def test_mutated_files_are_all_listed(clean: Path) -> None:
    good = (clean / "train" / "cat" / "0.png").read_bytes()
    stream = io.BytesIO()
    Image.new("RGB", (40, 40), "teal").save(stream, "JPEG")
    jpeg, rng = stream.getvalue(), np.random.default_rng(0)
    planted = set()
    for number in range(60):
        source = good if number % 2 else jpeg
        data = (source[: int(rng.integers(1, len(source) // 2))], rng.bytes(300), b"")[number % 3]
        name = f"train/dog/bad_{number}.{'png' if number % 2 else 'jpg'}"
        (clean / name).write_bytes(data)
        planted.add(("unreadable", (name,)))
    assert found(check_dataset(clean)) == planted


def test_many_classes_are_shortened_in_the_text_only() -> None:
    counts = {"all": {f"class{number:03d}": number + 1 for number in range(200)}}
    report = CheckReport("set", "folders", counts)
    lines = list(report_lines(report))
    assert any("180 classes between" in line for line in lines)
    assert len(report.as_dict()["class_counts"]["all"]) == 200


def test_odd_file_names_are_shown_escaped() -> None:
    assert printable("a\nb\x1b[31m\udcff é.png") == "a\\nb\\x1b[31m\\udcff é.png"


def test_wrong_usage_is_named(tmp_path: Path, clean: Path) -> None:
    with pytest.raises(ValueError, match="'shapes' is generated"):
        check_dataset("shapes")
    with pytest.raises(ValueError, match="num_workers is not negative, got -1"):
        check_dataset(clean, num_workers=-1)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        check_dataset(tmp_path / "missing")
    (tmp_path / "x.csv").write_text("path,label\n")
    with pytest.raises(ValueError, match="no files to check"):
        check_dataset(tmp_path / "x.csv")
