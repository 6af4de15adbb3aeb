"""`wavevit convert` on checkpoints of mmdetection: every entry accounted for, no code run."""

import pickle
import re
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_names import detector_state
from torch import Tensor

from wavevit.cli.main import main
from wavevit.detection import create_detector
from wavevit.detection.card import load_detector
from wavevit.detection.detector import Detector
from wavevit.models.official_files import read_official

NAMES = ("ant", "bee", "chat noir")


@pytest.fixture(scope="module")
def gfl() -> Detector:
    torch.manual_seed(0)
    options = {"fpn_channels": 32, "head_channels": 32, "num_tower_convs": 1}
    return create_detector("gfl", "wavevit_test", num_classes=3, **options).eval()


@pytest.fixture(scope="module")
def state(gfl: Detector) -> dict[str, Tensor]:
    return detector_state(gfl)


def run(*words: object) -> int:
    return main(["convert", *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line on standard error of a command that exits 2."""
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def assert_same(path: Path, expected: Detector) -> None:
    detector, _ = load_detector(path)
    converted = detector.state_dict()
    assert converted.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(converted[name], value), name


def test_a_checkpoint_becomes_a_model_file(
    gfl: Detector, state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "epoch_36.pth", tmp_path / "out.safetensors"
    meta = {"CLASSES": NAMES, "epoch": 36, "config": "backbone=dict(type='WaveViT')"}
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"state": {}}}, source)
    assert run(source, target, "--model", "gfl", "--backbone", "wavevit_test") == 0
    out = capsys.readouterr().out
    assert "recognised: gfl on wavevit_test (3 classes)" in out
    assert "images: 800 x 1333 px, multiple_of_16" in out
    assert f"converted: {len(gfl.state_dict())} entries" in out
    filters = sum(name.endswith((".filters", ".w_ll", ".w_lh", ".w_hl", ".w_hh")) for name in state)
    assert f"left out, computed or a second copy: {filters + 1} entries" in out
    for kind in ("missing", "unexpected", "mismatched"):
        assert f"{kind}: none" in out
    assert_same(target, gfl)
    _, card = load_detector(target)
    assert (card.class_names, card.category_ids) == (list(NAMES), [1, 2, 3])
    assert "exists" in refused(capsys, source, target)


def test_a_resnet_with_masks_and_sizes_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    options = {"fpn_channels": 16, "fc_channels": 1024, "num_mask_convs": 4, "mask_channels": 256}
    detector = create_detector("mask_rcnn", "resnet18", num_classes=3, **options)
    source, target = tmp_path / "a.pth", tmp_path / "a.safetensors"
    torch.save({"meta": {"dataset_meta": {"classes": NAMES}}, **wrapped(detector)}, source)
    sizes = ("--short-edge", 480, "--long-edge", 640)
    assert run(source, target, *sizes) == 0
    assert_same(target, detector)
    _, card = load_detector(target)
    assert (card.short_edge, card.long_edge, card.size_rule) == (480, 640, "keep_ratio")
    assert (card.detector, card.backbone) == ("mask_rcnn", "resnet18")
    capsys.readouterr()
    assert "--short-edge must be at least 32" in refused(
        capsys, source, tmp_path / "b.safetensors", "--short-edge", 900, "--long-edge", 640
    )


def wrapped(detector: Detector) -> dict[str, Any]:
    return {"state_dict": {f"module.{n}": v for n, v in detector_state(detector).items()}}


def test_the_average_is_taken_of_weights_and_their_average(
    gfl: Detector, state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both libraries write it under the ordinary names, the other copy elsewhere."""
    raw = {name: value + 1 for name, value in state.items() if value.is_floating_point()}
    in_buffers = {f"ema_{name.replace('.', '_')}": value for name, value in raw.items()}
    meta = {"CLASSES": NAMES}
    for number, content in enumerate(
        (
            {"meta": meta, "state_dict": {**state, **in_buffers}},
            {
                "meta": meta,
                "state_dict": state,
                "ema_state_dict": {"steps": torch.tensor(3), **raw},
            },
        )
    ):
        source, target = tmp_path / f"{number}.pth", tmp_path / f"{number}.safetensors"
        torch.save(content, source)
        assert run(source, target) == 0
        assert_same(target, gfl)


def test_classes_come_from_the_file_or_from_a_list(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "a.safetensors"
    names = tmp_path / "names.txt"
    torch.save(state, source)
    assert "does not name its classes; pass --class-names" in refused(capsys, source, target)
    assert "names no file" in refused(capsys, source, target, "--class-names", names)
    names.write_text("ant\nbee\n")
    line = refused(capsys, source, target, "--class-names", names)
    assert "has 3 classes, but" in line
    assert "names 2" in line
    names.write_text("ant\nbee\nbee\n")
    assert "'bee' stands more than once" in refused(capsys, source, target, "--class-names", names)
    names.write_text("\ufeffant\r\nbee\r\nchat noir\r\n", encoding="utf-8")
    assert run(source, target, "--class-names", names) == 0
    assert load_detector(target)[1].class_names == list(NAMES)


def test_coco_keeps_its_numbers() -> None:
    from wavevit.cli.detection_convert import _category_ids

    names = ["person", *(f"class {i}" for i in range(78)), "toothbrush"]
    ids = _category_ids(names)
    assert (ids[0], ids[11], ids[-1], len(ids)) == (1, 13, 90, 80)
    assert _category_ids(names[:-1]) == list(range(1, 80))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox_head.gfl_cls.bias": None}, "missing: network.head.cls_logits.bias"),
        ({"bbox_head.extra.weight": torch.zeros(2)}, "unexpected: bbox_head.extra.weight"),
        ({"backbone.head.weight": torch.zeros(5, 32)}, "unexpected: backbone.head.weight"),
        (
            {"bbox_head.gfl_cls.bias": torch.zeros(4)},
            r"mismatched: network.head.cls_logits.bias: \(4,\) in the file, \(3,\) here",
        ),
        ({"backbone.patch_embed1.proj.weight": None}, "a Wave-ViT or a plain ResNet"),
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
    assert re.search(message, refused(capsys, source, tmp_path / "a.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_mistakes_are_one_line_and_exit_2(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "a.safetensors"
    meta = {"CLASSES": NAMES, "config": "model = dict(backbone=dict(style='caffe'))"}
    torch.save({"meta": meta, "state_dict": state}, source)
    assert "Caffe's style" in refused(capsys, source, target)
    torch.save({"meta": {"CLASSES": NAMES}, "state_dict": state}, source)
    line = refused(capsys, source, target, "--model", "atss")
    assert "holds a gfl, where --model says atss" in line
    assert "no model named" in refused(capsys, source, target, "--backbone", "wavevit_m")
    line = refused(capsys, source, target, "--backbone", "resnet18")
    assert "gfl on resnet18 but does not fit" in line
    assert "must end in .safetensors" in refused(capsys, source, tmp_path / "a.pt")
    assert "does not exist" in refused(capsys, source, tmp_path / "no" / "a.safetensors")
    other = tmp_path / "classifier.pth"
    torch.save({"fc.weight": torch.zeros(2, 2)}, other)
    line = refused(capsys, other, target, "--model", "gfl")
    assert "--model is for detectors of mmdetection" in line


# --- Files of training runs -----------------------------------------------------------------------


@pytest.fixture
def mmengine(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class under the name that mmengine's logs are pickled under, with functions as it has."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self.log_history = np.arange(3.0)
            self.statistics = OrderedDict(mean=HistoryBuffer.mean)

        def mean(self) -> float:
            raise AssertionError("nothing of the file is run")

        def __setstate__(self, state: dict[str, Any]) -> None:
            raise AssertionError("nothing of the file is run")

    HistoryBuffer.__module__ = module.__name__
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    HistoryBuffer.mean.__module__ = module.__name__
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return HistoryBuffer


def test_logs_of_a_training_run_are_passed_over(
    mmengine: type,
    gfl: Detector,
    state: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = tmp_path / "epoch_12.pth", tmp_path / "a.safetensors"
    content = {
        "meta": {"dataset_meta": {"classes": NAMES}, "cfg": "x = 1", "lr": np.float64(0.1)},
        "message_hub": {"log_scalars": {"loss": mmengine()}, "numbers": np.zeros((2, 2))},
        "state_dict": state,
    }
    torch.save(content, source)
    for name in list(sys.modules):
        if name.startswith("mmengine"):
            monkeypatch.delitem(sys.modules, name)
    assert run(source, target) == 0
    assert_same(target, gfl)
    file = read_official(source)
    assert (file.class_names, file.config) == (list(NAMES), "x = 1")


class Evil:
    """Would run a command while it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("open('pwned', 'w')",)


def test_code_in_a_file_is_never_run(
    state: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"meta": {"CLASSES": NAMES, "x": Evil()}, "state_dict": state}, "a.pth")
    line = refused(capsys, "a.pth", "a.safetensors")
    assert "refused a.pth: loading it would run code (builtins.eval)" in line
    Path("plain.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
    assert "plain.pth" in refused(capsys, "plain.pth", "a.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "plain.pth"]


def test_other_files_are_refused_with_their_names(tmp_path: Path) -> None:
    (tmp_path / "junk.pth").write_bytes(b"junk" * 99)
    with pytest.raises(ValueError, match=r"junk.pth is not a PyTorch checkpoint, or is damaged"):
        read_official(tmp_path / "junk.pth")
    torch.save({"meta": {}}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"empty.pth holds no weights"):
        read_official(tmp_path / "empty.pth")
    with pytest.raises(FileNotFoundError, match=r"no.pth is missing"):
        read_official(tmp_path / "no.pth")
