"""`wavevit predict` with a detector: objects in order, in every format, drawn; no input harmed."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO
from PIL import Image

from wavevit.cli.detection_records import coco_mask
from wavevit.cli.image_ids import ImageIds
from wavevit.cli.main import main
from wavevit.data.detection.object_masks import decode_masks
from wavevit.data.images import load_image
from wavevit.detection.inference import DetectionPredictor, FoundObjects
from wavevit.detection.object_mask import ObjectMask
from wavevit.detection.tiling import TiledPredictor

NAMES = ["ant", "bee", "chat noir"]
SIZES = {"a.png": (90, 60), "b.jpg": (64, 64), "sub/a.png": (50, 120), "sub/c.webp": (80, 70)}


@pytest.fixture(scope="module")
def checkpoint(
    save_detector: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return save_detector(tmp_path_factory.mktemp("model") / "m.safetensors", class_names=NAMES)


@pytest.fixture(scope="module")
def boxes_only(
    save_detector: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("model") / "gfl.safetensors"
    return save_detector(path, "gfl", NAMES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of other sizes, one of them in a subfolder with another's name."""
    for seed, (name, size) in enumerate(SIZES.items()):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


def run(checkpoint: Path, *words: object, threshold: float = 0.0) -> int:
    fixed = ["--checkpoint", checkpoint, "--device", "cpu", "--score-threshold", threshold]
    return main(["predict", *map(str, (*fixed, *words))])


