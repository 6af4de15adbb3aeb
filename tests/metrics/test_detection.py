"""Box and mask AP: pycocotools' numbers to the last bit, for any order and number of processes."""

import copy
import io
import json
import pickle
import zipfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wavevit.metrics.average_precision import NUMBERS, iou_thresholds, recall_levels
from wavevit.metrics.detection import DetectionMetrics, DetectionResult

IOU_TYPES = {"box": "bbox", "mask": "segm"}


def square(image_id: int, category_id: int, box: list[int], number: int, **more: Any) -> Any:
    """A ground-truth object that fills its xywh box."""
    x, y, w, h = box
    ring = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [ring],
        **more,
    }


def small_truth() -> dict[str, Any]:
    """Three images of 40 x 50 pixels, the last without objects; category 7 comes before 3."""
    return {
        "images": [{"id": number, "height": 40, "width": 50} for number in (20, 10, 30)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 5, "name": "x"}],
        "annotations": [
            square(10, 7, [0, 0, 10, 10], 1),
            square(10, 3, [20, 5, 20, 30], 2),
            square(20, 7, [5, 5, 30, 30], 3),
        ],
    }


def filled(boxes: list[list[float]], size: tuple[int, int] = (40, 50)) -> torch.Tensor:
    """Masks that fill their xyxy boxes."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, box in zip(masks, boxes, strict=True):
        x1, y1, x2, y2 = (round(number) for number in box)
        mask[y1:y2, x1:x2] = True
    return masks


def add(metrics: DetectionMetrics, image_id: int, boxes: Any, labels: Any, scores: Any) -> None:
    metrics.update(
        image_id,
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(scores, dtype=torch.float32),
        filled(boxes),
    )


def evaluated(truth: dict[str, Any], *, with_masks: bool = True) -> DetectionMetrics:
    metrics = DetectionMetrics(truth, with_masks=with_masks)
    add(metrics, 10, [[0, 0, 10, 10], [20, 5, 40, 35]], [0, 1], [0.9, 0.8])
    add(metrics, 20, [[5, 5, 35, 20]], [0], [0.7])
    add(metrics, 30, [[0, 0, 9, 9]], [1], [0.95])
    return metrics


def assert_same(a: DetectionResult, b: DetectionResult) -> None:
    """Bit for bit."""
    assert a.summary() == b.summary()
    for one, two in ((a.box, b.box), (a.mask, b.mask)):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            np.testing.assert_array_equal(one.precision, two.precision)
            np.testing.assert_array_equal(one.scores, two.scores)


@pytest.fixture
def real_truth(shared_data: Path) -> dict[str, Any]:
    """Annotations of 66 COCO images: polygons, crowds, images without objects."""
    with zipfile.ZipFile(shared_data / "coco_mini80_clean.zip") as archive:
        name = "coco_mini80_clean/annotations/instances_val.json"
        truth: dict[str, Any] = json.loads(archive.read(name))
    return truth


def synthetic_detections(truth: dict[str, Any], seed: int) -> list[tuple[int, Any, Any, Any, Any]]:
    """Shaken copies of the objects, crowds included, and wrong ones; scores have many ties."""
    from pycocotools import mask as reference_mask

    rng = np.random.default_rng(seed)
    label_of = {item["id"]: label for label, item in enumerate(truth["categories"])}
    found = []
    for image in truth["images"]:
        H, W = image["height"], image["width"]
        boxes, labels, masks = [], [], []
        for item in truth["annotations"]:
            if item["image_id"] != image["id"]:
                continue
            outline = item["segmentation"]
            if isinstance(outline, list):
                code = reference_mask.merge(reference_mask.frPyObjects(outline, H, W))
            else:
                code = reference_mask.frPyObjects(outline, H, W)
            mask = reference_mask.decode(code)
            for _ in range(int(rng.integers(0, 4))):
                x, y, w, h = item["bbox"]
                shift = rng.normal(0, 0.08, 4) * [w, h, w, h]
                boxes.append(np.array([x, y, x + w, y + h]) + shift)
                is_wrong = rng.random() < 0.2
                labels.append(int(rng.integers(80)) if is_wrong else label_of[item["category_id"]])
                masks.append(np.roll(mask, tuple(rng.integers(-8, 9, 2)), (0, 1)))
        N = len(boxes)
        scores = rng.integers(0, 6, N) / 5 if seed % 2 else rng.random(N)
        found.append(
            (
                image["id"],
                torch.tensor(np.array(boxes).reshape(N, 4), dtype=torch.float32),
                torch.tensor(labels, dtype=torch.int64),
                torch.tensor(scores, dtype=torch.float32),
                torch.tensor(np.array(masks, np.uint8).reshape(N, H, W)),
            )
        )
    return found


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
@pytest.mark.parametrize("seed", [0, 1])  # distinct scores, and ties everywhere
def test_equals_pycocotools_on_real_annotations(real_truth: dict[str, Any], seed: int) -> None:
    pytest.importorskip("pycocotools", reason="the reference implementation")
    real_truth["categories"].sort(key=lambda item: item["name"])  # not in the order of the ids
    found = synthetic_detections(real_truth, seed)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    metrics = DetectionMetrics(real_truth, with_masks=True)
    for item in reversed(found):
        metrics.update(*item)
    result = metrics.compute()
    for kind, ours in (("box", result.box), ("mask", result.mask)):
        assert ours is not None
        with redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = copy.deepcopy(real_truth)
            truth.createIndex()
            evaluator = COCOeval(
                truth,
                truth.loadRes(metrics.to_results_json(kind)),
                IOU_TYPES[kind],  # type: ignore[arg-type]
            )
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        assert list(ours.numbers.values()) == evaluator.stats.tolist()
        assert 0.05 < ours.numbers["ap"] < 0.9  # neither everything nor nothing is found
        theirs = evaluator.eval["precision"][:, :, :, 0, -1]
        ids = evaluator.params.catIds
        order = [ids.index(number) for number in metrics.category_ids]
        expected = np.where(theirs > -1, theirs, np.nan)[:, :, order]
        np.testing.assert_array_equal(ours.precision, expected)
        np.testing.assert_array_equal(iou_thresholds(), evaluator.params.iouThrs)
        np.testing.assert_array_equal(recall_levels(), evaluator.params.recThrs)


def test_known_answer() -> None:
    """Two of three objects found exactly, one half of one; a wrong detection comes first."""
    result = evaluated(small_truth()).compute()
    assert result.num_images == 3
    assert result.class_names == ["cat", "dog", "x"]
    assert result.class_counts.tolist() == [2, 1, 0]
    assert result.mask is not None
    for found in (result.box, result.mask):
        # Cats: the second one has IoU 0.5, which is enough for the first threshold only. Recall
        # then ends at 1/2, the 51st of 101 levels.
        cat = (1 + 9 * 51 / 101) / 10
        np.testing.assert_allclose(found.class_ap[:2], [cat, 0.5], rtol=1e-15)
        np.testing.assert_allclose(found.class_ap50[:2], [1, 0.5], rtol=1e-15)
        assert np.isnan(found.class_ap[2])
        assert np.isnan(found.class_ap50[2])
        assert found.numbers["ap"] == pytest.approx((cat + 0.5) / 2, rel=1e-14)
        assert found.numbers["ap50"] == pytest.approx(0.75, rel=1e-14)
        assert found.numbers["ap_large"] == -1
        np.testing.assert_allclose(found.curve(0.5), np.full(101, 0.75), rtol=1e-15)
        assert found.curve(0.95)[-1] == pytest.approx(0.25)
        assert found.scores[0, -1, 0] == np.float32(0.7)


def test_numbers_are_named_in_cocos_order() -> None:
    summary = evaluated(small_truth()).compute().summary()
    assert list(summary) == [f"{kind}_{name}" for kind in ("box", "mask") for name in NUMBERS]
    assert len(NUMBERS) == 12
    boxes_only = evaluated(small_truth(), with_masks=False).compute()
    assert boxes_only.mask is None
    assert list(boxes_only.summary()) == [f"box_{name}" for name in NUMBERS]


def test_merged_processes_and_any_order_give_the_same_result() -> None:
    whole = evaluated(small_truth())
    for processes in (2, 3):
        merged = DetectionMetrics(small_truth(), with_masks=True)
        for rank in reversed(range(processes)):
            part = DetectionMetrics(small_truth(), with_masks=True)
            part.merge(whole.rows()[rank::processes])
            merged.merge(pickle.loads(pickle.dumps(part.rows())))
        assert_same(merged.compute(), whole.compute())
        for kind in ("box", "mask"):
            assert merged.to_results_json(kind) == whole.to_results_json(kind)  # type: ignore[arg-type]


def test_nothing_found_is_zero_and_no_objects_is_undefined() -> None:
    metrics = DetectionMetrics(small_truth(), with_masks=True)
    for image_id in (10, 20, 30):
        add(metrics, image_id, [], [], [])
    result = metrics.compute()
    assert result.summary()["box_ap"] == result.summary()["mask_ap"] == 0
    assert metrics.to_results_json("box") == []
    without = {**small_truth(), "annotations": []}
    result = evaluated(without).compute()
    assert set(result.summary().values()) == {-1}
    assert np.isnan(result.box.class_ap).all()
    assert np.isnan(result.box.curve()).all()


def test_a_crowd_is_neither_to_be_found_nor_a_mistake_to_find() -> None:
    truth = small_truth()
    truth["annotations"].append(square(30, 3, [0, 0, 50, 40], 4, iscrowd=1))
    result = evaluated(truth).compute()
    assert result.class_counts.tolist() == [2, 1, 0]
    assert result.box.class_ap[1] == pytest.approx(1)  # the detection in image 30 lies in the crowd


def test_results_have_cocos_format_and_the_files_own_ids() -> None:
    metrics = evaluated(small_truth())
    boxes, masks = metrics.to_results_json("box"), metrics.to_results_json("mask")
    assert [item["image_id"] for item in boxes] == [10, 10, 20, 30]
    assert [item["category_id"] for item in boxes] == [7, 3, 7, 3]
    assert boxes[1]["bbox"] == [20, 5, 20, 30]
    assert boxes[1]["score"] == float(np.float32(0.8))
    assert masks[0]["segmentation"]["size"] == [40, 50]
    assert set(masks[0]) == {"image_id", "category_id", "score", "segmentation"}
    assert json.loads(json.dumps(masks)) == masks


def test_category_ids_may_come_in_any_order() -> None:
    metrics = DetectionMetrics(small_truth(), category_ids=[3, 5, 7])
    assert metrics.class_names == ["dog", "x", "cat"]
    add(metrics, 10, [[0, 0, 10, 10], [20, 5, 40, 35]], [2, 0], [0.9, 0.8])
    add(metrics, 20, [[5, 5, 35, 20]], [2], [0.7])
    add(metrics, 30, [[0, 0, 9, 9]], [0], [0.95])
    expected = evaluated(small_truth()).compute().box
    np.testing.assert_array_equal(metrics.compute().box.class_ap, expected.class_ap[[1, 2, 0]])


def test_masks_may_come_in_parts_and_as_probabilities() -> None:
    whole, parts = (DetectionMetrics(small_truth(), with_masks=True) for _ in range(2))
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 5, 40, 35], [1, 2, 3, 4]])
    labels, scores = torch.tensor([0, 1, 2]), torch.tensor([0.5, 0.25, 0.125])
    masks = filled(boxes.tolist())
    whole.update(10, boxes, labels, scores, masks)
    halves = (part for part in (masks[:2].float() * 0.5, masks[2:].half() * 0.75))
    parts.update(10, boxes.double(), labels.int(), scores.half(), halves)
    assert whole.to_results_json("mask") == parts.to_results_json("mask")


def test_the_ground_truth_is_not_changed_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    truth = small_truth()
    metrics = evaluated(truth)
    metrics.compute()
    metrics.compute()
    assert truth == small_truth()
    assert capfd.readouterr() == ("", "")


def test_errors_say_what_was_expected() -> None:
    metrics = evaluated(small_truth())
    with pytest.raises(ValueError, match="image 10 came twice"):
        add(metrics, 10, [], [], [])
    with pytest.raises(ValueError, match="image 10 came twice"):
        metrics.merge(evaluated(small_truth()).rows())
    with pytest.raises(ValueError, match="image 11 is not in the ground truth"):
        add(metrics, 11, [], [], [])
    metrics = DetectionMetrics(small_truth(), with_masks=True)
    with pytest.raises(ValueError, match=r"image 10: expected labels of .* 3 classes.* got 3"):
        add(metrics, 10, [[0, 0, 1, 1]], [3], [0.5])
    with pytest.raises(ValueError, match="image 10: boxes or scores hold NaN"):
        add(metrics, 10, [[0, 0, 1, 1]], [0], [float("nan")])
    box, label, score = torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    with pytest.raises(ValueError, match=r"expected boxes \(1, 4\), .* got \(2, 4\), \(1,\)"):
        metrics.update(10, torch.zeros(2, 4), label, score)
    with pytest.raises(ValueError, match=r"expected masks \(N, 40, 50\) .* got \(1, 50, 40\)"):
        metrics.update(10, box, label, score, torch.zeros(1, 50, 40))
    with pytest.raises(ValueError, match="expected 1 masks, got 2"):
        metrics.update(10, box, label, score, torch.zeros(2, 40, 50))
    with pytest.raises(ValueError, match="masks are evaluated, and none came"):
        metrics.update(10, box, label, score)
    assert len(metrics) == 0  # what was refused left no trace
    with pytest.raises(ValueError, match="3 of 3 images have not been evaluated, the first is"):
        metrics.compute()
    with pytest.raises(ValueError, match="no masks to write"):
        DetectionMetrics(small_truth()).to_results_json("mask")
    with pytest.raises(ValueError, match=r"IoU threshold of 0\.5, .* got 0\.52"):
        evaluated(small_truth()).compute().box.curve(0.52)


def test_a_faulty_ground_truth_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        DetectionMetrics({**small_truth(), "images": []})
    with pytest.raises(ValueError, match="lists an image id twice"):
        DetectionMetrics({**small_truth(), "images": small_truth()["images"] * 2})
    with pytest.raises(ValueError, match=r"ids of the 3 categories .* got 7, 3"):
        DetectionMetrics(small_truth(), category_ids=[7, 3])
    truth = small_truth()
    truth["annotations"][2]["category_id"] = 4
    with pytest.raises(ValueError, match=r"annotation 3 .* of image 20 and category 4, one of"):
        DetectionMetrics(truth)
    truth = small_truth()
    del truth["annotations"][1]["segmentation"]
    with pytest.raises(ValueError, match=r"1 objects of the ground truth have no mask.* 2;"):
        DetectionMetrics(truth, with_masks=True)
    DetectionMetrics(truth)
