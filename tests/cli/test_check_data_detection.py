"""`wavevit check-data` on annotated images."""

import json
from pathlib import Path

import pytest
from PIL import Image

from wavevit.cli.main import main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    (root / "images/train").mkdir(parents=True)
    (root / "labels/train").mkdir(parents=True)
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (40, 30), colour).save(root / f"images/train/{name}.png")
    (root / "labels/train/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat]\n")
    return root


def test_the_layout_is_found_and_the_exit_code_tells(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "data.yaml").write_text("train: images/train\nnames: [cat]\n")
    assert main(["check-data", str(data)]) == 0
    output = capsys.readouterr().out
    assert "2 images, 1 without objects; 1 objects" in output
    assert "no problems found" in output
    (data / "labels/train/b.txt").write_text("1 0.5 0.5 0.5 0.5\n0 2 2 1 1\n")
    target = tmp_path / "report.json"
    assert main(["check-data", "--data", str(data), "--json", str(target)]) == 1
    output = capsys.readouterr().out
    assert "labels/train/b.txt, line 1: the class 1 is not among the 1 named ones" in output
    assert "2 problems found: 2 errors, 0 warnings (1 unknown_category, 1 box_outside)" in output
    assert json.loads(target.read_text())["problem_counts"] == {
        "unknown_category": 1,
        "box_outside": 1,
    }


def test_the_task_can_be_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(data), "--task", "classification"]) == 1
    assert "empty_class: 1" in capsys.readouterr().out  # "labels" beside "images"
    assert main(["check-data", str(data), "--task", "detection", "--format", "voc"]) == 2
    assert "expected the folders Annotations and JPEGImages" in capsys.readouterr().err


def test_the_data_is_named_once(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data"]) == 2
    assert "expected one data set to check: wavevit check-data DATA" in capsys.readouterr().err
    assert main(["check-data", str(data), "--data", str(data)]) == 2
