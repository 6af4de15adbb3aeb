"""`wavevit evaluate` with a detector: COCO's numbers, those of training, for any processes."""

import contextlib
import csv
import io
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image

import wavevit.cli.detection_evaluation_files  # what a run imports: once, before the forks
import wavevit.training.processes  # noqa: F401
from wavevit.cli.detection_evaluate import measure, open_for
from wavevit.cli.detection_records import coco_mask
from wavevit.cli.main import main
from wavevit.data.images import load_image
from wavevit.detection.inference import DetectionPredictor
from wavevit.metrics.average_precision import NUMBERS
from wavevit.models.card import save_model
from wavevit.training.detection import DetectionTask
from wavevit.training.detection_settings import (
    DetectionAugmentation,
    DetectionData,
    DetectorSettings,
)

NAMES = ["ant", "bee", "cat"]


def make_coco(
    root: Path, count: int = 7, splits: tuple[str, ...] = ("val",), masks: bool = True
) -> Path:
    """Noise with bright rectangles, category ids 5, 3, 4 and image ids from 100 down."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split in splits:
        (root / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for i in range(count):
            width, height = rng.integers(50, 90, 2).tolist()
            pixels = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
            name = f"{split}{i}.png"
            images.append({"id": 100 - i, "file_name": name, "width": width, "height": height})
            for _ in range(i % 4):  # some images are empty
                x, y = rng.integers(0, 25, 2).tolist()
                w, h = rng.integers(10, 25, 2).tolist()
                label = int(rng.integers(3))
                pixels[y : y + h, x : x + w, label] = 255
                annotation: dict[str, Any] = {
                    "id": len(annotations) + 1,
                    "image_id": 100 - i,
                    "category_id": (5, 3, 4)[label],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
                if masks:
                    ring = [x, y, x + w, y, x + w, y + h, x, y + h]
                    annotation["segmentation"] = [ring]
                annotations.append(annotation)
            Image.fromarray(pixels).save(root / "images" / split / name)
        ids = zip((5, 3, 4), NAMES, strict=True)
        categories = [{"id": number, "name": name} for number, name in ids]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def make_findable(root: Path, predictor: DetectionPredictor) -> Path:
    """As `make_coco`, but the objects are some of those that a detector finds."""
    file = make_coco(root) / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"] = []
    for image in content["images"][1:]:
        picture = load_image(root / "images" / "val" / image["file_name"])
        (found,) = predictor([torch.from_numpy(np.array(picture)).permute(2, 0, 1)])
        for i in range(0, len(found), 3):
            x1, y1, x2, y2 = found.boxes_xyxy[i].tolist()
            annotation = {
                "id": len(content["annotations"]) + 1,
                "image_id": image["id"],
                "category_id": (5, 3, 4)[int(found.labels[i])],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            if found.masks is not None:
                annotation["segmentation"] = coco_mask(found.masks[i], found.size)
            content["annotations"].append(annotation)
    file.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def checkpoint(
    save_detector: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return save_detector(tmp_path_factory.mktemp("model") / "m.safetensors", class_names=NAMES)


@pytest.fixture(scope="module")
def boxes_only(
    save_detector: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return save_detector(tmp_path_factory.mktemp("model") / "gfl.safetensors", "gfl", NAMES)


def run(*words: object) -> int:
    return main(["evaluate", *map(str, words), "--num-workers", "0", "--device", "cpu"])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line on standard error of a command that exits 2."""
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.fixture(scope="module")
def data(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_findable(tmp_path_factory.mktemp("data"), DetectionPredictor.load(checkpoint))


# --- The numbers ----------------------------------------------------------------------------------


def test_the_numbers_are_pycocotools_on_the_predictions_written(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    out = tmp_path / "out"
    assert run("--checkpoint", checkpoint, "--data", data, "--output", out) == 0
    text = capsys.readouterr().out
    for label in ("AP50", "AR large", "box AP50", "mask AP", *NAMES):
        assert label in text
    metrics = json.loads((out / "metrics.json").read_text())
    truth_file = data / "annotations" / "instances_val.json"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(truth_file)
        for kind, name in (("box", "bbox"), ("mask", "segm")):
            kinds = {"box": "boxes", "mask": "masks"}[kind]
            found = truth.loadRes(str(out / f"predictions_{kinds}.json"))
            evaluator = COCOeval(truth, found, name)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
            for number, value in zip(NUMBERS, evaluator.stats, strict=True):
                assert metrics["metrics"][f"{kind}_{number}"] == value
    assert metrics["metrics"]["box_ar100"] > 0.5
    assert metrics["metrics"]["mask_ar100"] > 0.5
    assert metrics["num_images"] == 7
    with open(out / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == NAMES
    assert [entry["category_id"] for entry in metrics["per_class"]] == [5, 3, 4]
    assert sum(int(row["objects"]) for row in rows) == metrics["num_objects"] > 8
    for name in ("precision_recall", "per_class"):
        with Image.open(out / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5


@pytest.mark.parametrize("detector", ["mask_rcnn", "gfl"])
def test_the_numbers_are_those_of_the_training_run(
    detector: str, save_detector: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_coco(tmp_path / "data", 4, ("train", "val"))
    path = save_detector(tmp_path / "m.safetensors", detector, NAMES, short_edge=50, long_edge=70)
    predictor = DetectionPredictor.load(path)
    settings = DetectorSettings(detector, "wavevit_test", options=predictor.card.options)
    sizes = {"short_edge": 50, "long_edge": 70, "size_rule": "multiple_of_16"}
    task = DetectionTask(
        DetectionData(str(root), num_workers=0, **sizes), DetectionAugmentation(), settings, 0
    )
    # Labels follow the ids there.
    assert sorted(task.card.class_names) == NAMES
    card = DetectionPredictor.load(path).card
    same = type(card)(**{**vars(card), "class_names": task.card.class_names})
    save_model(path, predictor.detector.state_dict(), same)
    predictor = DetectionPredictor.load(path)
    expected = task.evaluate(Fabric(accelerator="cpu", devices=1), predictor.detector)
    with_masks = predictor.detector.with_masks
    metrics = measure(predictor, open_for(predictor, str(root), with_masks=with_masks))
    assert (
        metrics.compute().summary().items()
        >= {k: v for k, v in expected.items() if k != "score"}.items()
    )
    assert task.metrics is not None
    assert metrics.to_results_json("box") == task.metrics.to_results_json("box")


def test_classes_are_matched_by_name(
    boxes_only: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data may have them in another order; those that the model has not are named."""
    predictor = DetectionPredictor.load(boxes_only)
    data = make_findable(tmp_path / "data", predictor)
    summaries = []
    for names in (NAMES, ["bee", "cat", "ant"]):
        card = type(predictor.card)(**{**vars(predictor.card), "class_names": names})
        save_model(tmp_path / "m.safetensors", predictor.detector.state_dict(), card)
        other = DetectionPredictor.load(tmp_path / "m.safetensors")
        opened = open_for(other, str(data))
        assert opened.truth.category_ids == [{"ant": 5, "bee": 3, "cat": 4}[n] for n in names]
        summaries.append(measure(other, opened).compute().summary())
    assert summaries[0] != summaries[1]
    unknown = type(predictor.card)(**{**vars(predictor.card), "class_names": ["ant", "bee", "eel"]})
    save_model(tmp_path / "m.safetensors", predictor.detector.state_dict(), unknown)
    line = refused(capsys, "--checkpoint", tmp_path / "m.safetensors", "--data", data)
    assert "'cat' is not among the 3 known ones" in line


def test_data_with_boxes_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_coco(tmp_path / "data", masks=False)
    words = ("--checkpoint", checkpoint, "--data", root)
    assert "0 of 9 objects have a mask" in refused(capsys, *words)
    assert run(*words, "--no-masks", "--output", tmp_path / "out") == 0
    names = sorted(os.listdir(tmp_path / "out"))
    assert "predictions_boxes.json" in names
    assert "predictions_masks.json" not in names
    assert "mask AP" not in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork")
def test_every_file_is_the_same_byte_for_byte_for_any_number_of_processes(
    fork: Callable[..., Any], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    def evaluate(processes: int) -> Path:
        out = tmp_path / f"out{processes}"
        words = ["evaluate", "--checkpoint", checkpoint, "--data", data, "--output", out]
        words += ["--batch-size", 2, "--num-workers", 0, "--device", "cpu"]
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        launched = {
            "TORCHELASTIC_RUN_ID": "test",
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        commands = [
            fork(
                *words,
                environment=launched | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                if processes > 1
                else {},
            )
            for rank in range(processes)
        ]
        codes = [command.wait() for command in commands]
        assert codes == [0] * processes, [command.stderr() for command in commands]
        return out

    one, several = evaluate(1), evaluate(3)
    names = [path.name for path in one.iterdir() if path.suffix != ".png"]
    assert len(names) == 4
    for name in names:
        assert (several / name).read_bytes() == (one / name).read_bytes(), name


# --- Splits ---------------------------------------------------------------------------------------


def test_any_split_of_the_data_and_what_training_holds_out(
    boxes_only: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = DetectionPredictor.load(boxes_only)
    assert len(open_for(predictor, str(data)).inputs) == 7
    with pytest.raises(ValueError, match=r"no split 'test' in .*; has val"):
        open_for(predictor, str(data), "test")
    root = make_coco(tmp_path / "data", 6, ("train", "extra"))
    assert len(open_for(predictor, str(root), "extra").inputs) == 6
    with pytest.raises(ValueError, match="other classes than those"):
        open_for(predictor, str(root))  # in the order of their ids: bee, cat, ant
    card = type(predictor.card)(**{**vars(predictor.card), "class_names": ["bee", "cat", "ant"]})
    predictor = DetectionPredictor(predictor.detector, card)
    settings = DetectionData(str(root), val_fraction=0.3)
    expected = settings.open(with_masks=False)
    for split, part in (("val", expected.val), ("train", expected.train)):
        opened = open_for(predictor, str(root), split, val_fraction=0.3)
        assert list(opened.inputs.sample_ids()) == list(part.sample_ids())
        assert opened.truth.to_coco() == part.to_coco()


def test_the_generated_set(save_detector: Callable[..., Path], tmp_path: Path) -> None:
    from wavevit.data.shapes import CLASS_NAMES

    path = save_detector(tmp_path / "m.safetensors", class_names=CLASS_NAMES, short_edge=48)
    predictor = DetectionPredictor.load(path)
    opened = open_for(predictor, "shapes", with_masks=True)
    assert opened.inputs.load(0).size == (48, 48)
    assert opened.truth.with_masks
    assert not opened.inputs.with_masks


# --- Mistakes and failures ------------------------------------------------------------------------


def test_a_model_that_gives_nan_stops_it_with_the_image(
    boxes_only: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = DetectionPredictor.load(boxes_only)
    state = predictor.detector.state_dict()
    state["network.head.cls_logits.bias"][1] = torch.nan
    save_model(tmp_path / "m.safetensors", state, predictor.card)
    line = refused(capsys, "--checkpoint", tmp_path / "m.safetensors", "--data", data)
    assert "NaN or infinity for" in line
    assert "val0.png in fp32" in line


def test_memory_that_runs_out_is_one_line(
    boxes_only: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    detect, calls = DetectionPredictor.detect, iter(range(100))

    def at_the_third_batch(self: DetectionPredictor, images: Any) -> Any:
        if next(calls) == 3:  # the first is a trial
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return detect(self, images)

    monkeypatch.setattr(DetectionPredictor, "detect", at_the_third_batch)
    line = refused(capsys, "--checkpoint", boxes_only, "--data", data)
    assert "memory has run out" in line
    assert "lower --batch-size" in line


def test_mistakes_are_one_line_and_exit_2(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--checkpoint", checkpoint, "--data", data)
    assert "at least 1" in refused(capsys, *words, "--batch-size", 0)
    line = refused(capsys, *words, "--image-size", 64)
    assert "--image-size has no meaning for a model for detection" in line
    assert "no such file or folder" in refused(
        capsys, "--checkpoint", checkpoint, "--data", tmp_path / "no"
    )
    assert "looks like neither" in refused(capsys, "--checkpoint", checkpoint, "--data", tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("{}")
    assert "already has metrics.json" in refused(capsys, *words, "--output", out)
    assert (out / "metrics.json").read_text() == "{}"
    assert run(*words, "--output", out, "--overwrite") == 0
    capsys.readouterr()
    broken = make_coco(tmp_path / "broken")
    (broken / "images" / "val" / "val2.png").write_bytes(b"not an image")
    assert "val2.png" in refused(capsys, "--checkpoint", checkpoint, "--data", broken)
