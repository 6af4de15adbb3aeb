"""Training a classifier, in process: freezing, stopping, broken files, and what a run leaves."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import wavevit
from wavevit.cli.main import main
from wavevit.models.card import read_card
from wavevit.training.classification import ClassificationTask
from wavevit.training.classification_settings import (
    Augmentation,
    ClassificationData,
    Classifier,
)

Train = Callable[..., int]


@pytest.fixture
def train(image_folder: Path, tmp_path: Path) -> Train:
    """`train("--option", ...)`: a short run in ``tmp_path/run`` on the tiny folder; exit code."""

    def run(*options: str, data: Path = image_folder, output: str = "run") -> int:
        settings = {
            "--data": str(data),
            "--model": "wavevit_test",
            "--output": str(tmp_path / output),
            "--data.image-size": "32",
            "--data.batch-size": "8",
            "--data.num-workers": "0",
            "--optim.epochs": "2",
            "--optim.warmup-epochs": "0",
            "--trainer.log-every": "1",
        }
        words = [word for item in settings.items() for word in item]
        return main(["train", "classification", *words, *options])

    return run


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [row for line in lines if (row := json.loads(line))["kind"] == kind]


def test_a_run_learns_and_leaves_what_the_design_promises(train: Train, tmp_path: Path) -> None:
    assert train("--optim.epochs", "12", "--optim.lr", "3e-3", "--trainer.evaluate-every", "4") == 0
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
        "report.md",
    }
    assert rows(run, "evaluation")[-1]["top1"] == 1.0  # red and blue are not hard
    card = read_card(run / "best.safetensors")
    assert card is not None
    assert (card.model, card.class_names) == ("wavevit_test", ["blue", "red"])
    assert card.metrics["top1"] == 1.0
    assert len(rows(run, "train")) == 45  # ceil(12 epochs x 30 images / 8)


def test_the_resolved_config_repeats_the_run_bit_for_bit(train: Train, tmp_path: Path) -> None:
    assert train("--augment.mixup", "0.8", "--seed", "5") == 0
    config = tmp_path / "run" / "config.yaml"
    again = ["train", "classification", "--config", str(config), "--output", str(tmp_path / "b")]
    assert main(again) == 0
    losses = [[row["loss"] for row in rows(tmp_path / name, "train")] for name in ("run", "b")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "pvt_v2_b0"],
        ["--model", "test_vit"],
        ["--trainer.precision", "bf16"],
        ["--trainer.precision", "bf16-true"],
        ["--trainer.ema-decay", "0.9", "--trainer.clip-grad", "1"],
        ["--optim.layer-decay", "0.7", "--model.drop-path-rate", "0.1"],
        ["--model.grad-checkpointing", "--trainer.accumulate", "2"],
        ["--augment.cutmix", "1", "--augment.random-erasing", "0.5", "--augment.repeats", "3"],
        ["--model.args.global_pool", "avg"],
    ],
    ids=lambda options: " ".join(options),
)
def test_options_train(options: list[str], train: Train, tmp_path: Path) -> None:
    assert train("--optim.epochs", "0.5", *options) == 0
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path / "run", "train"))
    assert wavevit.models.weights.load_model(tmp_path / "run")[1].class_names == ["blue", "red"]


def test_a_frozen_backbone_does_not_move_batch_statistics_included(
    train: Train, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source = timm.create_model("wavevit_test", num_classes=9)
    torch.save(source.state_dict(), tmp_path / "start.pth")
    options = ["--model.weights", str(tmp_path / "start.pth"), "--model.freeze", "backbone"]
    assert train(*options, "--optim.lr", "1e-2") == 0
    model, _ = wavevit.models.weights.load_model(tmp_path / "run")
    for name, value in source.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(model.state_dict()[name], value), name


def test_accumulated_small_batches_give_the_gradients_of_the_large_one(
    image_folder: Path,
) -> None:
    """In evaluation mode of BatchNorm, whose statistics would see smaller batches."""
    data = ClassificationData(str(image_folder), image_size=32, batch_size=8, num_workers=0)
    task = ClassificationTask(data, Augmentation(), Classifier("wavevit_test"), 0)
    torch.manual_seed(0)
    model = task.build_model().double().eval()
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    gradients = []
    for batch_size in (8, 4):
        task.batch_size = batch_size
        model.zero_grad()
        passes = 8 // batch_size
        for batch in task.train_batches(fabric, start=0, stop=1, accumulate=passes, timeout_s=0):
            batch.images = batch.images.double()
            (task.loss(fabric, model, batch) / passes).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_patience_ends_a_run_that_no_longer_improves(train: Train, tmp_path: Path) -> None:
    options = ["--optim.lr", "1e-12", "--optim.warmup-lr", "1e-12", "--optim.min-lr", "1e-12"]
    options += ["--optim.epochs", "20", "--trainer.patience", "2"]
    assert train(*options) == 0
    scores = [row["top1"] for row in rows(tmp_path / "run", "evaluation")]
    assert len(scores) < 20
    assert len(scores) - 1 - scores.index(max(scores)) == 2
    assert "Stopped early" in (tmp_path / "run" / "report.md").read_text()
    assert train(*options, "--resume") == 0  # an ended run stays ended
    assert len(rows(tmp_path / "run", "evaluation")) == len(scores)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_samples(
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = ClassificationTask.loss
    calls = []

    def poisoned(self: Any, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        loss = original(self, *arguments)
        return loss * float("nan") if len(calls) == 4 else loss

    monkeypatch.setattr(ClassificationTask, "loss", poisoned)
    assert train() == 3
    error = capsys.readouterr().err
    assert "the loss is nan at step 4 on samples" in error
    assert "train/" in error
    assert error.count("\n") == 1
    assert len(rows(tmp_path / "run", "train")) == 3


def test_a_finished_run_whose_best_network_is_lost_gets_it_back(
    train: Train, tmp_path: Path
) -> None:
    """From the weights of its last checkpoint."""
    assert train() == 0
    best = tmp_path / "run" / "best.safetensors"
    best.unlink()
    assert train("--resume") == 0
    assert best.is_file()


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_a_run(tmp_path: Path, image_folder: Path) -> None:
    words = ["--data", str(image_folder), "--model", "wavevit_test", "--output", "run"]
    words += ["--data.image-size", "32", "--data.num-workers", "0", "--optim.epochs", "1"]
    command = " ".join([sys.executable, "-m", "wavevit", "train", "classification", *words])
    done = subprocess.run(
        f"{command} --optim.warmup-epochs 0 | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_resuming_with_other_settings_is_refused_and_named(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    config = (tmp_path / "run" / "config.yaml").read_text()
    capsys.readouterr()
    assert train("--resume", "--optim.lr", "0.5") == 2
    assert (tmp_path / "run" / "config.yaml").read_text() == config
    assert "optim.lr was 0.001, is 0.5" in capsys.readouterr().err
    assert train("--resume", "--data.num-workers", "1") == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.args.token_label", "true"], "model.args cannot set token_label"),
        (["--token-label.maps", "nowhere"], "token_label.maps names no folder"),
        (["--token-label.maps", ".", "--token-label.teacher", "resnet18"], "not both"),
        (["--token-label.maps", ".", "--augment.mixup", "1"], "set augment.mixup"),
        (["--token-label.maps", ".", "--data.batch-size", "7"], "must be even, got 7"),
        (["--token-label.maps", ".", "--model", "resnet18"], "one of wavevit_*, got resnet18"),
        (["--token-label.maps", ".", "--model.freeze", "backbone"], "set model.freeze to none"),
        (["--token-label.teacher", "resnet18"], "needs its weights"),
        (["--token-label.maps", ".", "--token-label.cls-weight", "-1"], "token_label.cls_weight"),
        (["--distill.teacher", "resnet18"], "needs its weights"),
        (["--distill.weights", "nowhere.pth"], "distill.weights names no file"),
        (["--distill.weight", "2"], "distill.weight must be in [0, 1]"),
        (["--trainer.images-per-step", "9"], "choose a batch size that divides it"),
        (["--trainer.images-per-step", "8", "--trainer.accumulate", "2"], "not both"),
        (["--trainer.timeout-s", "0"], "trainer.timeout_s must be above 0"),
        (["--model.args.num_classes", "7"], "it follows from the data"),
        (["--model.pretrained"], "cannot build wavevit_test"),
        (["--augment.mixup", "-1"], "augment.mixup must be at least 0"),
        (["--optim.min-lr", "-1"], "optim.min_lr must be at least 0"),
        (["--model.drop-path-rate", "3"], "model.drop_path_rate must be in [0, 1)"),
        (["--model", "inception_v3"], "inception_v3 cannot run on 32 x 32 images"),
        (["--seed", "-1"], "--seed must be in"),
        (["--output", "", "--resume"], "--output is empty"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_settings_that_cannot_work_are_refused_before_the_run(
    options: list[str], words: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.splitlines()[-1].startswith("wavevit: error: ")


def test_a_file_name_that_is_not_utf8_does_not_spoil_the_report(
    image_folder: Path, train: Train, tmp_path: Path
) -> None:
    import os

    root = tmp_path / "odd"
    shutil.copytree(image_folder, root)
    with open(os.fsencode(root / "train" / "red") + b"/bad\xff.png", "wb") as file:
        file.write(b"junk")
    assert train(data=root) == 0
    assert b"bad\xff.png" in (tmp_path / "run" / "report.md").read_bytes()


def test_a_finished_run_is_not_overwritten(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    assert train() == 2
    assert "already holds a run" in capsys.readouterr().err


def test_200_broken_files_are_replaced_and_each_is_listed(train: Train, tmp_path: Path) -> None:
    """Truncated, empty, random, mislabelled by extension, or with a header of 50,000 x 50,000."""
    rng = np.random.default_rng(0)
    root = tmp_path / "broken"
    for split, count in (("train", 40), ("val", 3)):
        for name, channel in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 100, (36, 40, 3), np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(root / split / name / f"{number}.jpg")
    whole = (root / "train/red/0.jpg").read_bytes()
    giant = b"BM" + bytes(8) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    giant += (50_000).to_bytes(4, "little") * 2 + b"\1\0\x18\0" + bytes(24)
    contents = [
        lambda: whole[: int(rng.integers(1, len(whole) - 2))],
        lambda: b"",
        lambda: rng.bytes(500),
        lambda: b"<html>not a picture</html>",
        lambda: giant,
    ]
    planted = set()
    for number in range(200):
        name = f"bad_{number}.{('jpg', 'png', 'bmp')[number % 3]}"
        (root / "train" / "red" / name).write_bytes(contents[number % 5]())
        planted.add(f"train/red/{name}")
    assert train("--optim.epochs", "1", data=root) == 0
    report = (tmp_path / "run" / "report.md").read_text()
    assert "## 200 training files could not be read and were replaced" in report
    assert {name for name in planted if f"`{name}`" not in report} == set()


def test_unreadable_validation_files_stop_a_run_at_its_start_if_the_user_chose_them(
    image_folder: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(image_folder, root)
    (root / "val" / "red" / "1.png").write_bytes(b"")
    assert train(data=root) == 2
    error = capsys.readouterr().err
    assert "1 of 8 validation images cannot be read" in error
    assert "1.png" in error


def test_unreadable_files_that_we_held_out_are_left_out_and_listed(
    image_folder: Path, train: Train, tmp_path: Path
) -> None:
    root = tmp_path / "one"
    shutil.copytree(image_folder / "train", root)
    for number in range(8):
        (root / "red" / f"bad{number}.png").write_bytes(b"")
    assert train("--data.val-fraction", "0.5", data=root) == 0
    report = (tmp_path / "run" / "report.md").read_text()
    assert "files held out for validation could not be read" in report
    listed = report.count("bad")
    assert listed >= 8
