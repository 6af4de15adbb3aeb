"""`wavevit export`: models of every task run from their files as they ran before, or not at all."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wavevit.cli.inference import load_classifier
from wavevit.cli.main import main

onnx = pytest.importorskip("onnx", reason='needs pip install "wavevit[export]"')
onnxruntime = pytest.importorskip("onnxruntime", reason='needs pip install "wavevit[export]"')
pytest.importorskip("onnxscript", reason='needs pip install "wavevit[export]"')

NAMES = ["ant", "bee", "chat noir"]
FORMATS = ("onnx", "torch", "aotinductor", "openvino")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, neither square nor of one size."""
    folder = tmp_path_factory.mktemp("images")
    for seed, size in enumerate(((200, 150), (150, 180), (333, 190))):
        pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(
    save_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    return save_classifier(path, "wavevit_test", NAMES, image_size=(64, 64))


@pytest.fixture(scope="module")
def exported(
    checkpoint: Path, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A Wave-ViT as ONNX, checked on the pictures; and what the command said."""
    folder = tmp_path_factory.mktemp("exports") / "onnx"
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("wavevit.cli.export._say", said.append)
        assert export(checkpoint, folder, "--check", images) == 0
    return folder, "\n".join(said)


def export(checkpoint: Path, output: Path, *words: object) -> int:
    return main(["export", f"--checkpoint={checkpoint}", f"--output={output}", *map(str, words)])


def predicted(capsys: pytest.CaptureFixture[str], checkpoint: Path, images: Path) -> list[Any]:
    assert main(["predict", "--checkpoint", str(checkpoint), str(images)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def assert_near(ours: Any, theirs: Any) -> None:
    """Equal, but for numbers, which may differ in the fourth digit."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_near(value, theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_near(a, b)
    elif isinstance(ours, float):
        assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-5)
    else:
        assert ours == theirs


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_the_check_says_how_near_the_export_is(exported: tuple[Path, str]) -> None:
    assert "check passed: same top-3 on 3 of 3 images" in exported[1]


def test_predict_gives_the_same_records(
    exported: tuple[Path, str], checkpoint: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eager = predicted(capsys, checkpoint, images)
    assert len(eager) == 3
    for place in (exported[0], exported[0] / "network.onnx", exported[0] / "export.json"):
        assert_near(eager, predicted(capsys, place, images))


def test_the_file_alone_tells_a_user_what_to_feed_it_and_takes_any_batch_and_size(
    exported: tuple[Path, str], checkpoint: Path
) -> None:
    session = onnxruntime.InferenceSession(exported[0] / "network.onnx")
    told = session.get_modelmeta().custom_metadata_map
    card = load_classifier(checkpoint, device="cpu", precision="fp32").card
    assert json.loads(told["classes"]) == NAMES
    assert (json.loads(told["mean"]), json.loads(told["std"])) == (list(card.mean), list(card.std))
    network = load_classifier(checkpoint, device="cpu", precision="fp32").model
    for B, H, W in ((1, 64, 64), (3, 96, 64), (2, 75, 130)):
        pixels = torch.randn(B, 3, H, W)
        (logits,) = session.run(None, {"images": pixels.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), network(pixels), atol=1e-4, rtol=0)


def test_the_manifest_has_the_hash_of_every_file(exported: tuple[Path, str]) -> None:
    folder = exported[0]
    files = json.loads((folder / "export.json").read_text())["files"]
    assert files.keys() == {path.name for path in folder.iterdir()} - {"export.json"}
    for name, digest in files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_damaged_and_incomplete_exports_are_refused(
    exported: tuple[Path, str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("predict", images, "--checkpoint")
    damaged = shutil.copytree(exported[0], tmp_path / "damaged")
    content = bytearray((damaged / "network.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "network.onnx").write_bytes(content)
    assert "network.onnx is damaged" in refused(capsys, *words, damaged)
    (damaged / "network.onnx").unlink()
    assert "network.onnx is missing" in refused(capsys, *words, damaged)
    (damaged / "export.json").write_text('{"layout": 1')
    assert "export.json cannot be read" in refused(capsys, *words, damaged)


def test_nothing_is_overwritten_and_options_without_effect_are_refused(
    exported: tuple[Path, str],
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.read_bytes() for path in exported[0].iterdir()}
    to = ("export", "--checkpoint", checkpoint, "--output")
    assert "exists; choose another name" in refused(capsys, *to, exported[0])
    assert {path: path.read_bytes() for path in exported[0].iterdir()} == before
    assert "does not exist" in refused(capsys, *to, tmp_path / "none" / "x")
    again = ("export", "--checkpoint", exported[0], "--output", tmp_path / "x")
    assert "is exported already" in refused(capsys, *again)
    of_export = ("predict", images, "--checkpoint", exported[0])
    assert "leave out --runtime" in refused(capsys, *of_export, "--runtime", "compiled")
    assert "leave out --precision" in refused(capsys, *of_export, "--precision", "bf16")
    missing = refused(capsys, *to, tmp_path / "x", "--check", tmp_path / "none.png")
    assert "none.png" in missing
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_classifier_of_the_smallest_images_takes_those(
    save_classifier: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    """Its last map is one cell, and torch exports no map of both one cell and more."""
    path = save_classifier(tmp_path / "m.safetensors", "wavevit_test", NAMES, image_size=(32, 32))
    assert export(path, tmp_path / "x", "--check", images) == 0
    shapes = json.loads((tmp_path / "x/export.json").read_text())["parts"][0]["shapes"]
    assert shapes == [["batch", 3, 32, 32]]


def test_a_format_without_its_compiler_is_refused_before_any_work(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ("export", "--checkpoint", checkpoint, "--output", tmp_path / "x")
    assert "install g++" in refused(capsys, *words, "--format", "aotinductor")


def assert_export_checks(checkpoint: Path, images: Path, folder: Path, form: str) -> None:
    assert export(checkpoint, folder, "--format", form, "--check", images) == 0
    if form == "onnx":
        for file in folder.glob("*.onnx"):
            onnx.checker.check_model(str(file))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["wavevit_test", "test_resnet"])
def test_classifiers_in_every_format(
    save_classifier: Callable[..., Path], images: Path, tmp_path: Path, name: str, form: str
) -> None:
    path = save_classifier(tmp_path / "m.safetensors", name, NAMES, image_size=(64, 64))
    assert_export_checks(path, images, tmp_path / "x", form)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_segmenters_in_every_format(
    save_segmenter: Callable[..., Path], images: Path, tmp_path: Path, form: str
) -> None:
    path = save_segmenter(tmp_path / "m.safetensors")
    assert_export_checks(path, images, tmp_path / "x", form)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["gfl", "mask_rcnn"])
def test_detectors_in_every_format(
    save_detector: Callable[..., Path], images: Path, tmp_path: Path, name: str, form: str
) -> None:
    path = save_detector(tmp_path / "m.safetensors", name)
    assert_export_checks(path, images, tmp_path / "x", form)
