"""Hub folders load elsewhere as what they were here, and tell what was measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard as HubCard
from torch import Tensor, nn

from wavevit.cli.main import main
from wavevit.detection.card import DetectorCard, load_detector
from wavevit.hub.folder import save_hub_folder
from wavevit.models.card import ModelCard, save_model
from wavevit.models.weights import load_model
from wavevit.segmentation.card import SegmenterCard, load_segmenter

CLASSES = ["cat", "dog: a 'good' one", "Käfer"]
METRICS = {"top1": 0.875, "top5": 1.0, "loss": 0.4375, "ece": 0.03125}


def save_classifier(path: Path, model: str = "wavevit_test", **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    channels = arguments.get("in_chans", 3)
    card = ModelCard(
        model,
        {"num_classes": len(CLASSES), **arguments},
        class_names=CLASSES,
        image_size=(48, 48),
        mean=(0.5, 0.4, 0.3)[:channels],
        std=(0.2, 0.2, 0.25)[:channels],
        crop_pct=0.9,
        interpolation="bilinear",
        metrics=METRICS,
    )
    network = card.build()
    with torch.no_grad():
        for parameter in network.parameters():  # so that images differ in the logits
            parameter.add_(0.05 * torch.randn_like(parameter))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, network.state_dict(), card)
    return network


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory as training leaves one."""
    run = tmp_path / "runs" / "mine"
    save_classifier(run / "best.safetensors")
    settings = {
        "data": {"path": "/home/someone/secret/flowers", "batch_size": 8, "num_workers": 2},
        "model": {"name": "wavevit_test", "weights": "/home/someone/weights.pth"},
        "optim": {"lr": 0.001, "epochs": 3},
        "output": "/home/someone/runs/mine",
    }
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    rows = [{"kind": "train", "step": s, "epoch": s / 4, "loss": 2 / s, "lr": 1e-3} for s in (1, 2)]
    rows.append({"kind": "evaluation", "step": 2, "epoch": 0.5, **METRICS})
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "samples.png").write_bytes(b"pictures of somebody")
    return run


def images(size: int = 48) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("wavevit_test", {}),
        ("wavevit_test", {"global_pool": "avg"}),
        ("wavevit_test", {"token_label": True}),
        ("wavevit_test", {"in_chans": 1}),
        ("test_resnet", {}),
        ("test_vit", {"img_size": 48}),
    ],
)
def test_timm_loads_the_same_network_with_the_same_preprocessing(
    tmp_path: Path, model: str, arguments: dict[str, Any]
) -> None:
    network = save_classifier(tmp_path / "m.safetensors", model, **arguments)
    save_hub_folder(tmp_path / "m.safetensors", tmp_path / "hub")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    channels = arguments.get("in_chans", 3)
    x = images()[:, :channels]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), network(x), rtol=0, atol=0)
    assert list(loaded.pretrained_cfg["label_names"]) == CLASSES
    config = timm.data.resolve_model_data_config(loaded)
    assert tuple(config["input_size"]) == (channels, 48, 48)
    assert tuple(config["mean"]) == (0.5, 0.4, 0.3)[:channels]
    assert tuple(config["std"]) == (0.2, 0.2, 0.25)[:channels]
    assert (config["crop_pct"], config["interpolation"]) == (0.9, "bilinear")