def refused(capsys: pytest.CaptureFixture[str], checkpoint: Path, *words: object) -> str:
    """The one line on standard error of a command that exits 2."""
    assert run(checkpoint, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def pixels_of(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(load_image(path))).permute(2, 0, 1)


def expected(checkpoint: Path, folder: Path, **settings: float) -> list[FoundObjects]:
    predictor = DetectionPredictor.load(checkpoint, **settings)
    return [predictor([pixels_of(folder / name)])[0] for name in SIZES]


# --- What comes out -------------------------------------------------------------------------------


def test_json_lines_hold_what_the_predictor_finds(
    checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkpoint, folder, "--num-workers", 3) == 0
    records = lines(capsys)
    assert [record["path"] for record in records] == [str(folder / name) for name in SIZES]
    for record, found in zip(records, expected(checkpoint, folder), strict=True):
        H, W = found.size
        assert (record["width"], record["height"]) == (W, H)
        assert len(record["objects"]) == len(found) > 0
        assert found.masks is not None
        for i, entry in enumerate(record["objects"]):
            assert entry["index"] == int(found.labels[i])
            assert entry["label"] == NAMES[entry["index"]]
            assert entry["score"] == pytest.approx(float(found.scores[i]), abs=1e-6)
            assert entry["box"] == pytest.approx(found.boxes_xyxy[i].tolist(), abs=0.006)
            (mask,) = decode_masks([entry["mask"]["counts"].encode()], H, W)
            np.testing.assert_array_equal(mask.view(bool), found.masks[i].pasted((H, W)))


@pytest.mark.parametrize("batch_size", [3, 10])
def test_the_order_is_that_of_the_input_whatever_the_batches(
    batch_size: int, boxes_only: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(folder / name) for name in reversed(SIZES)]
    assert run(boxes_only, *paths, "--batch-size", batch_size) == 0
    records = lines(capsys)
    assert [record["path"] for record in records] == paths
    assert [(r["width"], r["height"]) for r in records] == list(reversed(SIZES.values()))
    assert all("mask" not in entry for record in records for entry in record["objects"])


def test_images_may_be_named_by_an_option(
    boxes_only: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(boxes_only, "--images", folder / "a.png", str(folder / "*.jpg")) == 0
    assert [Path(record["path"]).name for record in lines(capsys)] == ["a.png", "b.jpg"]


def test_objects_below_the_threshold_are_left_out(
    boxes_only: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = expected(boxes_only, folder)
    threshold = float(torch.cat([found.scores for found in everything]).median())
    assert run(boxes_only, folder, threshold=threshold) == 0
    for record, found in zip(lines(capsys), everything, strict=True):
        assert len(record["objects"]) == int((found.scores >= threshold).sum())


def test_coco_results_with_a_table_of_running_numbers(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").write_bytes(b"")
    out = tmp_path / "found.json"
    assert run(checkpoint, folder, "--output", out) == 1
    assert "5 images done, 1 failures" in capsys.readouterr().err
    results = json.loads(out.read_text())
    table = json.loads((tmp_path / "found.images.json").read_text())
    assert [image["id"] for image in table["images"]] == [1, 2, 3, 4]
    assert [Path(image["file_name"]) for image in table["images"]] == [folder / n for n in SIZES]
    assert [(i["width"], i["height"]) for i in table["images"]] == list(SIZES.values())
    assert [Path(failure["file_name"]).name for failure in table["failures"]] == ["bad.png"]
    assert table["categories"] == [{"id": 3 * i + 2, "name": name} for i, name in enumerate(NAMES)]
    assert_results(results, expected(checkpoint, folder), [1, 2, 3, 4], [2, 5, 8])
    # And the tools take both.
    truth = COCO({**table, "annotations": []}, print_function=lambda *_: None)
    assert len(truth.loadRes(results).getAnnIds()) == len(results)


def test_ids_of_an_annotation_file(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [
        {"id": 40, "file_name": "a.png"},
        {"id": 30, "file_name": "b.jpg"},
        {"id": 20, "file_name": "sub/a.png"},
        {"id": 10, "file_name": "elsewhere/c.webp"},
    ]
    categories = [{"id": 90 - i, "name": name} for i, name in enumerate(["dog", *NAMES])]
    truth, out = tmp_path / "truth.json", tmp_path / "found.json"
    truth.write_text(json.dumps({"images": images, "categories": categories}))
    words = (folder, "--annotations", truth, "--output", out)
    assert run(checkpoint, *words) == 0
    found = expected(checkpoint, folder)
    assert_results(json.loads(out.read_text()), found, [40, 30, 20, 10], [89, 88, 87])
    assert not (tmp_path / "found.images.json").exists()
    # An image that it does not know is a failure; the rest is written.
    truth.write_text(json.dumps({"images": images[:3], "categories": categories}))
    assert run(checkpoint, *words, "--overwrite") == 1
    assert "c.webp': it is not among the images of" in capsys.readouterr().err
    assert {result["image_id"] for result in json.loads(out.read_text())} == {40, 30, 20}
    truth.write_text(json.dumps({"images": images, "categories": categories[:3]}))
    line = refused(capsys, checkpoint, *words, "--overwrite")
    assert "no category 'chat noir'" in line


def assert_results(
    results: list[dict[str, Any]],
    found: Sequence[FoundObjects],
    image_ids: list[int],
    category_ids: list[int],
) -> None:
    assert len(results) == sum(map(len, found))
    rest = iter(results)
    for objects, image_id in zip(found, image_ids, strict=True):
        assert objects.masks is not None
        for i, (x1, y1, x2, y2) in enumerate(objects.boxes_xyxy.tolist()):
            result = next(rest)
            assert result["image_id"] == image_id
            assert result["category_id"] == category_ids[int(objects.labels[i])]
            assert result["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-5)
            assert result["score"] == float(objects.scores[i])
            assert result["segmentation"] == coco_mask(objects.masks[i], objects.size)


def test_csv_has_a_row_per_object(
    boxes_only: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").write_bytes(b"")
    out = tmp_path / "found.csv"
    found = expected(boxes_only, folder)
    threshold = min(float(objects.scores.max()) for objects in found) + 1e-6
    assert run(boxes_only, folder, "--output", out, threshold=threshold) == 1
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    by_path = {Path(row["path"]): [r for r in rows if r["path"] == row["path"]] for row in rows}
    assert list(by_path) == [folder / n for n in ("a.png", "b.jpg", "bad.png", *list(SIZES)[2:])]
    assert "empty" in by_path[folder / "bad.png"][0]["error"]
    num_empty = 0
    for name, objects in zip(SIZES, found, strict=True):
        wanted = int((objects.scores >= threshold).sum())
        rows = by_path[folder / name]
        num_empty += wanted == 0
        assert len(rows) == max(wanted, 1)
        assert [row["label"] != "" for row in rows] == [wanted > 0] * len(rows)
        for row, box in zip(rows, objects.boxes_xyxy[:wanted].tolist(), strict=False):
            assert row["label"] == NAMES[int(row["index"])]
            assert [float(row[side]) for side in ("x1", "y1", "x2", "y2")] == pytest.approx(
                box, abs=0.006
            )
    assert num_empty == 1


def test_masks_are_coded_as_in_the_whole_picture() -> None:
    rng = np.random.default_rng(0)
    for top, left, height, width in ((0, 0, 20, 30), (3, 4, 5, 6), (15, 0, 5, 30), (0, 29, 20, 1)):
        window = rng.random((height, width)) < 0.6
        window[[0, -1]] = True
        mask = ObjectMask.of(window, top, left)
        code = coco_mask(mask, (20, 30))
        (decoded,) = decode_masks([str(code["counts"]).encode()], 20, 30)
        np.testing.assert_array_equal(decoded.view(bool), mask.pasted((20, 30)))
    empty = coco_mask(ObjectMask.of(np.zeros((4, 4), bool), 2, 2), (20, 30))
    assert not decode_masks([str(empty["counts"]).encode()], 20, 30).any()


# --- Tiles and pictures ---------------------------------------------------------------------------


def test_tiles(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 260, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    image = pixels_of(tmp_path / "wide.png")
    words = ("--tile", 64, "--overlap", 0.5, "--batch-size", 4, "--draw", tmp_path / "drawn")
    predictor = DetectionPredictor.load(checkpoint)
    for whole in (None, True):
        more = () if whole is None else ("--whole", "true", "--overwrite")
        assert run(checkpoint, tmp_path / "wide.png", *words, *more) == 0
        (record,) = lines(capsys)
        tiled = TiledPredictor(predictor, tile=64, overlap=0.5, batch_size=4, with_whole=whole)
        found = tiled(image)
        assert len(record["objects"]) == len(found) > 8  # more than one pass gives
        boxes = [entry["box"] for entry in record["objects"]]
        np.testing.assert_allclose(boxes, found.boxes_xyxy.numpy(), atol=0.006)
    assert "--whole goes with --tile" in refused(
        capsys, checkpoint, tmp_path / "wide.png", "--whole", "false"
    )
    with Image.open(tmp_path / "drawn" / "wide.png") as drawn:
        assert drawn.size == (260, 100)


def test_pictures_show_the_objects_and_keep_their_places(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    drawn = tmp_path / "drawn"
    assert run(checkpoint, folder, "--draw", drawn) == 0
    names = ["a.png", "b.jpg", "sub/a.png", "sub/c.webp.png"]
    assert sorted(str(p.relative_to(drawn)) for p in drawn.rglob("*") if p.is_file()) == names
    for name, original in zip(names, SIZES, strict=True):
        with Image.open(drawn / name) as picture:
            changed = np.asarray(picture.convert("RGB")) != np.asarray(
                load_image(folder / original)
            )
        assert changed.any(axis=2).mean() > 0.05
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert "not empty" in refused(capsys, checkpoint, folder, "--draw", drawn)
    assert "inside the input folder" in refused(
        capsys, checkpoint, folder, "--draw", folder / "x", "--overwrite"
    )


# --- Mistakes and failures ------------------------------------------------------------------------


def test_bad_files_are_reported_and_do_not_stop_the_rest(
    boxes_only: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty.png").write_bytes(b"")
    (folder / "junk.jpg").write_bytes(b"\xff\xd8" + bytes(range(256)) * 9)
    assert run(boxes_only, folder, "--batch-size", 2) == 1
    captured = capsys.readouterr()
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert {Path(r["path"]).name for r in records if "error" in r} == {"empty.png", "junk.jpg"}
    assert len(records) == 6
    assert captured.err.splitlines()[-1] == "wavevit predict: 6 images done, 2 failures"


def test_output_that_is_nan_is_an_error_of_that_image(
    boxes_only: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = DetectionPredictor.find

    def second_is_nan(self: DetectionPredictor, prepared: Any) -> list[FoundObjects]:
        return [
            FoundObjects(f.size, f.boxes_xyxy, f.labels, f.scores, None, f.size != (64, 64))
            for f in found(self, prepared)
        ]

    monkeypatch.setattr(DetectionPredictor, "find", second_is_nan)
    assert run(boxes_only, folder, "--precision", "bf16") == 1
    errors = [record.get("error") for record in lines(capsys)]
    assert errors[1] is not None
    assert "NaN or infinite in bf16; use --precision fp32" in errors[1]
    assert errors[:1] + errors[2:] == [None] * 3


def test_nothing_is_overwritten_or_left_half_written(
    boxes_only: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for suffix in (".json", ".jsonl", ".csv"):
        out = tmp_path / f"out{suffix}"
        assert run(boxes_only, folder, "--output", out) == 0
        before = out.read_bytes()
        capsys.readouterr()
        assert "exists" in refused(capsys, boxes_only, folder, "--output", out)
        assert out.read_bytes() == before
        assert run(boxes_only, folder / "a.png", "--output", out, "--overwrite") == 0
        assert out.read_bytes() != before
        capsys.readouterr()
    (tmp_path / "out.json").unlink()
    line = refused(capsys, boxes_only, folder, "--output", tmp_path / "out.json")
    assert "out.images.json exists" in line

    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(DetectionPredictor, "find", no_memory)
    line = refused(capsys, boxes_only, folder, "--output", tmp_path / "new.json")
    assert "memory has run out" in line
    assert "lower --batch-size" in line
    assert sorted(path.name for path in tmp_path.glob("*new*")) == []


def test_mistakes_are_one_line_and_exit_2(
    boxes_only: Path,
    folder: Path,
    tmp_path: Path,
    save_classifier: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = folder / "a.png"

    def line(*words: object) -> str:
        return refused(capsys, boxes_only, *words)

    assert "no images given" in line()
    assert "no such file or folder" in line("nowhere.png")
    assert "must end in .json or .jsonl or .csv" in line(image, "--output", tmp_path / "out.txt")
    assert "at least 1" in line(image, "--batch-size", 0)
    assert "tiles of at least 32 pixels" in line(image, "--tile", 8)
    assert "an overlap in [0, 0.9]" in line(image, "--tile", 64, "--overlap", 1.5)
    assert "--topk has no meaning for a model for detection" in line(image, "--topk", 3)
    assert "--image-size has no meaning" in line(image, "--image-size", 64)
    assert "--annotations goes with an --output" in line(image, "--annotations", image)
    out = ("--output", tmp_path / "o.json")
    assert "names no file" in line(image, *out, "--annotations", tmp_path / "no.json")
    assert "expected a COCO file" in line(image, *out, "--annotations", image)
    assert "--max-frames goes with video" in line(image, "--max-frames", 3)
    assert list(tmp_path.glob("o*")) == []
    assert run(boxes_only, image, threshold=30) == 2
    assert "lies in [0, 1], got 30" in capsys.readouterr().err
    classifier = save_classifier(tmp_path / "c.safetensors", "test_resnet", NAMES)
    assert main(["predict", "--checkpoint", str(classifier), str(image), "--tile", "64"]) == 2
    assert "--tile has no meaning for a model for classification" in capsys.readouterr().err
    assert main(["predict", "--checkpoint", str(classifier), "clip.mp4"]) == 2
    assert "video is for detectors" in capsys.readouterr().err


def test_names_of_images_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    names = ["train/a.jpg", "val/a.jpg", "val/b.jpg"]
    content = {"images": [{"id": i, "file_name": name} for i, name in enumerate(names)]}
    (tmp_path / "t.json").write_text(json.dumps(content))
    ids = ImageIds(tmp_path / "t.json")
    assert ids.id_of("/data/val/a.jpg") == 1
    assert ids.id_of("elsewhere/b.jpg") == 2
    for unknown in ("elsewhere/a.jpg", "c.jpg"):
        with pytest.raises(ValueError, match="not among the images"):
            ids.check(unknown)
    assert ids.categories(NAMES, []) == [1, 2, 3]
