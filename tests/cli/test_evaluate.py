"""`wavevit evaluate`: exact whatever the batches, classes by name, one line for mistakes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wavevit.cli.evaluate import measure, open_for
from wavevit.cli.inference import Classifier, load_classifier
from wavevit.cli.main import main
from wavevit.data.classification import open_classification
from wavevit.models.card import ModelCard, create_model, save_model

NAMES = ["ant", "bee", "cat", "dog"]
COLORS = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cat": (30, 30, 200), "dog": (90, 90, 90)}


def make_folder(root: Path, names: list[str] = NAMES, count: int = 6) -> Path:
    """Class folders under val/: noisy pictures in the colour of their class."""
    rng = np.random.default_rng(0)
    for name in names:
        (root / "val" / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(rng.normal(COLORS[name], 40, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "val" / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def checkpoint(
    save_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return save_classifier(tmp_path_factory.mktemp("model") / "m.safetensors", "test_resnet", NAMES)


def run(*words: object) -> int:
    return main(["evaluate", *map(str, words), "--num-workers", "0", "--device", "cpu"])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line on standard error of a command that exits 2."""
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize("name", ["test_resnet", "wavevit_nano"])
def test_batch_size_and_workers_change_no_prediction(
    name: str, folder: Path, save_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    path = save_classifier(tmp_path / "m.safetensors", name, NAMES)
    classifier = load_classifier(path, device="cpu", precision="fp32")
    dataset = open_for(classifier, str(folder)).val
    results = [measure(classifier, dataset, size, 0) for size in (1, 7, 64)]
    results.append(measure(classifier, dataset, 7, 2))
    first = results[0]
    assert len({tuple(row) for row in first.rows.top.tolist()}) > 1
    for other in results[1:]:
        assert other.rows.sample_ids == first.rows.sample_ids
        np.testing.assert_array_equal(other.rows.top, first.rows.top)
        np.testing.assert_array_equal(other.confusion, first.confusion)
        assert (other.top1, other.top5) == (first.top1, first.top5)
        # Kernels sum in another order for other batch sizes: float32 rounding of the logits.
        assert other.loss == pytest.approx(first.loss, abs=1e-5)
        assert other.ece == pytest.approx(first.ece, abs=1e-5)
    np.testing.assert_array_equal(results[1].rows.confidence, results[3].rows.confidence)


def test_the_numbers_are_those_of_the_model(checkpoint: Path, folder: Path) -> None:
    classifier = load_classifier(checkpoint, device="cpu", precision="fp32")
    dataset = open_classification(folder).val
    result = measure(classifier, dataset, 5, 0)
    images = torch.stack([classifier.transform()(dataset.load(i)) for i in range(len(dataset))])
    labels = torch.tensor(dataset.labels)
    with torch.no_grad():
        logits = classifier.model(images)
    assert result.top1 == (logits.argmax(1) == labels).double().mean().item()
    expected = nn.functional.cross_entropy(logits.double(), labels).item()
    assert result.loss == pytest.approx(expected, abs=1e-5)
    assert len(result.rows) == 24


def test_files_and_table(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "out"
    words = ("--checkpoint", checkpoint, "--data", folder, "--output", out)
    assert run(*words) == 0
    text = capsys.readouterr().out
    for label in ("top-1", "top-4", "calibration error (ECE)", "loss", "weakest classes"):
        assert label in text
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["num_images"] == 24
    assert metrics["metrics"].keys() >= {"top1", "top5", "ece", "loss", "mean_class_accuracy"}
    confusion = np.array(metrics["confusion"])
    assert confusion.sum() == 24
    assert metrics["metrics"]["top1"] == np.trace(confusion) / 24
    with open(out / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == NAMES
    assert [int(row["right"]) for row in rows] == np.diag(confusion).tolist()
    for name in ("confusion", "reliability", "predictions", "per_class"):
        with Image.open(out / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    before = (out / "metrics.json").read_bytes()
    assert "already has metrics.json" in refused(capsys, *words)
    assert run(*words, "--overwrite") == 0
    assert (out / "metrics.json").read_bytes() == before


def test_classes_are_matched_by_name(folder: Path, tmp_path: Path) -> None:
    """The same network with its outputs in another order gives the same numbers."""
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=4)
    nn.init.normal_(model.get_classifier().weight, std=1.0)
    state = model.state_dict()
    card = ModelCard("test_resnet", {"num_classes": 4}, class_names=NAMES, image_size=(32, 32))
    save_model(tmp_path / "a.safetensors", state, card)
    order = [2, 0, 3, 1]
    moved = {**state, "fc.weight": state["fc.weight"][order], "fc.bias": state["fc.bias"][order]}
    names = [NAMES[i] for i in order]
    card = ModelCard("test_resnet", {"num_classes": 4}, class_names=names, image_size=(32, 32))
    save_model(tmp_path / "b.safetensors", moved, card)
    results = []
    for path in (tmp_path / "a.safetensors", tmp_path / "b.safetensors"):
        classifier = load_classifier(path, device="cpu", precision="fp32")
        results.append(measure(classifier, open_for(classifier, str(folder)).val, 8, 0))
    a, b = results
    assert (a.top1, a.class_counts.tolist()) == (b.top1, [6] * 4)
    np.testing.assert_array_equal(a.confusion[np.ix_(order, order)], b.confusion)


def test_data_with_fewer_classes_than_the_model_is_fine(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = make_folder(tmp_path / "few", ["bee", "dog"], 3)
    assert run("--checkpoint", checkpoint, "--data", few, "--output", tmp_path / "out") == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    rows = np.array(metrics["confusion"]).sum(axis=1)
    assert rows.tolist() == [0, 3, 0, 3]


def test_classes_that_the_model_does_not_know_are_named(
    folder: Path,
    save_classifier: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["ant", "bee", "elk", "fox"]
    path = save_classifier(tmp_path / "m.safetensors", "test_resnet", names)
    line = refused(capsys, "--checkpoint", path, "--data", folder)
    assert "cat, dog" in line


def test_plain_weights_need_the_model_and_the_number_of_classes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(create_model("test_resnet", num_classes=4).state_dict(), tmp_path / "plain.pth")
    words = ("--checkpoint", tmp_path / "plain.pth", "--data", folder)
    assert "does not say which network" in refused(capsys, *words)
    assert "--num-classes goes with --model" in refused(capsys, *words, "--num-classes", 4)
    assert "pass the number of classes" in refused(capsys, *words, "--model", "test_resnet")
    assert "no model named 'resnet11t'" in refused(capsys, *words, "--model", "resnet11t")
    plain = ("--model", "test_resnet", "--num-classes", 4, "--image-size", 32)
    assert run(*words, *plain) == 0
    assert "test_resnet on" in capsys.readouterr().out


def test_a_class_count_that_differs_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "7.pth")
    plain = ("--model", "test_resnet", "--num-classes", 7, "--image-size", 32)
    line = refused(capsys, "--checkpoint", tmp_path / "7.pth", "--data", folder, *plain)
    assert "the model has 7 classes and does not name them, the data has 4" in line


def test_folders_of_imagenet_find_their_places_in_weights_without_names(tmp_path: Path) -> None:
    COLORS.update({"n01443537": (0, 0, 0), "n02979186": (255, 255, 255)})
    root = make_folder(tmp_path, ["n02979186", "n01443537"], 2)
    model = create_model("test_resnet")
    classifier = Classifier(
        model.eval(), ModelCard("test_resnet"), 1000, torch.device("cpu"), "fp32"
    )
    dataset = open_for(classifier, str(root)).val
    assert dataset.labels.tolist() == [1, 1, 482, 482]  # goldfish, cassette player


def test_an_unreadable_image_stops_it_with_its_path(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "data", count=3)
    (root / "val" / "cat" / "1.png").write_bytes(b"not an image")
    line = refused(capsys, "--checkpoint", checkpoint, "--data", root)
    assert "cat/1.png" in line
    assert main(["evaluate", "--checkpoint", str(checkpoint), "--data", str(root)]) == 2
    assert "cat/1.png" in capsys.readouterr().err  # through worker processes too


def test_a_model_that_gives_nan_stops_it_with_the_sample(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.safetensors"
    card = ModelCard("test_resnet", {"num_classes": 4}, class_names=NAMES, image_size=(32, 32))
    state = card.build().state_dict()
    state["fc.bias"][2] = torch.nan
    save_model(path, state, card)
    assert "'val/ant/0.png' holds NaN" in refused(capsys, "--checkpoint", path, "--data", folder)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_runs_and_stays_near(precision: str, checkpoint: Path, folder: Path) -> None:
    results = []
    for name in ("fp32", precision):
        classifier = load_classifier(checkpoint, device="cpu", precision=name)
        results.append(measure(classifier, open_for(classifier, str(folder)).val, 8, 0))
    # bfloat16 keeps 8 bits; errors of a few percent of the logits are its own.
    assert results[1].loss == pytest.approx(results[0].loss, rel=0.1)
    assert results[1].loss != results[0].loss


def test_mistakes_are_one_line_and_exit_2(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = ("--checkpoint", checkpoint), ("--data", folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "junk.safetensors").write_bytes(b"\0" * 100)
    assert "no.safetensors" in refused(capsys, "--checkpoint", tmp_path / "no.safetensors", *data)
    assert "damaged" in refused(capsys, "--checkpoint", tmp_path / "junk.safetensors", *data)
    assert "best.safetensors" in refused(capsys, "--checkpoint", tmp_path / "empty", *data)
    assert refused(capsys, *model, "--data", tmp_path / "no")
    assert refused(capsys, *model, "--data", tmp_path / "empty")
    assert "is a file" in refused(capsys, *model, *data, "--output", tmp_path / "file")
    assert refused(capsys, *model, *data, "--output", tmp_path / "file" / "out")
    assert "at least 1" in refused(capsys, *model, *data, "--batch-size", 0)
    assert "batch-size" in refused(capsys, *model, *data, "--batch-size", "many")
    assert "did you mean --batch-size" in refused(capsys, *model, *data, "--batch-sise", 3)
    assert "no split 'train'" in refused(capsys, *model, *data, "--split", "train")
    assert "--image-size" in refused(capsys, *model, *data, "--image-size", 0)
    assert refused(capsys, *data)
    if not torch.cuda.is_available():
        words = (*map(str, model), *map(str, data), "--device", "cuda")
        assert main(["evaluate", *words]) == 2
        assert "no CUDA device" in capsys.readouterr().err


def test_an_image_size_that_the_network_cannot_take_is_one_line(
    folder: Path,
    save_classifier: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = save_classifier(tmp_path / "m.safetensors", "wavevit_test", NAMES)
    line = refused(capsys, "--checkpoint", path, "--data", folder, "--image-size", 16)
    assert "wavevit_test cannot run on 16x16 images in fp32 on cpu" in line


def test_a_backbone_without_classes_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = ModelCard("test_resnet", {"num_classes": 0}, image_size=(32, 32))
    save_model(tmp_path / "b.safetensors", card.build().state_dict(), card)
    line = refused(capsys, "--checkpoint", tmp_path / "b.safetensors", "--data", folder)
    assert "has no classes" in line


def test_help_names_units_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--help"]) == 0
    text = capsys.readouterr().out
    assert "pixels" in text
    assert "64 of a classifier, 1 of others" in " ".join(text.split())
