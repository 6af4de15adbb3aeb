"""`wavevit predict`: streams, keeps the order, survives bad files and odd names, harms no input."""

import csv
import io
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wavevit.cli.image_paths import base_folder, read_list
from wavevit.cli.inference import Classifier, load_classifier
from wavevit.cli.main import main
from wavevit.cli.picture_folders import PictureFolder, picture_name
from wavevit.cli.predict import predictions
from wavevit.cli.prediction_files import ImageRecord
from wavevit.data.images import load_image
from wavevit.models.card import ModelCard

NAMES = ["ant", "bee", "chat noir", "犬"]


def make_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(
    save_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return save_classifier(tmp_path_factory.mktemp("model") / "m.safetensors", "test_resnet", NAMES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images a.png, b.jpg, sub/a.png, sub/c.png and a text file."""
    root = tmp_path / "images"
    for seed, name in enumerate(("a.png", "b.jpg", "sub/a.png", "sub/c.png")):
        make_image(root / name, seed)
    (root / "notes.txt").write_text("no image")
    return root


def run(checkpoint: Path, *words: object) -> int:
    return main(["predict", "--checkpoint", str(checkpoint), "--device", "cpu", *map(str, words)])


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(capsys: pytest.CaptureFixture[str], checkpoint: Path, *words: object) -> str:
    """The one line on standard error of a command that exits 2."""
    assert run(checkpoint, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))
    sys.stdin.read = sys.stdin.buffer.read  # type: ignore[method-assign]


# --- What comes out -------------------------------------------------------------------------------


def test_json_lines_hold_the_model_s_probabilities_best_first(
    checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkpoint, folder, "--topk", 3) == 0
    records = lines(capsys)
    expected = [folder / name for name in ("a.png", "b.jpg", "sub/a.png", "sub/c.png")]
    assert [record["path"] for record in records] == list(map(str, expected))
    classifier = load_classifier(checkpoint, device="cpu", precision="fp32")
    for record in records:
        assert record.keys() == {"path", "predictions", "width", "height"}
        assert (record["width"], record["height"]) == (40, 30)
        image = classifier.transform()(load_image(record["path"]))
        probabilities = classifier.logits(image[None]).softmax(1)[0]
        best = probabilities.argsort(descending=True)[:3].tolist()
        assert [p["index"] for p in record["predictions"]] == best
        assert [p["label"] for p in record["predictions"]] == [NAMES[i] for i in best]
        for p in record["predictions"]:
            assert p["probability"] == pytest.approx(probabilities[p["index"]].item(), abs=2e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_order_is_that_of_the_input_whatever_the_batches(
    batch_size: int, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [(600, 400) if i % 3 == 0 else (8, 8) for i in range(12)]  # slow ones among fast ones
    paths = [str(make_image(tmp_path / f"{i}.png", i, size)) for i, size in enumerate(sizes)]
    paths.reverse()
    assert run(checkpoint, *paths, "--batch-size", batch_size, "--num-workers", 4) == 0
    assert [record["path"] for record in lines(capsys)] == paths


def test_a_run_directory_stands_for_its_best_model(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.safetensors").write_bytes(checkpoint.read_bytes())
    assert run(tmp_path / "run", folder) == 0
    from_run = lines(capsys)
    assert run(checkpoint, folder) == 0
    assert lines(capsys) == from_run


@pytest.mark.slow  # apart: OpenVINO's threads do not outlive a later test's fork
@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_another_runtime_gives_the_same_answers(
    checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkpoint, folder, "--batch-size", 3) == 0  # the last batch is a smaller one
    eager = lines(capsys)
    assert run(checkpoint, folder, "--batch-size", 3, "--runtime", "openvino") == 0
    for record, expected in zip(lines(capsys), eager, strict=True):
        assert [p["label"] for p in record["predictions"]] == [
            p["label"] for p in expected["predictions"]
        ]
        for found, wanted in zip(record["predictions"], expected["predictions"], strict=True):
            assert found["probability"] == pytest.approx(wanted["probability"], abs=1e-5)


def test_more_classes_than_there_are_gives_all(
    checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkpoint, folder / "a.png", "--topk", 50) == 0
    (record,) = lines(capsys)
    assert len(record["predictions"]) == 4
    assert sum(p["probability"] for p in record["predictions"]) == pytest.approx(1, abs=1e-5)


def test_sizes_are_those_of_the_upright_picture(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (50, 20), "red").save(tmp_path / "r.jpg", exif=exif)
    assert run(checkpoint, tmp_path / "r.jpg") == 0
    assert [(r["width"], r["height"]) for r in lines(capsys)] == [(20, 50)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_file_is_written_by_its_suffix_and_never_over_another(
    suffix: str,
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "bad.png").write_bytes(b"")
    out = tmp_path / f"out{suffix}"
    assert run(checkpoint, folder, "--output", out, "--topk", 2) == 1
    assert capsys.readouterr().out == ""
    if suffix == ".csv":
        with open(out, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [Path(row["path"]).name for row in rows] == [
            "a.png",
            "b.jpg",
            "bad.png",
            "a.png",
            "c.png",
        ]
        assert "empty" in rows[2]["error"]
        assert rows[2]["label1"] == rows[2]["width"] == ""
        good = rows[0]
        assert good["label1"] == NAMES[int(good["index1"])]
        assert float(good["probability1"]) >= float(good["probability2"])
        assert (good["width"], good["height"], good["error"]) == ("40", "30", "")
    else:
        records = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
        assert ["error" in record for record in records] == [False, False, True, False, False]
        assert set(records[2]) == {"path", "error"}
    before = out.read_bytes()
    assert "exists" in refused(capsys, checkpoint, folder / "a.png", "--output", out)
    assert out.read_bytes() == before
    assert run(checkpoint, folder / "a.png", "--output", out, "--overwrite") == 0
    assert out.read_bytes() != before


def test_bad_files_are_reported_and_do_not_stop_the_rest(
    checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (folder / "b.jpg").read_bytes()
    (folder / "empty.png").write_bytes(b"")
    (folder / "junk.jpg").write_bytes(b"\xff\xd8" + bytes(range(256)) * 9)
    (folder / "part.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "lost.png").symlink_to(folder / "nowhere.png")
    assert run(checkpoint, folder, folder / "notes.txt") == 1
    captured = capsys.readouterr()
    records = [json.loads(line) for line in captured.out.splitlines()]
    failed = {Path(r["path"]).name for r in records if "error" in r}
    assert failed == {"empty.png", "junk.jpg", "part.jpg", "lost.png", "notes.txt"}
    assert len(records) == 9
    reports = captured.err.splitlines()
    assert len(reports) == 6  # one per file, and the sum
    for name in failed:
        assert any(name in line for line in reports)
    assert reports[-1] == "wavevit predict: 9 images done, 5 failures"


def test_output_that_is_nan_is_an_error_of_that_image(tmp_path: Path) -> None:
    class Fragile(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = images.mean(dim=(2, 3))
            return logits.where(logits.mean(1, keepdim=True) < 0.9, torch.nan)

    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    Image.new("RGB", (8, 8), "black").save(tmp_path / "black.png")
    card = ModelCard("x", image_size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, crop_pct=1.0)
    classifier = Classifier(Fragile(), card, 3, torch.device("cpu"), "fp32")
    paths = [str(tmp_path / name) for name in ("white.png", "black.png")]
    (records,) = predictions(classifier, paths, topk=1, batch_size=8, num_workers=1)
    assert records[0].error is not None
    assert "NaN" in records[0].error
    assert [(p.label, p.index) for p in records[1].predictions] == [("0", 0)]


# --- What goes in ---------------------------------------------------------------------------------


def test_folders_patterns_and_files_may_be_mixed(
    checkpoint: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    make_image(folder / "[odd].png")
    assert run(checkpoint, "sub", "*.jpg", "[odd].png", "**/c.*") == 0
    paths = [record["path"] for record in lines(capsys)]
    assert paths == ["sub/a.png", "sub/c.png", "b.jpg", "[odd].png", "sub/c.png"]
    assert run(checkpoint, "*") == 0  # images only, as in a folder
    assert [record["path"] for record in lines(capsys)] == ["[odd].png", "a.png", "b.jpg"]


@pytest.mark.parametrize(
    ("content", "flag"),
    [
        (b"{0}/a.png\n\n{0}/b.jpg\r\n{0}/sub/c.png", ()),
        (b"{0}/a.png\0{0}/b.jpg\0{0}/sub/c.png\0", ("--null",)),
    ],
    ids=["lines", "NUL"],
)
def test_a_list_on_standard_input(
    content: bytes,
    flag: tuple[str, ...],
    checkpoint: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    feed(monkeypatch, content.replace(b"{0}", os.fsencode(folder)))
    assert run(checkpoint, "-", *flag) == 0
    assert [Path(record["path"]).name for record in lines(capsys)] == ["a.png", "b.jpg", "c.png"]


def test_a_missing_file_in_a_list_is_one_bad_file(
    checkpoint: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    feed(monkeypatch, b"nowhere.png\n" + os.fsencode(folder / "a.png"))
    assert run(checkpoint, "-") == 1
    assert ["error" in record for record in lines(capsys)] == [True, False]


def test_a_list_is_read_in_pieces_of_any_size() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"one\ntw")
    with os.fdopen(read_end, "rb") as stream:
        names = read_list(stream, b"\n")
        assert next(names) == "one"
        os.write(write_end, b"o\nthree")
        assert next(names) == "two"
        os.close(write_end)
        assert list(names) == ["three"]


ODD_NAMES = [
    "line\nbreak.png",
    "tab\tand 'quote\".png",
    "bild_ä_画像_🐈.png",
    "comma, semicolon; $HOME.png",
    " space .png",
    "--option.png",
    os.fsdecode(b"latin1_\xe9.png"),
]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_odd_file_names_come_back_as_they_are(
    suffix: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ODD_NAMES:
        make_image(tmp_path / "in" / name)
    (tmp_path / "in" / "bad\nname.png").write_bytes(b"x")
    out = tmp_path / f"out{suffix}"
    assert run(checkpoint, tmp_path / "in", "--output", out, "--draw", tmp_path / "drawn") == 1
    assert len(capsys.readouterr().err.splitlines()) == 2
    if suffix == ".csv":
        with open(out, encoding="utf-8", errors="surrogateescape", newline="") as file:
            names = [Path(row["path"]).name for row in csv.DictReader(file)]
    else:
        content = out.read_bytes().decode("utf-8")  # strictly
        names = [Path(json.loads(line)["path"]).name for line in content.splitlines()]
    assert sorted(names) == sorted([*ODD_NAMES, "bad\nname.png"])
    assert sorted(os.listdir(tmp_path / "drawn")) == sorted(ODD_NAMES)


def test_a_narrow_terminal_gets_escapes(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, "ascii"))
    assert run(checkpoint, folder) == 0
    labels = {
        p["label"]
        for line in buffer.getvalue().decode("ascii").splitlines()
        for p in json.loads(line)["predictions"]
    }
    assert labels == set(NAMES)


# --- Annotated pictures ---------------------------------------------------------------------------


def test_pictures_keep_their_places_and_do_not_collide(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a/x.jpg", "b/x.jpg", "a/x.png", "a/x.webp", "a/x.webp.png", "b/deep/er/x.jpg"]
    for seed, name in enumerate(names):
        make_image(tmp_path / "in" / name, seed)
    before = {name: (tmp_path / "in" / name).read_bytes() for name in names}
    drawn = tmp_path / "drawn"
    assert run(checkpoint, tmp_path / "in/a", tmp_path / "in/b", "--draw", drawn) == 0
    found = {str(path.relative_to(drawn)) for path in drawn.rglob("*") if path.is_file()}
    assert found == {
        "a/x.jpg",
        "b/x.jpg",
        "a/x.png",
        "a/x.webp.png",
        "a/x.webp.png.png",
        "b/deep/er/x.jpg",
    }
    for path in found:
        with Image.open(drawn / path) as picture:
            assert picture.size[0] >= 200
            assert picture.size[1] > picture.size[0] * 30 / 40
            assert picture.format == ("JPEG" if path.endswith("jpg") else "PNG")
    assert before == {name: (tmp_path / "in" / name).read_bytes() for name in names}
    capsys.readouterr()
    assert "not empty" in refused(capsys, checkpoint, tmp_path / "in/a", "--draw", drawn)
    assert (
        run(checkpoint, tmp_path / "in/a", tmp_path / "in/b", "--draw", drawn, "--overwrite") == 0
    )


def test_pictures_never_land_among_the_input(
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for draw in (folder, folder / "sub" / "new"):
        line = refused(capsys, checkpoint, folder, "--draw", draw, "--overwrite")
        assert "inside the input folder" in line
    line = refused(capsys, checkpoint, folder / "a.png", "--draw", folder, "--overwrite")
    assert "could be overwritten" in line
    (tmp_path / "link").symlink_to(folder)
    assert "inside" in refused(capsys, checkpoint, folder, "--draw", tmp_path / "link")
    feed(monkeypatch, os.fsencode(folder / "a.png"))
    monkeypatch.chdir(folder)
    assert run(checkpoint, "-", "--draw", folder, "--overwrite") == 1
    assert "not drawn there" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_images_outside_the_base_folder_get_a_place_too(tmp_path: Path) -> None:
    pictures = PictureFolder(tmp_path / "out", str(tmp_path / "base"), False)
    target = pictures.target(str(tmp_path / "other" / "x.png"))
    assert target.is_relative_to(tmp_path / "out" / "outside")
    assert pictures.target(str(tmp_path / "base/../base/a/x.png")) == tmp_path / "out/a/x.png"


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_image_named_twice_is_drawn_once(folder: Path, tmp_path: Path, overwrite: bool) -> None:
    drawing, calls = threading.Event(), []

    def render(image: Image.Image, record: ImageRecord) -> Image.Image:
        calls.append(record.path)
        drawing.set()
        time.sleep(0.1)  # the second one comes meanwhile
        return image

    pictures = PictureFolder(tmp_path / "out", str(folder), overwrite, render)
    record = ImageRecord(str(folder / "a.png"))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(pictures.draw, record)
        assert drawing.wait(60)
        second = pool.submit(pictures.draw, record)
        first.result()
        second.result()
    assert len(calls) == 1
    if not overwrite:
        with pytest.raises(FileExistsError, match="exists; not replaced"):
            PictureFolder(tmp_path / "out", str(folder), overwrite, render).draw(record)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_no_two_image_names_of_a_folder_share_a_picture() -> None:
    suffixes = [".jpg", ".JPG", ".jpeg", ".png", ".webp", ".tif", ""]
    names = ["".join(parts) for parts in itertools.product(["a"], suffixes, suffixes, suffixes)]
    names = [name for name in dict.fromkeys(names) if name != "a"]
    targets = [picture_name(name) for name in names]
    assert len(set(targets)) == len(names)
    assert all(target.lower().endswith((".png", ".jpg", ".jpeg")) for target in targets)


def test_the_base_folder_is_the_nearest_that_holds_everything(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert base_folder([str(folder)]) == str(folder)
    assert base_folder(["sub"]) == str(folder / "sub")
    assert base_folder(["a.png", "sub/c.png"]) == str(folder)
    assert base_folder(["sub/*.png"]) == str(folder / "sub")
    assert base_folder(["*/c.png", "-"]) == str(folder)


def test_a_picture_that_cannot_be_written_is_a_failure_with_its_record(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    (drawn / "sub").write_text("a file where a folder should be")
    assert run(checkpoint, folder, "--draw", drawn, "--overwrite") == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 4
    assert captured.err.count("cannot draw") == 2
    assert sorted(os.listdir(drawn)) == ["a.png", "b.jpg", "sub"]


# --- Mistakes -------------------------------------------------------------------------------------


def test_mistakes_are_one_line_and_exit_2(
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image, empty = folder / "a.png", tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "junk.safetensors").write_bytes(b"\0" * 50)
    (tmp_path / "file").write_text("x")

    def line(*words: object) -> str:
        return refused(capsys, checkpoint, *words)

    assert "no images given" in line()
    assert "no such file or folder: 'nowhere.png'" in line(image, "nowhere.png")
    assert "no images in the folder" in line(empty)
    assert "fits no image" in line(str(folder / "*.gif"))
    assert "once only" in line("-", "-")
    assert "must end in .jsonl or .csv" in line(image, "--output", tmp_path / "out.txt")
    assert "does not exist" in line(image, "--output", tmp_path / "no" / "out.csv")
    assert "is a folder" in line(image, "--output", empty)
    assert "is a file" in line(image, "--draw", tmp_path / "file")
    assert "at least 1" in line(image, "--topk", 0)
    assert "at least 1" in line(image, "--batch-size", 0)
    assert "did you mean --topk" in line(image, "--topj", 3)
    assert "computes in fp32" in line(image, "--runtime", "openvino", "--precision", "bf16")
    assert "needs a CUDA device, got cpu" in line(image, "--runtime", "cuda-graphs")
    assert "damaged" in refused(capsys, tmp_path / "junk.safetensors", image)
    assert "does not exist" in refused(capsys, tmp_path / "no.safetensors", image)
    assert "best.safetensors" in refused(capsys, empty, image)
    feed(monkeypatch, b"\n\n")
    assert "list of images is empty" in line("-")
    assert os.listdir(empty) == []


def test_a_wrong_checkpoint_leaves_no_output_behind(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, drawn = tmp_path / "out.csv", tmp_path / "drawn"
    torch.save({}, tmp_path / "m.pth")
    words = (folder, "--output", out, "--draw", drawn)
    assert "does not say which network" in refused(capsys, tmp_path / "m.pth", *words)
    assert not out.exists()
    assert not drawn.exists()
