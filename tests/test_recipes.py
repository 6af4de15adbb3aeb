"""Every recipe is complete: it parses, its model builds, its header says what it promises."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

from wavevit.cli import train_classification, train_detection, train_segmentation
from wavevit.cli.main import main
from wavevit.cli.parsing import make_parser, parse
from wavevit.detection.factory import create_detector
from wavevit.models.card import create_model
from wavevit.segmentation.factory import create_segmenter
from wavevit.training.detection_settings import (
    DetectionAugmentation,
    DetectionData,
    DetectorSettings,
)
from wavevit.training.loop import Trainer
from wavevit.training.optimization import Optimization
from wavevit.training.segmentation_settings import (
    SegmentationAugmentation,
    SegmentationData,
    SegmenterSettings,
)

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(CONFIGS.glob("classification/*.yaml"))
DETECTION_RECIPES = sorted(CONFIGS.glob("detection/*.yaml"))
SEGMENTATION_RECIPES = sorted(CONFIGS.glob("segmentation/*.yaml"))
VARIANTS = ["s", "b", "l"]
KINDS = ["300e", "token_label_300e", "token_label_384_finetune"]


def recipe(name: str, task: str = "classification") -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONFIGS / f"{task}/{name}.yaml").read_text())
    return content


def header(path: Path) -> str:
    return "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))


def test_there_are_recipes_for_the_paper_and_for_a_quick_start() -> None:
    names = {path.stem for path in RECIPES}
    assert {f"imagenet_wavevit_{v}_{kind}" for v in VARIANTS for kind in KINDS} <= names
    assert "imagenet_wavevit_s_distill_300e" in names
    assert train_classification.find_recipe(train_classification.QUICK_START).is_file()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_parses_and_builds_what_it_names(path: Path) -> None:
    """Its network, with the second head where there are token labels; optimizer and loop."""
    parser = make_parser("wavevit train classification", "train")
    train_classification.add_arguments(parser)
    options = parse(parser, ["--config", str(path)], train_classification.SHORT_NAMES)
    assert options is not None
    arguments = {**(options.model.args or {})}
    if options.token_label.maps is not None:
        arguments["token_label"] = True
    with torch.device("meta"):
        create_model(options.model.name, **arguments)
    Optimization(**options.optim.as_dict())
    Trainer(**options.trainer.as_dict())
    if options.distill.teacher is not None:
        assert timm.is_model_pretrained(options.distill.teacher)


@pytest.mark.parametrize("path", DETECTION_RECIPES, ids=lambda p: p.stem)
def test_detection_recipe_parses_and_builds_what_it_names(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = make_parser("wavevit train detection", "train")
    train_detection.add_arguments(parser)
    options = parse(parser, ["--config", str(path)], train_detection.SHORT_NAMES)
    assert options is not None
    monkeypatch.setattr(Path, "is_file", lambda _: True)  # the weights
    settings = DetectorSettings(**options.model.as_dict())
    data = DetectionData(**options.data.as_dict())
    card = settings.card(["thing"] * 80, list(range(80)), data)
    assert DetectionAugmentation(**options.augment.as_dict()).transform(data)
    with torch.device("meta"):
        detector = create_detector(card.detector, card.backbone, num_classes=80, **card.options)
    optim = Optimization(**options.optim.as_dict())
    optim.optimizer(detector, 16)  # patterns of names fit
    Trainer(**options.trainer.as_dict())


@pytest.mark.parametrize("path", SEGMENTATION_RECIPES, ids=lambda p: p.stem)
def test_segmentation_recipe_parses_and_builds_what_it_names(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = make_parser("wavevit train segmentation", "train")
    train_segmentation.add_arguments(parser)
    options = parse(parser, ["--config", str(path)], train_segmentation.SHORT_NAMES)
    assert options is not None
    monkeypatch.setattr(Path, "is_file", lambda _: True)  # the weights
    settings = SegmenterSettings(**options.model.as_dict())
    data = SegmentationData(**options.data.as_dict())
    card = settings.card(["thing"] * 150, [[0, 0, 0]] * 150, data)
    assert SegmentationAugmentation(**options.augment.as_dict()).transform(data, card)
    with torch.device("meta"):
        segmenter = create_segmenter(card.segmenter, card.backbone, num_classes=150, **card.options)
    optim = Optimization(**options.optim.as_dict())
    optim.optimizer(segmenter, 16)  # patterns of names fit
    Trainer(**options.trainer.as_dict())


@pytest.mark.parametrize(
    "path", [*RECIPES, *DETECTION_RECIPES, *SEGMENTATION_RECIPES], ids=lambda p: p.stem
)
def test_recipe_header_says_source_command_hardware_and_result(path: Path) -> None:
    text = header(path)
    for field in ("Command:", "Hardware:", "Hours:", "Expected:", "Status:"):
        assert field in text
    assert re.search(r"Status:\s+(measured \d{4}-\d\d-\d\d|not yet run)", text)
    command = re.search(r"Command:\s+(.*)", text)
    assert command is not None
    assert command[1].startswith(f"wavevit train {path.parent.name}")
    named = re.search(r"--config (\S+)", command[1])
    assert named is None or named[1] == path.stem


@pytest.mark.parametrize("kind", ["300e", "token_label_300e"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_imagenet_recipes_hold_the_numbers_of_the_official_ones(variant: str, kind: str) -> None:
    content = recipe(f"imagenet_wavevit_{variant}_{kind}")
    assert content["optim"] == {
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
    assert content["model"]["drop_path_rate"] == (0.3 if variant == "l" else 0.1)
    assert content["trainer"]["clip_grad"] == (1.0 if variant == "l" else None)
    assert content["trainer"]["images_per_step"] == 1024
    assert content["data"]["image_size"] == 224
    augment = content["augment"]
    assert augment["rand_augment"] == "rand-m9-mstd0.5-inc1"
    assert augment["crop_scale"] == [0.08, 1.0]
    assert augment["crop_ratio"] == pytest.approx([3 / 4, 4 / 3])
    assert (augment["hflip"], augment["random_erasing"], augment["label_smoothing"]) == (
        *(0.5, 0.25),
        0.1,
    )
    mixing = (augment["mixup"], augment["cutmix"], augment["repeats"], augment["interpolation"])
    if kind == "300e":
        assert mixing == (0.8, 1.0, 3, "bicubic")
        assert augment["mix_switch_prob"] == 0.5
        assert "token_label" not in content
    else:
        assert mixing == (0, 0, 1, "random")
        weights = content["token_label"]["cls_weight"], content["token_label"]["token_weight"]
        assert weights == (1.0, 0.5)


PUBLISHED = {
    "s_300e": 82.7,
    "s_token_label_300e": 83.9,
    "b_token_label_300e": 84.8,
    "l_token_label_300e": 85.5,
    "s_token_label_384_finetune": 85.0,
    "b_token_label_384_finetune": 85.6,
    "l_token_label_384_finetune": 86.3,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_imagenet_recipes_expect_the_published_numbers(name: str) -> None:
    """In the header and in the table of the documentation."""
    text = header(CONFIGS / f"classification/imagenet_wavevit_{name}.yaml")
    expected = re.search(r"Expected:\s+top-1 (\S+) ", text)
    assert expected is not None
    assert float(expected[1]) == PUBLISHED[name]
    page = (CONFIGS.parent / "docs/classification.md").read_text()
    row = re.search(rf"^\| `imagenet_wavevit_{name}` .*$", page, re.MULTILINE)
    assert row is not None
    assert f"{PUBLISHED[name]}" in row[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_fine_tuning_at_384_says_that_its_schedule_is_ours(variant: str) -> None:
    """It differs from the recipe at 224 in size, weights and schedule alone."""
    name = f"imagenet_wavevit_{variant}_token_label"
    ours, before = recipe(f"{name}_384_finetune"), recipe(f"{name}_300e")
    text = " ".join(header(CONFIGS / f"classification/{name}_384_finetune.yaml").split())
    assert "no schedule for it. This one is ours" in text
    assert ours["data"]["image_size"] == 384
    assert ours["trainer"]["images_per_step"] == ours["optim"]["lr_reference_batch"] == 512
    assert ours["model"].pop("weights").endswith(".safetensors")
    for part in ("model", "augment", "token_label"):
        assert ours[part] == before[part]
    assert ours["trainer"]["clip_grad"] == before["trainer"]["clip_grad"]


def test_distillation_changes_nothing_else() -> None:
    ours, before = recipe("imagenet_wavevit_s_distill_300e"), recipe("imagenet_wavevit_s_300e")
    assert ours.pop("distill")["kind"] == "hard"
    assert ours == before


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/imagenet_*.yaml")), ids=lambda p: p.stem)
def test_imagenet_recipes_take_the_usual_numbers_of_processes(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    trainer, batch_size = Trainer(**content["trainer"]), content["data"]["batch_size"]
    passes = {n: trainer.passes_per_step(batch_size, n) for n in (1, 2, 4, 8)}
    assert passes == {1: 8, 2: 4, 4: 2, 8: 1}


@pytest.mark.parametrize(
    ("name", "given", "missing"),
    [
        ("imagenet_wavevit_s_token_label_300e", [], "token_label.maps names no folder"),
        ("imagenet_wavevit_s_token_label_384_finetune", [], "model.weights names no file"),
        (
            "imagenet_wavevit_s_token_label_384_finetune",
            ["--model.weights", "w.pth"],
            "token_label.maps names no folder",
        ),
    ],
)
def test_a_path_that_was_forgotten_is_an_error(
    name: str,
    given: list[str],
    missing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Never a silent run without token labels, or from scratch."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").touch()
    words = ["train", "classification", "--config", name, "--trainer.precision", "fp32", *given]
    assert main([*words, "--data", "shapes", "--output", "run"]) == 2
    assert missing in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Learning rate, weight decay, epochs, their steps, images a step, long edge in training, AP.
PUBLISHED_DETECTORS: dict[str, tuple[float, float, int, list[int], int, int, list[float]]] = {
    "retinanet_wavevit_s_1x": (1e-4, 1e-4, 12, [8, 11], 16, 1333, [45.8]),
    "retinanet_wavevit_b_1x": (1e-4, 1e-4, 12, [8, 11], 16, 1333, [47.2]),
    "mask_rcnn_wavevit_s_1x": (2e-4, 1e-4, 12, [8, 11], 16, 1333, [46.6, 42.4]),
    "mask_rcnn_wavevit_b_1x": (2e-4, 1e-4, 12, [8, 11], 16, 1333, [47.6, 43.0]),
    "cascade_mask_rcnn_wavevit_s_3x": (1e-4, 0.05, 36, [27, 33], 16, 1333, [52.1]),
    "gfl_wavevit_s_3x": (1e-4, 0.05, 36, [27, 33], 16, 1200, [50.9]),
    "atss_wavevit_s_3x": (1e-4, 0.05, 36, [27, 33], 16, 1333, [50.7]),
    "sparse_rcnn_wavevit_s_3x": (2e-5, 1e-4, 36, [27, 33], 8, 1333, [50.7]),
}


@pytest.mark.parametrize("name", PUBLISHED_DETECTORS)
def test_coco_recipes_hold_the_numbers_of_the_official_ones(name: str) -> None:
    lr, weight_decay, epochs, steps, images_per_step, long_edge, aps = PUBLISHED_DETECTORS[name]
    content = recipe(f"coco_{name}", "detection")
    optim = content["optim"]
    assert (optim["lr"], optim["weight_decay"]) == (lr, weight_decay)
    assert optim["schedule"] == "step"
    assert (optim["epochs"], optim["step_epochs"], optim["step_gamma"]) == (epochs, steps, 0.1)
    assert (optim["warmup_steps"], optim["warmup_factor"]) == (500, 0.001)
    assert (optim["no_decay"] == []) == (weight_decay == 1e-4)
    assert content["trainer"]["images_per_step"] == optim["lr_reference_batch"] == images_per_step
    assert content["trainer"]["clip_grad"] == (1.0 if name.startswith("sparse") else None)
    data, augment = content["data"], content["augment"]
    assert (data["short_edge"], data["long_edge"]) == (800, 1333)
    assert (data["size_rule"], data["eval_batch_size"]) == ("multiple_of_16", 1)
    assert augment.get("long_edge", 1333) == long_edge
    if epochs == 12:
        assert augment == {"recipe": "single_scale", "hflip": 0.5}
    else:
        assert augment["recipe"] == "multi_scale"
        assert augment["short_edges"] == list(range(480, 801, 32))
        assert augment["short_edges_before_crop"] == [400, 500, 600]
        assert augment["crop_sizes"] == [384, 600]
    assert content["model"]["drop_path_rate"] == 0.1
    assert content["model"]["batch_norm"] == "affine_frozen"
    assert content["model"].keys().isdisjoint({"heads", "options"})
    trainer, batch_size = Trainer(**content["trainer"]), data["batch_size"]
    passes = {n: trainer.passes_per_step(batch_size, n) for n in (1, 2, 4, 8)}
    assert passes == {1: 8, 2: 4, 4: 2, 8: 1}
    text = header(CONFIGS / f"detection/coco_{name}.yaml")
    page = (CONFIGS.parent / "docs/detection.md").read_text()
    row = re.search(rf"^\| `coco_{name}` .*$", page, re.MULTILINE)
    assert row is not None
    for ap in aps:
        assert f"AP {ap} +- 0.3" in text
        assert f"{ap}" in row[0]


def test_detection_starts_without_data_and_on_a_small_set() -> None:
    assert train_detection.find_recipe(train_detection.QUICK_START).is_file()
    assert train_detection.find_recipe("bccd_gfl_wavevit_nano_30min").is_file()


@pytest.mark.parametrize(("variant", "drop_path", "mean_iou"), [("s", 0.1, 49.6), ("b", 0.3, 51.5)])
def test_ade20k_recipes_hold_the_numbers_of_the_official_ones(
    variant: str, drop_path: float, mean_iou: float
) -> None:
    name = f"ade20k_upernet_wavevit_{variant}_160k"
    content = recipe(name, "segmentation")
    optim, data = content["optim"], content["data"]
    assert (optim["lr"], optim["weight_decay"], optim["opt"]) == (6e-5, 0.01, "adamw")
    assert (optim["schedule"], optim["poly_power"], optim["min_lr"]) == ("poly", 1, 0)
    assert (optim["warmup_steps"], optim["warmup_factor"]) == (1500, 1e-6)
    images_per_step = content["trainer"]["images_per_step"]
    assert images_per_step == optim["lr_reference_batch"] == 16
    assert round(optim["epochs"] * 20210 / images_per_step) == pytest.approx(160_000, abs=10)
    assert content["trainer"]["batch_norm"] == "sync"
    assert (data["short_edge"], data["long_edge"]) == (512, 2048)
    assert (data["size_rule"], data["reduce_zero_label"]) == ("multiple_of_16", True)
    assert content["augment"] == {
        "crop_size": [512, 512],
        "scales": [0.5, 2.0],
        "max_class_share": 0.75,
        "hflip": 0.5,
        "photometric": True,
    }
    assert content["model"]["drop_path_rate"] == drop_path
    assert content["model"]["batch_norm"] == "affine_frozen"
    assert content["model"].keys().isdisjoint({"heads", "options"})
    expected = re.search(
        r"Expected:\s+mean IoU (\S+) ", header(CONFIGS / f"segmentation/{name}.yaml")
    )
    assert expected is not None
    assert float(expected[1]) == mean_iou
