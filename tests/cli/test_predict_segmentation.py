"""`wavevit predict` with a segmenter: records, index masks, overlays, windows and views."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wavevit.cli.main import main
from wavevit.models.card import save_model
from wavevit.segmentation.card import load_segmenter
from wavevit.segmentation.inference import SegmentationPredictor

NAMES = ["sky", "road", "car"]


@pytest.fixture(scope="module")
def model(save_segmenter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_segmenter(tmp_path_factory.mktemp("model") / "model.safetensors", NAMES)


@pytest.fixture
def images(tmp_path: Path, write_images: Callable[..., None]) -> Path:
    """``a.jpg``, ``sub/a.png`` and ``b.webp``, 40 x 36, and ``broken.jpg``."""
    root = tmp_path / "images"
    write_images(root, "a.jpg", "sub/a.png", "b.webp")
    (root / "broken.jpg").write_bytes(b"not a picture")
    return root


def expected_labels(model: Path, path: Path) -> Any:
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    return SegmentationPredictor.load(model)([pixels])[0].labels.numpy()


def test_records_masks_and_overlays(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks, overlays = tmp_path / "masks", tmp_path / "overlays"
    words = ["predict", str(images), "--checkpoint", str(model), "--confidence"]
    words += ["--save-masks", str(masks), "--draw", str(overlays)]
    assert main(words) == 1  # one image is broken
    out, err = capsys.readouterr()
    assert "broken.jpg" in err
    records = {
        Path(row["path"]).relative_to(images): row for row in map(json.loads, out.splitlines())
    }
    assert "error" in records.pop(Path("broken.jpg"))
    assert {str(path) for path in records} == {"a.jpg", "sub/a.png", "b.webp"}
    for place, row in records.items():
        labels = expected_labels(model, images / place)
        mask = Image.open((masks / place).with_suffix(".png"))
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), labels)
        shares = {entry["index"]: entry["share"] for entry in row["classes"]}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        for entry in row["classes"]:
            assert entry["label"] == NAMES[entry["index"]]
            assert entry["share"] == pytest.approx((labels == entry["index"]).mean(), abs=1e-6)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        assert (row["width"], row["height"]) == (40, 36)
        assert 1 / 3 <= row["confidence"] <= 1
    drawn = sorted(str(p.relative_to(overlays)) for p in overlays.rglob("*") if p.is_file())
    assert drawn == ["a.jpg", "b.webp.png", "sub/a.png"]
    # Nothing of it is replaced unasked.
    assert main(words) == 2
    assert "is not empty; choose another --save-masks" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 1


def test_masks_of_a_data_set_whose_first_class_is_1(
    save_segmenter: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    """Numbers are those of the data set's own masks, as its server would take them."""
    model = save_segmenter(tmp_path / "ade.safetensors", NAMES, reduce_zero_label=True)
    words = ["predict", str(images / "a.jpg"), "--checkpoint", str(model)]
    assert main([*words, "--save-masks", str(tmp_path / "masks")]) == 0
    mask = np.asarray(Image.open(tmp_path / "masks/a.png"))
    np.testing.assert_array_equal(mask, expected_labels(model, images / "a.jpg") + 1)


def test_two_images_with_one_mask_name_lose_nothing(
    model: Path, tmp_path: Path, write_images: Callable[..., None], capsys: Any
) -> None:
    write_images(tmp_path / "in", "a.jpg", "a.png")
    words = ["predict", str(tmp_path / "in"), "--checkpoint", str(model)]
    assert main([*words, "--save-masks", str(tmp_path / "masks")]) == 1
    assert "is that of another image" in capsys.readouterr().err
    assert main([*words, "--draw", str(tmp_path / "drawn")]) == 0
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"a.jpg", "a.png"}


def test_classes_without_colours_get_some(
    save_segmenter: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    model = save_segmenter(tmp_path / "grey.safetensors", NAMES, palette=[])
    words = ["predict", str(images / "a.jpg"), "--checkpoint", str(model)]
    words += ["--save-masks", str(tmp_path / "masks"), "--draw", str(tmp_path / "drawn")]
    assert main(words) == 0


def test_a_missing_checkpoint_is_what_is_said(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(images), "--checkpoint", "nowhere", "--window", "64"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_csv_has_a_row_for_each_class(model: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    words = ["predict", str(images), "--checkpoint", str(model), "--output", str(output)]
    assert main(words) == 1
    rows = list(csv.DictReader(output.read_text().splitlines()))
    of_a = [row for row in rows if row["path"].endswith("images/a.jpg")]
    assert sum(float(row["share"]) for row in of_a) == pytest.approx(1, abs=1e-5)
    broken = next(row for row in rows if row["path"].endswith("broken.jpg"))
    assert broken["error"]
    assert broken["label"] == ""


@pytest.mark.parametrize(
    "options",
    [
        ["--window", "32", "--stride", "20"],
        ["--window", "32", "--short-edge", "48"],
        ["--short-edge", "96"],
        ["--scales", "[0.5, 1.0]", "--flip", "--batch-size", "2"],
        ["--flip", "--window", "40"],
    ],
)
def test_windows_sizes_and_views_give_a_label_for_each_pixel(
    options: list[str], model: Path, images: Path, tmp_path: Path
) -> None:
    words = ["predict", str(images / "a.jpg"), str(images / "sub/a.png"), "--checkpoint"]
    assert main([*words, str(model), "--save-masks", str(tmp_path / "masks"), *options]) == 0
    for place in ("a.png", "sub/a.png"):
        mask = np.asarray(Image.open(tmp_path / "masks" / place))
        assert mask.shape == (36, 40)
        assert mask.max() < 3


def test_a_network_that_gives_nan_is_an_error_of_the_image(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segmenter, card = load_segmenter(model)
    state = segmenter.state_dict()
    state["network.head.classifier.bias"] = torch.full_like(
        state["network.head.classifier.bias"], float("nan")
    )
    save_model(tmp_path / "nan.safetensors", state, card)
    words = ["predict", str(images / "a.jpg"), "--checkpoint", str(tmp_path / "nan.safetensors")]
    assert main([*words, "--save-masks", str(tmp_path / "masks")]) == 1
    assert "NaN" in json.loads(capsys.readouterr().out)["error"]
    assert not list((tmp_path / "masks").rglob("*.png"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stride", "16"], "--stride goes with --window"),
        (["--window", "16"], "at least 32 pixels, got 16"),
        (["--window", "64", "--stride", "65"], "expected a stride"),
        (["--short-edge", "8"], "--short-edge must be 32 to 16384"),
        (["--scales", "[]"], "at least one size ratio"),
        (["--opacity", "2"], "--opacity must be in [0, 1]"),
        (["--topk", "3"], "--topk has no meaning for a model for segmentation"),
        (["--tile", "64"], "--tile has no meaning for a model for segmentation"),
        (["--draw", "x", "--save-masks", "x"], "name the same folder"),
        (["--output", "x.json"], "must end in .jsonl or .csv"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(
    options: list[str],
    words: str,
    model: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(images), "--checkpoint", str(model), *options]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"images"}
