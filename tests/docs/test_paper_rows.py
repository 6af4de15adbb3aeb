"""The page on reproducing the paper says what the recipes say, and leaves none of its rows out."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import ROOT, blocks

PAGE = ROOT / "docs/reproducing-the-paper.md"
CONFIGS = ROOT / "configs"

# What was published, by recipe: top-1 and top-5, box and mask AP, or mean IoU.
PUBLISHED = {
    "imagenet_wavevit_s_300e": ["82.7"],
    "imagenet_wavevit_s_token_label_300e": ["83.9", "96.6"],
    "imagenet_wavevit_b_token_label_300e": ["84.8", "97.1"],
    "imagenet_wavevit_l_token_label_300e": ["85.5", "97.3"],
    "imagenet_wavevit_s_token_label_384_finetune": ["85.0", "97.2"],
    "imagenet_wavevit_b_token_label_384_finetune": ["85.6", "97.4"],
    "imagenet_wavevit_l_token_label_384_finetune": ["86.3", "97.7"],
    "coco_retinanet_wavevit_s_1x": ["45.8"],
    "coco_retinanet_wavevit_b_1x": ["47.2"],
    "coco_mask_rcnn_wavevit_s_1x": ["46.6", "42.4"],
    "coco_mask_rcnn_wavevit_b_1x": ["47.6", "43.0"],
    "coco_gfl_wavevit_s_3x": ["50.9"],
    "coco_sparse_rcnn_wavevit_s_3x": ["50.7"],
    "coco_atss_wavevit_s_3x": ["50.7"],
    "coco_cascade_mask_rcnn_wavevit_s_3x": ["52.1"],
    "ade20k_upernet_wavevit_s_160k": ["49.6"],
    "ade20k_upernet_wavevit_b_160k": ["51.5"],
}


def recipe_file(name: str) -> Path:
    (path,) = CONFIGS.glob(f"*/{name}.yaml")
    return path


def header(path: Path) -> dict[str, str]:
    """The fields of a recipe's header; lines that go on are joined."""
    fields: dict[str, str] = {}
    field = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"# (\w+):\s+(.*)", line):
            field = match[1]
            fields[field] = match[2]
        elif line.startswith("#   ") and field:
            fields[field] += " " + line[1:].strip()
    fields["Command"] = fields["Command"].split(" On 8 GPUs")[0]
    return fields


def rows() -> dict[str, str]:
    """The tables' rows by recipe."""
    found = re.findall(r"^\|.*`(\w+)`.*\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    return {name: next(line for line in lines if f"`{name}`" in line) for name in found}


def test_every_row_of_the_paper_is_there_and_no_other() -> None:
    published = {name for name in rows() if not re.search(r"_(quick|\d+min)$", name)}
    assert published == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_says_what_the_recipe_says(name: str) -> None:
    """Published numbers, cost, status and command."""
    row, fields = rows()[name], header(recipe_file(name))
    numbers = PUBLISHED[name]
    for number in numbers:
        assert re.search(rf"\b{re.escape(number)}\b", row), number
    assert re.search(rf"\b{re.escape(numbers[0])}\b", fields["Expected"])
    assert f"hours {fields['Hours']} |" in row
    assert row.endswith(f"| {fields['Status']} |")
    commands = [" ".join(words) for block in blocks(PAGE) for words in block.commands()]
    assert commands.count(fields["Command"]) == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_says_how_long_the_schedule_is(name: str) -> None:
    content: dict[str, Any] = yaml.safe_load(recipe_file(name).read_text(encoding="utf-8"))
    images = content["trainer"]["images_per_step"]
    epochs = content["optim"]["epochs"] + content["optim"].get("cooldown_epochs", 0)
    if name.startswith("ade20k"):
        assert round(epochs * 20210 / images) == pytest.approx(160_000, abs=10)
        assert f"160,000 steps of {images} images" in rows()[name]
    else:
        assert f"| {epochs} epochs, {images} images a step;" in rows()[name]


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("*/*_nano_*.yaml")), ids=lambda path: path.stem
)
def test_measured_recipes_are_told_with_their_hours(path: Path) -> None:
    fields, row = header(path), rows()[path.stem]
    assert fields["Status"].startswith("measured")
    hours = fields["Hours"].split(" (")[0]
    assert row.endswith(f"| {hours} |")


def test_other_recipes_are_ours() -> None:
    """What is on neither list has no published number."""
    for path in CONFIGS.glob("*/*.yaml"):
        if path.stem not in rows():
            assert header(path)["Expected"].startswith("none published"), path.stem
