"""Training a segmenter: what a run leaves, resuming, weights to start from, and refusals."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wavevit.cli.main import main
from wavevit.models.card import ModelCard, save_model
from wavevit.segmentation.card import load_segmenter
from wavevit.training import segmentation_report
from wavevit.training.checkpoint import load_checkpoint, newest_checkpoint
from wavevit.training.segmentation import SegmentationTask

Train = Callable[..., int]

STILL = ["--optim.lr", "1e-12", "--optim.min-lr", "1e-12", "--optim.weight-decay", "0"]
"""Options with which weights stay as they are."""


@pytest.fixture
def train(masks_folder: Path, tmp_path: Path) -> Train:
    """`train("--option", ...)`: a run of 3 steps in ``tmp_path/run`` on tiny images; exit code."""

    def run(*options: str, data: Path = masks_folder, output: str = "run") -> int:
        settings = {
            "--data": str(data),
            "--backbone": "wavevit_test",
            "--output": str(tmp_path / output),
            "--model.heads": "narrow",
            "--data.short-edge": "48",
            "--data.long-edge": "64",
            "--data.batch-size": "2",
            "--data.num-workers": "0",
            "--augment.crop-size": "[32, 48]",
            "--optim.epochs": "1",
            "--optim.warmup-epochs": "0",
            "--trainer.log-every": "1",
        }
        words = [word for item in settings.items() for word in item]
        return main(["train", "segmentation", *words, *options])

    return run


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("write_samples", "write_pictures"):
        monkeypatch.setattr(segmentation_report, name, lambda *_: None)


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [row for line in lines if (row := json.loads(line))["kind"] == kind]


def test_a_run_leaves_what_the_design_promises(train: Train, tmp_path: Path) -> None:
    assert train("--model.options.dice_weight", "0.5") == 0
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} >= {
        "config.yaml",
        "log.jsonl",
        "tensorboard",
        "checkpoints",
        "best.safetensors",
        "curves.png",
        "samples.png",
        "predictions.png",
        "class_iou.png",
        "confusion.png",
        "report.md",
    }
    steps = rows(run, "train")
    assert len(steps) == 3
    for row in steps:
        parts = {name for name in row if name.startswith("loss_")}
        assert parts == {"loss_decode_ce", "loss_decode_dice", "loss_aux_ce"}
        assert sum(row[name] for name in parts) == pytest.approx(row["loss"], rel=1e-6)
    numbers = rows(run, "evaluation")[-1]
    assert numbers["score"] == numbers["mean_iou"]
    segmenter, card = load_segmenter(run)
    assert segmenter.num_classes == 10
    assert (card.segmenter, card.backbone, card.short_edge) == ("upernet", "wavevit_test", 48)
    assert card.class_names[0] == "background"
    assert len(card.palette) == 10
    assert card.metrics["mean_iou"] == numbers["mean_iou"]
    report = (run / "report.md").read_text()
    assert "| class | share of pixels | IoU | accuracy |" in report


@pytest.mark.usefixtures("no_pictures")
def test_a_stopped_and_resumed_run_equals_a_whole_one_bit_for_bit(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that draws numbers is on: sizes, crops, flips, colours, drop path, dropout."""
    options = ["--model.drop-path-rate", "0.2", "--optim.epochs", "2"]
    options += ["--trainer.ema-decay", "0.9", "--model.batch-norm", "trained"]
    assert train(*options, output="whole") == 0
    steps: list[int] = []
    loss = SegmentationTask.loss

    def stop_at_third(*arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(*arguments)

    monkeypatch.setattr(SegmentationTask, "loss", stop_at_third)
    assert train(*options) == 75
    assert train(*options, "--resume") == 0
    found, whole = (
        load_checkpoint(path)
        for folder in ("run", "whole")
        if (path := newest_checkpoint(tmp_path / folder / "checkpoints")) is not None
    )
    for part in ("model", "ema", "optimizer"):
        torch.testing.assert_close(found[part], whole[part], rtol=0, atol=0)


@pytest.mark.usefixtures("no_pictures")
def test_weights_of_a_classifier_fill_the_backbone(train: Train, tmp_path: Path) -> None:
    torch.manual_seed(3)
    card = ModelCard("wavevit_test", {"num_classes": 4})
    classifier = card.build()
    save_model(tmp_path / "classifier.safetensors", classifier.state_dict(), card)
    weights = ["--model.weights", str(tmp_path / "classifier.safetensors")]
    assert train(*weights, *STILL) == 0
    segmenter, _ = load_segmenter(tmp_path / "run")
    ours = segmenter.state_dict()
    # timm's feature networks name stages in their own way.
    queries = {
        f"network.backbone.body.{name.replace('stages.', 'stages_')}": value
        for name, value in classifier.state_dict().items()
        if name.startswith("stages.") and name.endswith("attn.q.weight")
    }
    assert queries
    for name, value in queries.items():
        torch.testing.assert_close(ours[name], value, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("no_pictures")
def test_weights_of_a_segmenter_go_on_with_other_classes(
    train: Train, tmp_path: Path, masks_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train() == 0
    other = tmp_path / "other"
    shutil.copytree(masks_folder, other)
    for path in (other / "labels").rglob("*.png"):
        labels = np.asarray(Image.open(path))
        Image.fromarray((labels > 0).astype(np.uint8)).save(path)
    (other / "classes.txt").write_text("ground\nthing\n")
    weights = ["--model.weights", str(tmp_path / "run" / "best.safetensors")]
    assert train(*weights, *STILL, data=other, output="more") == 0
    assert "dropped" in caplog.text
    before, after = (load_segmenter(tmp_path / name)[0] for name in ("run", "more"))
    assert after.num_classes == 2
    name = "network.head.fusion"
    kept = {n: v for n, v in before.state_dict().items() if n.startswith(name) and "weight" in n}
    assert kept
    for entry, value in kept.items():
        torch.testing.assert_close(after.state_dict()[entry], value, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("no_pictures")
def test_images_are_held_out_where_there_is_no_split(
    train: Train, tmp_path: Path, masks_folder: Path
) -> None:
    flat = tmp_path / "flat"
    for kind in ("images", "labels"):
        shutil.copytree(masks_folder / kind / "train", flat / kind)
    shutil.copy(masks_folder / "classes.txt", flat)
    assert train("--data.val-fraction", "0.34", data=flat) == 0
    report = (tmp_path / "run" / "report.md").read_text()
    assert "2 held out for validation" in report
    assert "--val-fraction 0.34 --split-seed 0" in report


@pytest.mark.usefixtures("no_pictures")
def test_options_of_the_loss_and_thin_images_train_and_are_evaluated_alike(
    train: Train, tmp_path: Path, masks_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class weights, OHEM and Dice; images that are resized to less than a segmenter takes."""
    thin = tmp_path / "thin"
    shutil.copytree(masks_folder, thin)
    for kind in ("images", "labels"):
        for path in (thin / kind / "val").iterdir():
            with Image.open(path) as picture:
                picture.resize((200, 20), Image.Resampling.NEAREST).save(path)
    options = ["--model.options.class_weights", str([1.0] + 9 * [2.0])]
    options += ["--model.options.ohem_threshold", "0.7", "--model.options.ohem_min_kept", "50"]
    options += ["--model.options.dice_weight", "1", "--data.ignore-index", "3"]
    (thin / "classes.txt").unlink()
    assert train(*options, "--data.num-classes", "10", data=thin) == 0
    logged = rows(tmp_path / "run", "evaluation")[-1]["mean_iou"]
    capsys.readouterr()
    words = ["evaluate", "--checkpoint", str(tmp_path / "run"), "--data", str(thin)]
    output = tmp_path / "out"
    assert main([*words, "--num-workers", "0", "--output", str(output)]) == 0
    found = json.loads((output / "metrics.json").read_text())["metrics"]["mean_iou"]
    assert found == pytest.approx(logged, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "upernet"], "name the network with --backbone"),
        (["--segmenter", "deeplab"], "expected a segmenter of upernet"),
        (["--backbone", "wavevit_x"], "timm has no model named 'wavevit_x'"),
        (["--model.options.channel", "8"], "did you mean channels"),
        (["--model.options.num_classes", "8"], "it follows from the data"),
        (["--model.options.class_weights", "abc"], "must be a list of 10 numbers from 0 on"),
        (["--model.options.class_weights", "[1, 2]"], "must be a list of 10 numbers from 0 on"),
        (["--model.options.dropout", "2"], "dropout must be a number in [0, 1]"),
        (["--model.weights", "nowhere.pth"], "model.weights names no file"),
        (["--data.short-edge", "16"], "data.short_edge must be at least 32"),
        (["--augment.crop-size", "[16, 32]"], "augment.crop_size must be at least 32 x 32"),
        (["--augment.scales", "[2, 1]"], "augment: expected a range"),
        (["--data.ignore-index", "70000"], "ignore_index"),
        (["--data.val-split", "train"], "are both 'train'"),
        (["--data.num-classes", "4"], "num_classes is 4, but there are 10"),
        (["--data.batch-size", "1"], "needs at least 2 images a process"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line_and_code_2(
    options: list[str], words: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*options) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("error:") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda labels: labels[:32], "0.png"),
        (lambda labels: np.stack([labels] * 3, -1), "0.png"),
        (lambda labels: np.where(labels == 0, 77, labels).astype(np.uint8), "77"),
    ],
    ids=["size", "rgb", "unknown label"],
)
def test_bad_masks_are_one_line_that_names_the_file(
    spoil: Callable[[Any], Any],
    words: str,
    train: Train,
    masks_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(masks_folder, bad)
    path = bad / "labels/train/0.png"
    Image.fromarray(spoil(np.array(Image.open(path)))).save(path)
    assert train(data=bad) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "labels/train/0.png" in err
    assert err.count("error:") == 1
    assert main(["check-data", str(bad), "--task", "segmentation"]) == 1
    assert "labels/train/0.png" in capsys.readouterr().out
