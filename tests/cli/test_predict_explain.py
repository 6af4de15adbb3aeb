"""``wavevit predict --explain`` writes the explanation of the library over the part it is of."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wavevit import explain
from wavevit.cli.inference import load_classifier
from wavevit.cli.main import main
from wavevit.data.transforms import eval_view
from wavevit.pictures.heat_maps import explained_picture


@pytest.fixture(scope="module")
def checkpoint(
    save_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    return save_classifier(path, "wavevit_test", ["ant", "bee"], image_size=(64, 64), crop_pct=0.8)


@pytest.fixture
def images(tmp_path: Path, write_images: Callable[..., None]) -> Path:
    write_images(tmp_path / "images", "a.png", "sub/b.png", "c.bmp")
    return tmp_path / "images"


def run(checkpoint: Path, *words: object) -> int:
    return main(["predict", "--checkpoint", str(checkpoint), "--device", "cpu", *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], checkpoint: Path, *words: object) -> str:
    assert run(checkpoint, *words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize("method", [None, "attention"])
def test_pictures_hold_the_explanation_and_keep_their_places(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    method: str | None,
) -> None:
    drawn, explained = tmp_path / "drawn", tmp_path / "explained"
    words = ["--draw", drawn, "--explain", explained]
    words += ["--explain-method", method] if method else ["--explain-stage", 1]
    assert run(checkpoint, images, *words) == 0
    records = {r["path"]: r for r in map(json.loads, capsys.readouterr().out.splitlines())}
    for folder in (drawn, explained):
        found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert found == {"a.png", "sub/b.png", "c.bmp.png"}
    classifier = load_classifier(checkpoint, device="cpu", precision="fp32")
    image = Image.open(images / "a.png").convert("RGB")
    pixels = classifier.transform()(image)[None]
    predictions = records[str(images / "a.png")]["predictions"]
    if method:
        heat = explain.class_token_attention(classifier.model, pixels)[0].mean(dim=0)
        caption = "attention of the class token"
    else:
        heat = explain.grad_cam(classifier.model, pixels, predictions[0]["index"], 1)[0]
        caption = f"Grad-CAM at stride 8: {predictions[0]['label']}"
    box = eval_view(image.size, (64, 64), crop_pct=0.8)
    bars = [(p["label"], p["probability"]) for p in predictions]
    expected = np.asarray(explained_picture(image, heat.numpy(), caption, bars, box)).astype(int)
    written = np.asarray(Image.open(explained / "a.png")).astype(int)
    assert np.abs(written - expected).max() <= 1
    assert "not empty" in refused(capsys, checkpoint, images, "--explain", explained)
    assert run(checkpoint, images, "--explain", explained, "--overwrite") == 0


def test_what_fails_in_one_folder_does_not_hide_the_other(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, explained = tmp_path / "drawn", tmp_path / "explained"
    (tmp_path / "in" / "sub").mkdir(parents=True)
    shutil.copy(images / "a.png", tmp_path / "in" / "sub")
    for folder in (drawn, explained):
        folder.mkdir()
        (folder / "sub").write_text("a file where a folder is to be")
    words = (tmp_path / "in", "--draw", drawn, "--explain", explained, "--overwrite")
    assert run(checkpoint, *words) == 1
    error = capsys.readouterr().err
    assert str(drawn / "sub") in error
    assert str(explained / "sub") in error


def test_an_image_named_twice_is_explained_once(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    image = images / "a.png"
    assert run(checkpoint, image, image, "--explain", tmp_path / "explained") == 0
    assert [path.name for path in (tmp_path / "explained").iterdir()] == ["a.png"]


def test_mistakes_are_one_line_and_leave_nothing_behind(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    save_classifier: Callable[..., Path],
    save_detector: Callable[..., Path],
    save_segmenter: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"

    def line(*words: object, model: Path = checkpoint) -> str:
        return refused(capsys, model, images, *words)

    assert "go with --explain FOLDER" in line("--explain-stage", 1)
    assert "stages 0 to 3 at strides 4, 8, 16, 32" in line("--explain", out, "--explain-stage", 4)
    attention = ("--explain", out, "--explain-method", "attention")
    assert "last stage only" in line(*attention, "--explain-stage", 1)
    assert "choose folders apart" in line("--explain", out / "in", "--draw", out)
    assert "inside the input folder" in line("--explain", images / "out")
    resnet = save_classifier(tmp_path / "r.safetensors", "test_resnet", ["ant", "bee"])
    assert "take grad_cam" in line(*attention, model=resnet)
    for model, task in (
        (save_detector(tmp_path / "d.safetensors"), "detection"),
        (save_segmenter(tmp_path / "s.safetensors"), "segmentation"),
    ):
        assert f"no meaning for a model for {task}" in line("--explain", out, model=model)
    assert not out.exists()
