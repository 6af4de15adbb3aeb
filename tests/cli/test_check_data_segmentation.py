"""`wavevit check-data` on images with masks."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wavevit.cli.main import main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    labels = np.arange(40 * 30).reshape(30, 40) % 4
    for split, colours in (("train", ("red", "blue")), ("val", ("green",))):
        for number, colour in enumerate(colours):
            for kind in ("images", "labels"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), colour).save(root / f"images/{split}/{number}.png")
            Image.fromarray(labels.astype(np.uint8)).save(root / f"labels/{split}/{number}.png")
    (root / "classes.txt").write_text("cat\ndog\nant\nbee\n")
    return root


def test_the_layout_is_found_and_the_exit_code_tells(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-data", str(data)]) == 0
    output = capsys.readouterr().out
    assert "2 images with masks, 2,400 pixels, 0.00 % of them ignored" in output
    assert "25.00 %        2  ant" in output
    assert "no problems found" in output
    Image.open(data / "labels/val/0.png").convert("RGB").save(data / "labels/val/0.png")
    (data / "labels/train/1.png").unlink()
    target = tmp_path / "report.json"
    assert main(["check-data", "--data", str(data), "--json", str(target)]) == 1
    output = capsys.readouterr().out
    assert "labels/val/0.png: expected a PNG of one channel whose pixels are numbers" in output
    assert "images/train/1.png: no mask labels/train/1.png" in output
    assert "2 problems found: 2 errors, 0 warnings (1 missing_mask, 1 mask_kind)" in output
    assert json.loads(target.read_text())["problem_counts"] == {"missing_mask": 1, "mask_kind": 1}


def test_labels_that_are_ignored_are_no_errors(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "classes.txt").write_text("cat\ndog\nant\n")
    assert main(["check-data", str(data)]) == 1
    assert "label 3 in 300 pixels; the 3 classes are 0 to 2; ignore_index=3" in (
        capsys.readouterr().out
    )
    assert main(["check-data", str(data), "--ignore-index", "3"]) == 0
    assert "25.00 % of them ignored" in capsys.readouterr().out
    assert main(["check-data", str(data), "--reduce-zero-label"]) == 0


def test_folders_and_endings_can_be_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "labels").rename(data / "truth")
    for path in data.glob("truth/*/*.png"):
        path.rename(path.with_name(f"{path.stem}_id.png"))
    arguments = ["check-data", str(data), "--mask-folder", "truth"]
    assert main([*arguments, "--mask-suffix", "_id.png"]) == 0
    assert main([*arguments, "--num-classes", "7"]) == 2
    assert "num_classes is 7, but there are 4 classes" in capsys.readouterr().err


def test_the_task_can_be_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(data), "--task", "segmentation"]) == 0
    assert main(["check-data", str(data), "--task", "classification"]) == 1
    capsys.readouterr()
    wrong = ["--task", "detection", "--ignore-index", "3"]
    assert main(["check-data", str(data), *wrong]) == 2
    assert "options of label masks are given, but the task is detection" in capsys.readouterr().err
    assert main(["check-data", str(data), "--task", "segmentation", "--format", "coco"]) == 2
    assert main(["check-data", str(data / "images"), "--task", "segmentation"]) == 2
    assert "no images with masks in" in capsys.readouterr().err
