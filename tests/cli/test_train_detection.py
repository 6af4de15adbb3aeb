"""Training a detector: what a run leaves, resuming, weights to start from, and refusals."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from wavevit.cli import train_detection
from wavevit.cli.main import main
from wavevit.detection.card import load_detector
from wavevit.models.card import ModelCard, save_model
from wavevit.training import detection_report
from wavevit.training.checkpoint import list_checkpoints, load_checkpoint
from wavevit.training.detection import DetectionTask

Train = Callable[..., int]

STILL = ["--optim.lr", "1e-12", "--optim.min-lr", "1e-12", "--optim.weight-decay", "0"]
"""Options with which weights stay as they are."""


@pytest.fixture
def train(shapes_folder: Path, tmp_path: Path) -> Train:
    """`train("--option", ...)`: a run of 2 steps in ``tmp_path/run`` on tiny images; exit code."""

    def run(*options: str, data: Path = shapes_folder, output: str = "run") -> int:
        settings = {
            "--data": str(data),
            "--detector": "atss",
            "--backbone": "wavevit_test",
            "--output": str(tmp_path / output),
            "--model.heads": "narrow",
            "--data.short-edge": "64",
            "--data.long-edge": "64",
            "--data.batch-size": "2",
            "--data.eval-batch-size": "3",
            "--data.num-workers": "0",
            "--optim.epochs": "1",
            "--optim.warmup-epochs": "0",
            "--trainer.log-every": "1",
        }
        words = [word for item in settings.items() for word in item]
        return main(["train", "detection", *words, *options])

    return run


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("write_samples", "write_pictures"):
        monkeypatch.setattr(detection_report, name, lambda *_: None)


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [row for line in lines if (row := json.loads(line))["kind"] == kind]


def test_a_run_of_a_mask_detector_leaves_what_the_design_promises(
    train: Train, tmp_path: Path
) -> None:
    assert train("--detector", "mask_rcnn", "--data.short-edge", "32") == 0
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
        "precision_recall.png",
        "report.md",
    }
    assert len(rows(run, "train")) == 2  # the four images with objects
    numbers = rows(run, "evaluation")[-1]
    assert {"box_ap", "box_ap50", "mask_ap"} <= numbers.keys()
    assert numbers["score"] == numbers["box_ap"]
    detector, card = load_detector(run)
    assert detector.num_classes == 9
    assert (card.detector, card.backbone, card.short_edge) == ("mask_rcnn", "wavevit_test", 32)
    assert card.options["fpn_channels"] == 64
    assert card.metrics["box_ap"] == numbers["box_ap"]
    report = (run / "report.md").read_text()
    assert "| recall with 100 |" in report
    assert "| class | objects | box AP | box AP50 | mask AP | mask AP50 |" in report
    assert "2 without objects, or too small, left out" in report


@pytest.mark.usefixtures("no_pictures")
def test_the_parts_of_the_loss_are_logged_beside_their_sum(train: Train, tmp_path: Path) -> None:
    """Also where a step takes several passes."""
    options = ["--trainer.accumulate", "2", "--data.batch-size", "1"]
    assert train(*options) == 0
    for row in rows(tmp_path / "run", "train"):
        parts = {name for name in row if name.startswith("loss_")}
        assert parts == {"loss_cls", "loss_box", "loss_centerness"}
        assert sum(row[name] for name in parts) == pytest.approx(row["loss"], rel=1e-6)


@pytest.mark.usefixtures("no_pictures")
def test_a_stopped_and_resumed_run_equals_a_whole_one_bit_for_bit(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 steps = 2 + 2, of a detector that draws numbers on top of flips, sizes and drop path."""
    options = ["--detector", "mask_rcnn", "--model.options.masks", "false", "--optim.epochs", "2"]
    options += ["--model.drop-path-rate", "0.2", "--augment.short-edges", "[32, 48, 64]"]
    options += ["--trainer.evaluate-every", "2", "--trainer.ema-decay", "0.9"]
    assert train(*options, output="whole") == 0

    steps: list[int] = []
    step = torch.optim.AdamW.step

    def interrupted(self: Any, *arguments: Any, **named: Any) -> Any:
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    assert train(*options) == 75
    torch.rand(3)  # whatever the generators did in between
    assert train(*options, "--resume") == 0
    found, expected = (
        load_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[0])
        for name in ("run", "whole")
    )
    assert found["position"]["step"] == expected["position"]["step"] == 4
    for part in ("model", "ema", "optimizer"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)
    best = [load_file(tmp_path / name / "best.safetensors") for name in ("run", "whole")]
    torch.testing.assert_close(best[0], best[1], rtol=0, atol=0)


