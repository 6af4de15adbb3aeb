"""Every recipe is complete: it parses, its model builds, its header says what it promises."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from wavevit.cli import train_classification
from wavevit.cli.parsing import make_parser, parse
from wavevit.models.card import create_model

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(CONFIGS.glob("classification/*.yaml"))


def test_there_are_recipes_for_the_paper_and_for_a_quick_start() -> None:
    names = {path.stem for path in RECIPES}
    assert {f"imagenet_wavevit_{v}_300e" for v in "sbl"} <= names
    assert train_classification.find_recipe(train_classification.QUICK_START).is_file()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_parses_and_builds_its_model(path: Path) -> None:
    parser = make_parser("wavevit train classification", "train")
    train_classification.add_arguments(parser)
    options = parse(parser, ["--config", str(path)], train_classification.SHORT_NAMES)
    assert options is not None
    with torch.device("meta"):
        create_model(options.model.name, **(options.model.args or {}))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_header_says_source_command_hardware_and_result(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    for field in ("Command:", "Hardware:", "Hours:", "Expected:", "Status:"):
        assert field in text
    assert re.search(r"Status:\s+(measured \d{4}-\d\d-\d\d|not yet run)", text)
    command = re.search(r"Command:\s+(.*)", text)
    assert command is not None
    assert command[1].startswith("wavevit train classification")


@pytest.mark.parametrize("variant", ["s", "b", "l"])
def test_imagenet_recipes_hold_the_numbers_of_the_official_one(variant: str) -> None:
    recipe = yaml.safe_load(
        (CONFIGS / f"classification/imagenet_wavevit_{variant}_300e.yaml").read_text()
    )
    assert recipe["optim"] == {
        "opt": "adamw",
        "lr": 1e-3,
        "lr_reference_batch": 1024,
        "weight_decay": 0.05,
        "epochs": 300,
        "warmup_epochs": 5,
        "cooldown_epochs": 10,
        "warmup_lr": 1e-6,
        "min_lr": 1e-5,
    }
    assert recipe["model"]["drop_path_rate"] == (0.3 if variant == "l" else 0.1)
    assert recipe["trainer"]["clip_grad"] == (1.0 if variant == "l" else None)
    assert recipe["data"]["batch_size"] * recipe["trainer"]["accumulate"] == 1024
    augment = recipe["augment"]
    assert augment["rand_augment"] == "rand-m9-mstd0.5-inc1"
    assert (augment["mixup"], augment["cutmix"], augment["repeats"]) == (0.8, 1.0, 3)
    assert (augment["random_erasing"], augment["label_smoothing"]) == (0.25, 0.1)