@pytest.mark.parametrize("arguments", [{}, {"token_label": True}])
def test_timm_fine_tunes_it_on_other_classes_and_takes_its_features(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    network = save_classifier(tmp_path / "m.safetensors", **arguments)
    save_hub_folder(tmp_path / "m.safetensors", tmp_path / "hub")
    source = f"local-dir:{tmp_path / 'hub'}"
    other = timm.create_model(source, pretrained=True, num_classes=7)
    assert other.eval()(images()).shape == (2, 7)
    expected = network.state_dict()
    for name, value in other.state_dict().items():
        if "head" not in name:
            assert torch.equal(value, expected[name]), name
    features = timm.create_model(source, pretrained=True, features_only=True).eval()
    with torch.inference_mode():
        maps = features(images())
        known: Any = network.forward_intermediates(images(), intermediates_only=True)  # type: ignore[operator]
    torch.testing.assert_close(maps, known)


def test_a_folder_on_the_hub_is_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What timm asks the hub for is there: only the download itself is replaced."""
    network = save_classifier(tmp_path / "m.safetensors")
    save_hub_folder(tmp_path / "m.safetensors", tmp_path / "hub")
    asked = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append((repo_id, filename))
        return str(tmp_path / "hub" / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    loaded = timm.create_model("hf-hub:me/flowers", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images()), network(images()), rtol=0, atol=0)
    assert set(asked) == {("me/flowers", "config.json"), ("me/flowers", "model.safetensors")}


def test_the_folder_is_a_checkpoint_for_wavevit_too(tmp_path: Path) -> None:
    network = save_classifier(tmp_path / "m.safetensors")
    save_hub_folder(tmp_path / "m.safetensors", tmp_path / "hub")
    loaded, card = load_model(tmp_path / "hub")
    assert card.class_names == CLASSES
    with torch.inference_mode():
        assert torch.equal(loaded(images()), network(images()))


def test_the_card_has_the_results_of_the_run_and_no_path_of_this_machine(
    run: Path, tmp_path: Path
) -> None:
    files = save_hub_folder(run, tmp_path / "flowers-s", license="cc-by-4.0")
    assert [file.name for file in files] == [
        "README.md",
        "config.json",
        "curves.png",
        "model.safetensors",
    ]
    card = HubCard.load(tmp_path / "flowers-s" / "README.md")
    data = card.data
    assert (data.license, data.library_name) == ("cc-by-4.0", "timm")
    assert data.pipeline_tag == "image-classification"
    assert data.model_name == "flowers-s"
    assert data.eval_results is not None
    results = {each.metric_name: each for each in data.eval_results}
    accuracy = results["top-1 accuracy"]
    assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", 0.875)
    assert (accuracy.dataset_name, accuracy.dataset_split) == ("flowers", "validation")
    assert "| top-1 accuracy | 0.8750 |" in card.text
    assert ", ".join(CLASSES) in card.text
    assert "lr: 0.001" in card.text
    assert (
        json.loads((tmp_path / "flowers-s/config.json").read_text())["pretrained_cfg"]["license"]
        == "cc-by-4.0"
    )
    for file in files:
        assert b"someone" not in file.read_bytes(), f"{file} names the user of this machine"


def test_the_python_of_a_card_runs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    folder = tmp_path / "flowers"
    save_hub_folder(run, folder)
    text = (folder / "README.md").read_text("utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    code = code.replace("hf-hub:USER/flowers", f"local-dir:{folder}").replace("[:5]", "[:3]")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 50), (200, 10, 10)).save("photo.jpg")
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert sorted(line.rsplit(" ", 1)[0] for line in said) == sorted(CLASSES)
    assert sum(float(line.rsplit(" ", 1)[1]) for line in said) == pytest.approx(1, abs=2e-3)


def write_evaluation(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    content = {
        "data": "/home/someone/other-flowers/",
        "split": "test",
        "num_images": 40,
        "num_classes": 3,
        "metrics": {"top1": 0.75, "loss": 1.5},
        **changes,
    }
    (folder / "metrics.json").write_text(json.dumps(content))
    (folder / "confusion.png").write_bytes(b"a matrix")
    (folder / "predictions.png").write_bytes(b"pictures of somebody")
    return folder


def test_results_of_an_evaluation_stand_in_place_of_those_of_training(
    run: Path, tmp_path: Path
) -> None:
    evaluation = write_evaluation(tmp_path / "evaluated")
    save_hub_folder(run, tmp_path / "hub", evaluation=evaluation)
    card = HubCard.load(tmp_path / "hub/README.md")
    assert card.data.eval_results is not None
    found = [(r.metric_name, r.metric_value, r.dataset_name) for r in card.data.eval_results]
    assert found == [("top-1 accuracy", 0.75, "other-flowers"), ("loss", 1.5, "other-flowers")]
    assert "Measured on other-flowers (test, 40 images)" in card.text
    assert "![Confusion matrix](confusion.png)" in card.text
    assert not (tmp_path / "hub/predictions.png").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_classes": 4}, "about a model of 4 classes, and this one has 3"),
        ({"metrics": {"mean_iou": 0.5}}, "is not about a model for classification"),
    ],
)
def test_an_evaluation_of_another_model_is_refused(
    run: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    evaluation = write_evaluation(tmp_path / "evaluated", **changes)
    with pytest.raises(ValueError, match=words):
        save_hub_folder(run, tmp_path / "hub", evaluation=evaluation)
    assert not (tmp_path / "hub").exists()


def test_nothing_is_overwritten_unless_asked_and_other_files_stay(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / ".gitattributes").write_text("of a clone")
    save_hub_folder(run, folder)
    before = (folder / "README.md").read_text()
    with pytest.raises(FileExistsError, match=r"already has model.safetensors, .*--overwrite"):
        save_hub_folder(run, folder, name="other")
    assert (folder / "README.md").read_text() == before
    (run / "log.jsonl").unlink()
    save_hub_folder(run, folder, name="other", overwrite=True)
    assert "# other\n" in (folder / "README.md").read_text()
    assert not (folder / "curves.png").exists(), "a picture of the model before"
    assert (folder / ".gitattributes").read_text() == "of a clone"


def test_after_an_error_nothing_is_left_behind(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("wavevit.hub.folder.save_model", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="no space left"):
        save_hub_folder(run, tmp_path / "hub")
    assert sorted(tmp_path.iterdir()) == before


def test_a_detector_is_a_folder_that_predicts(tmp_path: Path) -> None:
    card = DetectorCard(
        "gfl",
        "wavevit_test",
        {"fpn_channels": 32, "head_channels": 32, "num_tower_convs": 1},
        ["ant", "bee"],
        [1, 2],
        short_edge=64,
        long_edge=96,
        metrics={"box_ap": 0.25, "box_ap_small": -1.0},
    )
    detector = card.build()
    save_model(tmp_path / "m.safetensors", detector.state_dict(), card)
    save_hub_folder(tmp_path / "m.safetensors", tmp_path / "hub", dataset="Insects")
    loaded, loaded_card = load_detector(tmp_path / "hub")
    assert loaded_card == card
    for name, value in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    data = HubCard.load(tmp_path / "hub/README.md").data
    assert (data.library_name, data.pipeline_tag) == ("wavevit", "object-detection")
    assert data.eval_results is not None
    found = [(r.metric_name, r.metric_value, r.dataset_name) for r in data.eval_results]
    assert found == [("box AP", 0.25, "Insects")]  # none of small objects, which there were not
    assert not (tmp_path / "hub/config.json").exists()


def test_a_segmenter_is_a_folder_that_predicts(tmp_path: Path) -> None:
    options = {"channels": 16, "auxiliary": False}
    card = SegmenterCard("upernet", "wavevit_test", options, ["sky", "road"])
    segmenter = card.build()
    save_model(tmp_path / "m.safetensors", segmenter.state_dict(), card)
    save_hub_folder(tmp_path / "m.safetensors", tmp_path / "hub")
    loaded, _ = load_segmenter(tmp_path / "hub")
    with torch.inference_mode():
        assert torch.equal(loaded(images(64)), segmenter(images(64)))
    text = (tmp_path / "hub/README.md").read_text()
    assert "SegmentationPredictor.load" in text
    assert "No results have been measured." in text
    assert "model-index" not in text


def test_the_command_says_what_it_wrote_and_how_to_upload_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "flowers"
    assert main(["hub-folder", str(run), str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"written: {folder / 'model.safetensors'}" in said
    assert "no license is stated" in said
    assert said.splitlines()[-1] == f"upload it with: hf upload USER/flowers {folder}"
    assert main(["hub-folder", str(run), str(folder), "--license", "mit"]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert main(["hub-folder", str(run), str(folder), "--license", "mit", "--overwrite"]) == 0
    assert "license: mit" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.safetensors", "does not exist"),
        ("official.pth", "is no model file: take the best.safetensors of a run, or convert"),
        ("bare.safetensors", "does not say which network it holds"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    from safetensors.torch import save_file

    (tmp_path / "official.pth").write_bytes(b"")
    save_file({"weight": torch.zeros(1)}, tmp_path / "bare.safetensors")
    assert main(["hub-folder", str(tmp_path / name), str(tmp_path / "hub")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "hub").exists()


def test_transformers_loads_it_with_its_labels_and_preprocessing(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason='pip install "wavevit[examples]"')
    network = save_classifier(tmp_path / "m.safetensors")
    save_hub_folder(tmp_path / "m.safetensors", tmp_path / "hub")
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hub")
    with torch.inference_mode():
        torch.testing.assert_close(loaded.eval()(images()).logits, network(images()))
    assert list(loaded.config.id2label.values()) == CLASSES
