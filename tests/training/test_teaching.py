"""Training with label maps and with teachers, from the command line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import wavevit
from wavevit.cli.main import main
from wavevit.models.card import ModelCard, save_model

Train = Callable[..., int]


@pytest.fixture(scope="module")
def teacher(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a classifier that tells red from blue."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    words = ["--data", str(image_folder), "--model", "test_convnext", "--output", str(run)]
    settings = {
        "--data.image-size": "64",
        "--data.batch-size": "10",
        "--data.num-workers": "0",
        "--optim.epochs": "6",
        "--optim.warmup-epochs": "0",
        "--optim.lr": "5e-3",
        "--augment.label-smoothing": "0",
        "--trainer.evaluate-every": "6",
    }
    words += [word for item in settings.items() for word in item]
    assert main(["train", "classification", *words]) == 0
    return run


@pytest.fixture(scope="module")
def maps(image_folder: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps") / "maps"
    words = ["--data", str(image_folder), "--weights", str(teacher / "best.safetensors")]
    words += ["--output", str(folder), "--num-workers", "0"]
    assert main(["label-maps", "create", *words]) == 0
    return folder


@pytest.fixture
def train(image_folder: Path, tmp_path: Path) -> Train:
    def run(*options: str, data: Path = image_folder) -> int:
        settings = {
            "--data": str(data),
            "--model": "wavevit_test",
            "--output": str(tmp_path / "run"),
            "--data.image-size": "64",
            "--data.batch-size": "10",
            "--data.num-workers": "0",
            "--optim.epochs": "1",
            "--optim.warmup-epochs": "0",
            "--trainer.log-every": "1",
            "--augment.rand-augment": "rand-m9-mstd0.5-inc1",
        }
        words = [word for item in settings.items() for word in item]
        return main(["train", "classification", *words, *options])

    return run


def losses(tmp_path: Path) -> list[float]:
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    return [row["loss"] for line in lines if (row := json.loads(line))["kind"] == "train"]


def test_a_run_with_label_maps_learns_and_its_network_has_the_second_head(
    train: Train, maps: Path, tmp_path: Path
) -> None:
    options = ["--optim.epochs", "16", "--optim.lr", "5e-3", "--trainer.evaluate-every", "16"]
    assert train("--token-label.maps", str(maps), *options) == 0
    model, card = wavevit.models.weights.load_model(tmp_path / "run")
    assert card.model_args["token_label"] is True
    assert card.metrics["top1"] == 1.0
    assert model.aux_head is not None
    assert (
        main(["evaluate", "--checkpoint", str(tmp_path / "run"), "--data", train_data(tmp_path)])
        == 0
    )


def train_data(tmp_path: Path) -> str:
    config = (tmp_path / "run" / "config.yaml").read_text()
    found = re.search(r"path: (\S+?)[,}\n]", config)
    assert found is not None
    return found[1]


def test_a_teacher_on_the_fly_trains_too(train: Train, teacher: Path, tmp_path: Path) -> None:
    assert train("--token-label.weights", str(teacher / "best.safetensors")) == 0
    assert len(losses(tmp_path)) == 3


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_distillation_trains_any_network(
    kind: str, train: Train, teacher: Path, tmp_path: Path
) -> None:
    options = ["--distill.weights", str(teacher), "--distill.kind", kind, "--model", "test_vit"]
    assert train(*options, "--augment.mixup", "0.5", "--augment.cutmix", "1") == 0
    assert len(losses(tmp_path)) == 3


def test_token_labels_work_in_low_precision(train: Train, maps: Path, tmp_path: Path) -> None:
    assert train("--token-label.maps", str(maps), "--trainer.precision", "bf16") == 0
    assert all(0 < loss < 3 for loss in losses(tmp_path))


def test_a_missing_map_stops_the_run_before_it_starts_and_names_the_image(
    train: Train, maps: Path, image_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(image_folder, data)
    shutil.copy(data / "train/red/0.png", data / "train/red/new.png")
    assert train("--token-label.maps", str(maps), data=data) == 2
    assert "red/new" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_damaged_map_stops_the_run_and_names_file_and_image(
    train: Train, maps: Path, tmp_path: Path, capsys: Any
) -> None:
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(maps, damaged)
    shard = next(damaged.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    header = int.from_bytes(content[:8], "little")
    for at in range(8 + header, len(content), 7):
        content[at] ^= 1
    shard.write_bytes(content)
    assert train("--token-label.maps", str(damaged)) == 2
    error = capsys.readouterr().err
    assert shard.name in error
    assert "Traceback" not in error


def test_a_teacher_of_other_classes_is_refused(train: Train, tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=2)
    card = ModelCard(
        model="test_convnext",
        model_args={"num_classes": 2},
        class_names=["cat", "dog"],
        image_size=(64, 64),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        crop_pct=1.0,
        interpolation="bilinear",
    )
    save_model(tmp_path / "teacher.safetensors", model.state_dict(), card)
    for option in ("--token-label.weights", "--distill.weights"):
        assert train(option, str(tmp_path / "teacher.safetensors")) == 2
        error = capsys.readouterr().err
        assert "only the teacher has cat, dog" in error
        assert "only the data has blue, red" in error


def test_token_labels_and_distillation_do_not_go_together(
    train: Train, maps: Path, teacher: Path, capsys: Any
) -> None:
    assert train("--token-label.maps", str(maps), "--distill.weights", str(teacher)) == 2
    assert "do not go together" in capsys.readouterr().err
