"""`wavevit export`: the folder stands for the model, and what cannot be exported is one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wavevit.cli.demo import load_lookers
from wavevit.cli.main import main
from wavevit.data.images import load_image
from wavevit.demo.looks import Wishes
from wavevit.demo.where import Question, draw_where
from wavevit.export.loading import load_exported

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    for seed, size in enumerate(((64, 48), (40, 90))):
        pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def checkpoint(
    save_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    return save_classifier(path, "wavevit_test", ["ant", "bee", "cat"], image_size=(64, 64))


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "onnx"
    words = ["export", "--checkpoint", str(checkpoint), "--output", str(folder)]
    assert main(words) == 0
    return folder


def records(capsys: pytest.CaptureFixture[str], checkpoint: Path, *words: str) -> list[dict]:
    assert main(["predict", "--checkpoint", str(checkpoint), *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line on standard error of a command that exits 2."""
    assert main(list(map(str, words))) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize("named", [".", "network.onnx", "export.json"])
def test_predict_takes_the_export_in_place_of_the_checkpoint(
    named: str,
    exported: Path,
    checkpoint: Path,
    images: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = records(capsys, exported / named, *images)
    expected = records(capsys, checkpoint, *images)
    assert len(found) == len(images)
    for ours, theirs in zip(found, expected, strict=True):
        probabilities = [[p.pop("probability") for p in r["predictions"]] for r in (ours, theirs)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=2e-6)
        assert ours == theirs


def test_the_file_alone_says_what_it_is_and_takes_any_batch_and_size(
    exported: Path, checkpoint: Path
) -> None:
    import onnxruntime

    from wavevit.models.weights import load_model

    session = onnxruntime.InferenceSession(
        str(exported / "network.onnx"), providers=["CPUExecutionProvider"]
    )
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == ["ant", "bee", "cat"]
    assert json.loads(facts["mean"]) == pytest.approx([0.485, 0.456, 0.406])
    assert session.get_inputs()[0].name == "images"
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].name == "logits"
    model, _ = load_model(checkpoint)
    for shape in ((1, 3, 64, 64), (3, 3, 75, 130)):
        x = torch.randn(shape)
        with torch.no_grad():
            expected = model(x).numpy()
        np.testing.assert_allclose(
            session.run(None, {"images": x.numpy()})[0], expected, rtol=1e-4, atol=1e-4
        )


