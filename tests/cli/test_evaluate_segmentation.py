"""`wavevit evaluate` with a segmenter: the numbers of a plain count, for any processes."""

import csv
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import wavevit.cli.segmentation_evaluation_files  # what a run imports: once, before the forks
import wavevit.training.processes  # noqa: F401
from wavevit.cli.main import main
from wavevit.data.segmentation.shapes import SegmentationShapes
from wavevit.segmentation.inference import SegmentationPredictor

CLASSES = SegmentationShapes("val", num_images=1).class_names


@pytest.fixture(scope="module")
def model(save_segmenter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_segmenter(tmp_path_factory.mktemp("model") / "model.safetensors", CLASSES)


def plain_confusion(model: Path, folder: Path, ignore: int | None = None) -> Any:
    """Pixels by true and predicted class, counted one by one."""
    predictor = SegmentationPredictor.load(model)
    confusion = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for path in sorted((folder / "images/val").iterdir()):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        found = predictor([pixels])[0].labels.numpy()
        truth = np.array(Image.open(folder / "labels/val" / path.name))
        for t, p in zip(truth.ravel().tolist(), found.ravel().tolist(), strict=True):
            if t not in (255, ignore):
                confusion[t, p] += 1
    return confusion


@pytest.mark.parametrize("ignore", [None, 0])
def test_numbers_are_those_of_a_plain_count(
    ignore: int | None,
    model: Path,
    masks_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    words = ["evaluate", "--checkpoint", str(model), "--data", str(masks_folder)]
    words += ["--num-workers", "0", "--output", str(output)]
    words += [] if ignore is None else ["--ignore-index", str(ignore)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "3 images, 10 classes" in out
    confusion = plain_confusion(model, masks_folder, ignore)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    iou = np.diag(confusion)[union > 0] / union[union > 0]
    content = json.loads((output / "metrics.json").read_text())
    assert content["metrics"]["mean_iou"] == pytest.approx(iou.mean(), abs=1e-12)
    right = np.trace(confusion) / confusion.sum()
    assert content["metrics"]["pixel_accuracy"] == pytest.approx(right, abs=1e-12)
    assert f"{100 * iou.mean():.2f} %" in out
    table = list(csv.reader((output / "confusion.csv").read_text().splitlines()))
    np.testing.assert_array_equal([[int(n) for n in row[1:]] for row in table[1:]], confusion)
    for name in ("class_iou.png", "confusion.png", "predictions.png", "per_image.csv"):
        assert (output / name).stat().st_size > 100
    assert main(words) == 2
    assert "pass --overwrite" in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork")
def test_two_processes_write_the_same_bytes(
    fork: Callable[..., Any], model: Path, masks_folder: Path, tmp_path: Path
) -> None:
    """Three images, which two cannot share evenly, seen in windows and mirrored."""
    words = ["evaluate", "--checkpoint", model, "--data", masks_folder, "--num-workers", 0]
    words += ["--window", 48, "--flip", "--overwrite"]
    contents = {}
    for processes in (1, 2):
        output = tmp_path / str(processes)
        launched = {
            "TORCHELASTIC_RUN_ID": "test",
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        commands = [
            fork(
                *words,
                "--output",
                output,
                environment={**launched, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                if processes > 1
                else {},
            )
            for rank in range(processes)
        ]
        assert [command.wait() for command in commands] == [0] * processes, [
            command.stderr() for command in commands
        ]
        contents[processes] = {path.name: path.read_bytes() for path in output.iterdir()}
    assert contents[1].keys() == contents[2].keys()
    assert all(contents[1][name] == contents[2][name] for name in contents[1])


def test_the_built_in_set_and_held_out_images(
    model: Path, masks_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = tmp_path / "flat"
    for kind in ("images", "labels"):
        (flat / kind).mkdir(parents=True)
        for path in (masks_folder / kind / "train").iterdir():
            (flat / kind / path.name).write_bytes(path.read_bytes())
    (flat / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    words = ["evaluate", "--checkpoint", str(model), "--num-workers", "0"]
    assert main([*words, "--data", str(flat), "--val-fraction", "0.5"]) == 0
    assert "3 images, 10 classes" in capsys.readouterr().out
    assert main([*words, "--data", str(flat), "--split", "test"]) == 2
    assert "no split 'test'" in capsys.readouterr().err


def test_other_classes_are_refused(
    save_segmenter: Callable[..., Path],
    masks_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = save_segmenter(tmp_path / "m.safetensors", [*CLASSES[:-1], "other"])
    assert main(["evaluate", "--checkpoint", str(model), "--data", str(masks_folder)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "other" in err