@pytest.mark.usefixtures("no_pictures")
def test_a_loss_that_is_not_finite_names_the_samples(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DetectionTask.loss

    def poisoned(self: Any, *arguments: Any) -> dict[str, torch.Tensor]:
        losses = original(self, *arguments)
        return {**losses, "loss_box": losses["loss_box"] * float("nan")}

    monkeypatch.setattr(DetectionTask, "loss", poisoned)
    assert train() == 3
    assert "the loss is nan at step 1 on samples images/train/" in capsys.readouterr().err


@pytest.fixture
def broken(shapes_folder: Path, tmp_path: Path) -> Path:
    """A copy whose second training image is no picture."""
    root = tmp_path / "broken"
    shutil.copytree(shapes_folder, root)
    (root / "images/train/1.png").write_bytes((root / "images/train/0.png").read_bytes()[:300])
    return root


@pytest.mark.usefixtures("no_pictures")
def test_unreadable_images_are_replaced_in_training_and_left_out_of_what_we_held_out(
    train: Train, broken: Path, tmp_path: Path
) -> None:
    assert train(data=broken) == 0
    report = (tmp_path / "run" / "report.md").read_text()
    assert "## 1 training files could not be read and were replaced" in report
    assert "`images/train/1.png`" in report

    (broken / "annotations/instances_val.json").unlink()
    held_out = ["--data.val-fraction", "0.9", "--data.keep-empty"]
    assert train(*held_out, data=broken, output="held-out") == 0
    report = (tmp_path / "held-out" / "report.md").read_text()
    assert "held out for validation |" in report
    assert "## 1 files held out for validation could not be read" in report


@pytest.mark.usefixtures("no_pictures")
def test_an_unreadable_image_of_the_users_own_validation_split_stops_a_run_at_its_start(
    train: Train, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--data.train-split", "val", "--data.val-split", "train", data=broken) == 2
    assert "1 of 6 validation images cannot be read" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_weights_of_a_classifier_fill_the_backbone(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(3)
    classifier = timm.create_model("wavevit_test", num_classes=5)
    card = ModelCard("wavevit_test", {"num_classes": 5})
    save_model(tmp_path / "classifier.safetensors", classifier.state_dict(), card)
    assert train("--model.weights", str(tmp_path / "classifier.safetensors"), *STILL) == 0
    assert "dropped: class_attn." in caplog.text
    found = load_file(tmp_path / "run" / "best.safetensors")
    for name, value in classifier.state_dict().items():
        if name.endswith((".weight", ".bias")) and name.startswith("stages."):
            ours = name.replace("stages.", "network.backbone.body.stages_", 1)
            torch.testing.assert_close(found[ours], value, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("no_pictures")
def test_weights_of_a_detector_with_other_classes_fill_all_but_the_class_layers(
    train: Train,
    shapes_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train() == 0
    root = tmp_path / "one-class"
    shutil.copytree(shapes_folder, root)
    for path in root.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        content["categories"] = [{"id": 7, "name": "thing"}]
        for annotation in content["annotations"]:
            annotation["category_id"] = 7
        path.write_text(json.dumps(content))
    weights = ["--model.weights", str(tmp_path / "run" / "best.safetensors")]
    caplog.clear()
    assert train(*weights, *STILL, data=root, output="fine-tuned") == 0
    assert "other classes: dropped network.head.cls_logits.bias" in caplog.text
    before = load_file(tmp_path / "run" / "best.safetensors")
    after = load_file(tmp_path / "fine-tuned" / "best.safetensors")
    assert after["network.head.cls_logits.bias"].shape == (1,)
    name = "network.head.box_tower.0.conv.weight"
    torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    assert load_detector(tmp_path / "fine-tuned")[1].category_ids == [7]

    assert train(*weights, "--detector", "retinanet", output="other") == 2
    assert "holds atss on wavevit_test, where the run is to train retinanet" in (
        capsys.readouterr().err
    )
    assert train(*weights, "--model.options.fpn_channels", "32", output="other") == 2
    assert "does not fit atss on wavevit_test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--detector", "yolo"], "model.detector: expected a detector of retinanet, "),
        (["--model", "gfl"], "--model: name a detector with --detector"),
        (["--detectr", "gfl"], "did you mean --detector?"),
        (["--backbone", "resnet5"], "timm has no model named 'resnet5'"),
        (["--backbone", "vit_tiny_patch16_224"], "a backbone for images of any size"),
        (["--model.options.num_classes", "3"], "it follows from the data"),
        (["--model.options.masks", "true"], "atss has no option 'masks'. It takes"),
        (["--model.weights", "nowhere.pth"], "model.weights names no file"),
        (["--model.drop-path-rate", "1"], "model.drop_path_rate must be in [0, 1)"),
        (["--data.short-edge", "16"], "data.short_edge must be at least 32"),
        (["--data.val-split", "test"], "no split 'test'"),
        (["--data.val-split", "train"], "6 images are in both 'train' and 'train'"),
        (["--data", "nowhere"], "no such file or folder"),
        (["--augment.hflip", "2"], "augment.hflip must be in [0, 1]"),
        (["--augment.short-edges", "[99]"], "augment: expected short edges"),
        (["--optim.no-decay", "[nrm]"], "optim.no_decay: no parameter has a name like 'nrm'"),
        (["--trainer.precision", "fp64"], "trainer.precision fp64: detectors compute"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.usefixtures("no_pictures")
def test_settings_that_cannot_work_are_refused(
    options: list[str], words: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.splitlines()[-1].startswith("wavevit: error: ")


def test_masks_that_the_data_does_not_have_are_refused(
    train: Train, shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "boxes"
    shutil.copytree(shapes_folder, root)
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    path.write_text(json.dumps(content))
    assert train("--detector", "mask_rcnn", data=root) == 2
    assert "choose a detector without masks" in capsys.readouterr().err


def test_without_data_and_recipe_it_is_the_quick_start() -> None:
    words = train_detection.prepare(["--model.detector", "atss"])
    assert words[0] == "--config"
    assert Path(words[1]).is_file()
    assert train_detection.prepare(["--data.path", "x"]) == ["--data.path", "x"]