def test_check_tells_a_wrong_export_from_a_right_one(
    exported: Path,
    images: list[str],
    save_classifier: Callable[..., Path],
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    from wavevit.cli.export_check import compare, load_subject

    right, theirs = load_subject(checkpoint), load_subject(exported)
    found = compare(right, theirs, images)
    assert found.passed
    assert found.numbers["images"] == found.numbers["same"] == 2
    other = save_classifier(
        tmp_path / "m.safetensors", "wavevit_test", ["a", "b", "c"], seed=1, image_size=(64, 64)
    )
    assert not compare(load_subject(other), theirs, images).passed


def test_what_an_export_cannot_do_is_one_line(
    exported: Path, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    predict = ("predict", "--checkpoint", exported, *images)
    assert "leave out --precision bf16" in refused(capsys, *predict, "--precision", "bf16")
    assert "leave out --runtime compiled" in refused(capsys, *predict, "--runtime", "compiled")
    assert "images from 33x33 pixels" in refused(capsys, *predict, "--image-size", 20)
    assert "leave out --model" in refused(capsys, *predict, "--model", "wavevit_s")


def test_what_cannot_be_exported_is_one_line(
    exported: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("export", "--checkpoint", checkpoint, "--output")
    assert "choose another name" in refused(capsys, *words, exported)
    assert "does not exist" in refused(capsys, *words, tmp_path / "no" / "out")
    out = tmp_path / "out"
    assert "no such file" in refused(capsys, *words, out, "--check", tmp_path / "no.png")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "install g++" in refused(capsys, *words, out, "--format", "aotinductor")
    already = refused(capsys, "export", "--checkpoint", exported, "--output", out)
    assert "is exported already" in already
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_export_is_refused(
    exported: Path, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "network.onnx").write_bytes(b"no graph")
    assert "is damaged" in refused(capsys, "predict", "--checkpoint", tmp_path, *images)


@pytest.mark.slow
def test_a_classifier_of_the_smallest_images_takes_those(
    save_classifier: Callable[..., Path], images: list[str], tmp_path: Path
) -> None:
    """Its last map is one cell, and torch exports no map of both one cell and more."""
    path = save_classifier(
        tmp_path / "m.safetensors", "wavevit_test", ["a", "b", "c"], image_size=(32, 32)
    )
    words = ["--checkpoint", path, "--output", tmp_path / "x", "--check", *images]
    assert main(["export", *map(str, words)]) == 0
    (part,) = load_exported(tmp_path / "x").manifest.parts
    assert part.shapes == [["batch", 3, 32, 32]]


def test_the_demo_shows_what_an_exported_model_sees_but_not_where_it_looks(
    exported: Path, images: list[str]
) -> None:
    lookers, summaries = load_lookers([exported], "cpu", "fp32")
    (looker,) = lookers.values()
    assert list(summaries.values()) == ["wavevit_test: classification, 3 classes"]
    picture = load_image(images[0])
    assert len(looker.look(picture, Wishes()).rows) == 3
    with pytest.raises(ValueError, match="This is an exported model"):
        draw_where(looker, picture, Question())


@pytest.mark.slow
def test_int8_is_calibrated_checked_and_much_smaller(
    exported: Path,
    checkpoint: Path,
    images: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "int8"
    words = ["--checkpoint", str(checkpoint), "--output", str(folder), "--int8"]
    # Twice the same pictures: the toy's weights are random, so only the words of the check count.
    code = main(["export", *words, "--calibration", *images, "--check", *images])
    said = capsys.readouterr().out
    assert code == (0 if "check passed" in said else 1)
    assert "of 2 images" in said
    assert "times as long" in said
    assert load_exported(folder).manifest.precision == "int8"
    before, after = ((each / "network.onnx").stat().st_size for each in (exported, folder))
    assert after < 0.8 * before
    ours, theirs = (load_exported(each).model for each in (exported, folder))
    pixels = torch.randn(2, 3, 64, 64)
    error = (ours(pixels) - theirs(pixels)).abs().mean() / ours(pixels).abs().mean()
    assert 0 < error < 0.2


def test_int8_without_images_or_for_another_format_is_one_line(
    checkpoint: Path, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("export", "--checkpoint", checkpoint, "--output", tmp_path / "x")
    assert "go together" in refused(capsys, *words, "--int8")
    assert "go together" in refused(capsys, *words, "--calibration", *images)
    other = ("--int8", "--calibration", *images, "--format", "torch")
    assert "is for --format onnx" in refused(capsys, *words, *other)


@pytest.mark.slow  # OpenVINO's threads do not outlive a later test's fork; compiling takes minutes
@pytest.mark.parametrize("form", ["torch", "openvino", "aotinductor"])
@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_every_format_passes_its_own_check(
    form: str,
    task: str,
    checkpoint: Path,
    images: list[str],
    save_detector: Callable[..., Path],
    save_segmenter: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if form == "openvino":
        pytest.importorskip("openvino")
    if task == "detection":
        checkpoint = save_detector(
            tmp_path / "m.safetensors", "mask_rcnn", short_edge=160, long_edge=224
        )
    elif task == "segmentation":
        checkpoint = save_segmenter(tmp_path / "m.safetensors")
    words = ["--checkpoint", checkpoint, "--output", tmp_path / "out", "--format", form]
    assert main(["export", *map(str, words), "--check", *images]) == 0
    assert "check passed" in capsys.readouterr().out
    assert load_exported(tmp_path / "out").manifest.task == task
    assert len(records(capsys, tmp_path / "out", *images)) == 2


def test_check_images_are_read_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_text("no image")
    words = ["--output", str(tmp_path / "out"), "--check", str(tmp_path / "broken.jpg")]
    assert main(["export", "--checkpoint", str(checkpoint), *words]) == 2
    assert "cannot read image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_part_without_its_folder_is_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "network.onnx").write_bytes(b"graph")
    assert main(["predict", "--checkpoint", str(tmp_path / "network.onnx"), str(tmp_path)]) == 2
    assert "give the folder that `wavevit export` wrote" in capsys.readouterr().err
