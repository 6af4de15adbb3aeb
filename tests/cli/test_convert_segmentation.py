"""`wavevit convert` on checkpoints of mmsegmentation: every entry accounted for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from official_names import segmenter_state
from torch import Tensor

from wavevit.cli.main import main
from wavevit.data.segmentation.palette import class_palette
from wavevit.models.official import _HAAR
from wavevit.segmentation import Segmenter, create_segmenter
from wavevit.segmentation.ade20k import CLASS_NAMES, PALETTE
from wavevit.segmentation.card import load_segmenter

NAMES = ("road", "sky", "tree ")
COLOURS = [[128, 64, 128], [70, 130, 180], [107, 142, 35]]


def build(num_classes: int = 3, **options: Any) -> Segmenter:
    torch.manual_seed(0)
    sizes = {"channels": 8, "auxiliary_channels": 8}
    return create_segmenter("upernet", "resnet18", num_classes=num_classes, **sizes | options)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return build()


@pytest.fixture(scope="module")
def state(segmenter: Segmenter) -> dict[str, Tensor]:
    return segmenter_state(segmenter)


def run(*words: object) -> int:
    return main(["convert", *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line on standard error of a command that exits 2."""
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def assert_same(path: Path, expected: Segmenter) -> None:
    found, _ = load_segmenter(path)
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


@pytest.mark.parametrize("new", [False, True], ids=["mmseg 0.x", "mmseg 1.x"])
def test_a_checkpoint_becomes_a_model_file(
    new: bool,
    segmenter: Segmenter,
    state: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = tmp_path / "iter_160000.pth", tmp_path / "out.safetensors"
    config = "dict(type='LoadAnnotations', reduce_zero_label=True)"
    meta = (
        {"dataset_meta": {"classes": NAMES, "palette": COLOURS}, "cfg": config}
        if new
        else {"CLASSES": NAMES, "PALETTE": COLOURS, "config": config}
    )
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"state": {}}}, source)
    assert run(source, target, "--model", "upernet", "--short-edge", 480) == 0
    out = capsys.readouterr().out
    assert "recognised: upernet on resnet18 (3 classes)" in out
    assert "images: 480 x 2048 px, keep_ratio" in out
    assert f"converted: {len(state)} entries" in out
    for kind in ("missing", "unexpected", "mismatched"):
        assert f"{kind}: none" in out
    assert_same(target, segmenter)
    _, card = load_segmenter(target)
    assert (card.class_names, card.palette) == (["road", "sky", "tree"], COLOURS)
    assert card.reduce_zero_label
    assert (card.mean, card.std) == (segmenter.mean, segmenter.std)
    assert "exists" in refused(capsys, source, target)


def test_the_official_wavevit_is_recognised_entry_by_entry(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads((golden / "segmentation" / "upernet_s_seed0.json").read_text())
    haar = {"filters": torch.tensor(list(_HAAR.values()))[:, None].half()}
    haar |= {name: torch.tensor(rows)[None, None].half() for name, rows in _HAAR.items()}
    state = {
        name: haar.get(name.rsplit(".", 1)[-1], torch.zeros(shape))
        for name, shape, _ in facts["state_dict"]
    }
    source, target = tmp_path / "a.pth", tmp_path / "a.safetensors"
    torch.save({"state_dict": state}, source)
    del state
    assert run(source, target) == 0
    out = capsys.readouterr().out
    assert "recognised: upernet on wavevit_s (150 classes, those of ADE20K)" in out
    assert "images: 512 x 2048 px, multiple_of_16" in out
    assert "converted: 506 entries" in out
    assert "left out, computed or a second copy: 35 entries" in out
    _, card = load_segmenter(target)
    assert tuple(card.class_names) == CLASS_NAMES
    assert tuple(map(tuple, card.palette)) == PALETTE
    assert card.reduce_zero_label


def test_classes_come_from_the_file_or_from_a_list(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "a.safetensors"
    names = tmp_path / "names.txt"
    torch.save(state, source)
    line = refused(capsys, source, target)
    assert "does not name its 3 classes; pass --class-names" in line
    names.write_text("ant\nbee\n")
    line = refused(capsys, source, target, "--class-names", names)
    assert "has 3 classes, but" in line
    assert "names 2" in line
    names.write_text("ant\nbee\ncat\n")
    assert run(source, target, "--class-names", names) == 0
    _, card = load_segmenter(target)
    assert card.class_names == ["ant", "bee", "cat"]
    assert card.palette == class_palette(card.class_names)
    assert not card.reduce_zero_label


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {
                "decode_head.conv_seg.bias": None,
                "decode_head.extra.weight": torch.zeros(2),
                "auxiliary_head.conv_seg.bias": torch.zeros(4),
            },
            "missing: network.head.classifier.bias; unexpected: decode_head.extra.weight; "
            "mismatched: network.auxiliary.classifier.bias: (4,) in the file, (3,) here",
        ),
        ({"decode_head.fpn_bottleneck.conv.weight": None}, "expected the weights of a UPerNet"),
    ],
)
def test_an_entry_that_does_not_fit_is_named_and_nothing_written(
    change: dict[str, Tensor | None],
    message: str,
    state: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = {name: value for name, value in (state | change).items() if value is not None}
    source = tmp_path / "a.pth"
    torch.save({"meta": {"CLASSES": NAMES}, "state_dict": changed}, source)
    assert message in refused(capsys, source, tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_mistakes_are_one_line_and_exit_2(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "a.safetensors"
    torch.save({"meta": {"CLASSES": NAMES}, "state_dict": state}, source)
    line = refused(capsys, source, target, "--model", "gfl")
    assert "holds a upernet, where --model says gfl" in line
    line = refused(capsys, source, target, "--backbone", "test_resnet")
    assert "upernet on test_resnet but does not fit" in line
    line = refused(capsys, source, target, "--short-edge", 600, "--long-edge", 500)
    assert "--short-edge must be at least 32 and no more than --long-edge, got 600 and 500" in line
    assert "must end in .safetensors" in refused(capsys, source, tmp_path / "a.pt")
