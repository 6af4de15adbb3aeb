"""IoU and accuracy: a plain computation's numbers, for any order and number of processes."""

import itertools
import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from wavevit.metrics import segmentation
from wavevit.metrics.segmentation import SegmentationMetrics, SegmentationResult

Images = list[tuple[str, np.ndarray, np.ndarray]]


def random_images(seed: int, K: int) -> Images:
    """Images of odd sizes; some are ignored as a whole, and some classes are nowhere."""
    rng = np.random.default_rng(seed)
    present = rng.permutation(K)[: max(int(rng.integers(1, K + 1)), 1)]
    guessed = rng.permutation(K)[: max(int(rng.integers(1, K + 1)), 1)]
    images = []
    for number in range(int(rng.integers(1, 6))):
        size = tuple(rng.integers(1, 30, 2).tolist())
        labels = rng.choice(present, size).astype(np.uint8)
        labels[rng.random(size) < rng.choice([0, 0.3, 1.0])] = 255
        predicted = np.where(rng.random(size) < 0.6, labels, rng.choice(guessed, size))
        predicted[predicted == 255] = guessed[0]
        images.append((f"image {number}", predicted.astype(np.uint8), labels))
    images.append(("certain", np.zeros((1, 1), np.uint8), np.full((1, 1), present[0], np.uint8)))
    return images


def counted(images: Images, K: int) -> SegmentationMetrics:
    metrics = SegmentationMetrics([f"class {number}" for number in range(K)])
    for image in images:
        metrics.update(*image)
    return metrics


def plain(images: Images, K: int) -> tuple[np.ndarray, np.ndarray, float]:
    """IoU and accuracy of each class, and pixel accuracy, by comparing all pixels."""
    predicted = np.concatenate([image[1].ravel() for image in images])
    labels = np.concatenate([image[2].ravel() for image in images])
    counts = labels != 255
    predicted, labels = predicted[counts], labels[counts]
    iou, accuracy = np.full(K, np.nan), np.full(K, np.nan)
    for c in range(K):
        both = ((predicted == c) & (labels == c)).sum()
        either = ((predicted == c) | (labels == c)).sum()
        if either:
            iou[c] = both / either
        if (labels == c).any():
            accuracy[c] = (predicted[labels == c] == c).mean()
    return iou, accuracy, float((predicted == labels).mean())


def assert_same(a: SegmentationResult, b: SegmentationResult) -> None:
    """Bit for bit."""
    assert a.summary() == b.summary()
    assert a.rows.sample_ids == b.rows.sample_ids
    for name in ("num_pixels", "num_right", "mean_iou", "confusion"):
        np.testing.assert_array_equal(getattr(a.rows, name), getattr(b.rows, name))


@pytest.mark.parametrize("K", [1, 2, 11, 150, 255])
def test_equals_a_plain_computation(K: int) -> None:
    for seed in range(8):
        images = random_images(seed, K)
        result = counted(images, K).compute()
        iou, accuracy, pixel_accuracy = plain(images, K)
        np.testing.assert_allclose(result.class_iou, iou, rtol=1e-15)
        np.testing.assert_allclose(result.class_accuracy, accuracy, rtol=1e-14)
        assert result.mean_iou == pytest.approx(np.nanmean(iou), rel=1e-14)
        assert result.mean_accuracy == pytest.approx(np.nanmean(accuracy), rel=1e-14)
        assert result.pixel_accuracy == pytest.approx(pixel_accuracy, rel=1e-14)
        labels = np.concatenate([image[2].ravel() for image in images])
        counts = np.bincount(labels, minlength=256)[:K]
        np.testing.assert_array_equal(result.class_counts, counts)
        weighted = np.nansum(np.where(counts > 0, iou, 0) * counts) / counts.sum()
        assert result.frequency_weighted_iou == pytest.approx(weighted, rel=1e-13)
        for name, *image in images:
            at = result.rows.sample_ids.index(name)
            if (image[1] == 255).all():
                assert result.rows.num_pixels[at] == 0
                assert np.isnan(result.rows.mean_iou[at])
            else:
                own = plain([(name, *image)], K)
                assert result.rows.mean_iou[at] == pytest.approx(np.nanmean(own[0]), rel=1e-14)
                share = result.rows.num_right[at] / result.rows.num_pixels[at]
                assert share == pytest.approx(own[2], rel=1e-14)


def test_known_answer() -> None:
    """Six pixels count; class 2 is predicted once and in no label, class 3 is nowhere."""
    labels = np.array([[0, 0, 0, 1], [1, 1, 255, 255]], np.uint8)
    predicted = np.array([[0, 0, 1, 1], [1, 2, 3, 0]], np.uint8)
    metrics = SegmentationMetrics(["a", "b", "c", "d"])
    metrics.update("x", predicted, labels)
    result = metrics.compute()
    np.testing.assert_allclose(result.class_iou, [2 / 3, 2 / 4, 0, np.nan])
    np.testing.assert_allclose(result.class_accuracy, [2 / 3, 2 / 3, np.nan, np.nan])
    assert result.num_images == 1
    assert result.class_counts.tolist() == [3, 3, 0, 0]
    assert result.confusion.tolist() == [[2, 1, 0, 0], [0, 2, 1, 0], [0] * 4, [0] * 4]
    assert result.summary() == pytest.approx(
        {
            "mean_iou": (2 / 3 + 1 / 2) / 3,
            "mean_accuracy": 2 / 3,
            "pixel_accuracy": 4 / 6,
            "frequency_weighted_iou": (2 / 3 + 1 / 2) / 2,
        }
    )


def test_merged_processes_and_any_order_give_the_same_result() -> None:
    images = random_images(3, 150) + [
        (f"more {number}", *image[1:])
        for number, image in enumerate(itertools.chain(*(random_images(s, 150) for s in range(5))))
    ]
    whole = counted(images, 150)
    assert len(whole) == len(images)
    for processes in (2, 3, len(images) + 2):  # some with nothing to do
        merged = SegmentationMetrics(whole.class_names)
        for rank in reversed(range(processes)):
            rows = counted(images[rank::processes][::-1], 150).rows()
            merged.merge(pickle.loads(pickle.dumps(rows)))
        assert_same(merged.compute(), whole.compute())


def test_rows_are_of_the_moment() -> None:
    images = random_images(0, 4)
    metrics = counted(images[:-1], 4)
    rows = metrics.rows()
    before = rows.confusion.copy()
    metrics.update(*images[-1])
    np.testing.assert_array_equal(rows.confusion, before)


def test_tensors_and_any_whole_numbers_count_alike() -> None:
    images = random_images(1, 11)
    expected = counted(images, 11).compute()
    for dtype in (torch.uint8, torch.int64, torch.int32):
        tensors = [
            (name, torch.from_numpy(p).to(dtype), torch.from_numpy(y).to(dtype))
            for name, p, y in images
        ]
        assert_same(counted(tensors, 11).compute(), expected)  # type: ignore[arg-type]


def test_large_images_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(2, 11)
    expected = counted(images, 11).compute()
    monkeypatch.setattr(segmentation, "_PIXELS_AT_ONCE", 7)
    assert_same(counted(images, 11).compute(), expected)


def test_memory_does_not_grow_with_a_matrix_per_image() -> None:
    """A thousand images of 150 classes: well under a kilobyte each, not 180."""
    metrics = SegmentationMetrics([str(number) for number in range(150)])
    image = np.zeros((2, 3), np.uint8)
    metrics.update("first", image, image)
    tracemalloc.start()
    try:
        for number in range(200):
            metrics.update(f"image {number}", image, image)
        assert tracemalloc.get_traced_memory()[0] < 200 * 1000
    finally:
        tracemalloc.stop()
    assert len(pickle.dumps(metrics.rows())) < 150 * 150 * 8 + 200 * 100


def test_mistakes_are_named() -> None:
    metrics = SegmentationMetrics(["a", "b", "c"])
    with pytest.raises(ValueError, match="data set is empty"):
        metrics.compute()
    image = np.zeros((2, 3), np.uint8)
    metrics.update("x", image, np.full((2, 3), 255, np.uint8))
    with pytest.raises(ValueError, match="all pixels of the 1 images are labelled 255"):
        metrics.compute()
    with pytest.raises(ValueError, match="image 'x' came twice"):
        metrics.update("x", image, image)
    with pytest.raises(ValueError, match="image 'x' came twice"):
        metrics.merge(metrics.rows())
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3, 2\)"):
        metrics.update("y", image, image.T)
    with pytest.raises(ValueError, match=r"'y' has the label 3; expected .* \(0 to 2\), or 255"):
        metrics.update("y", image, image + 3)
    with pytest.raises(ValueError, match=r"the predicted class 200; .* \(0 to 2\)$"):
        metrics.update("y", image + 200, image)
    with pytest.raises(ValueError, match="the predicted class 255"):
        metrics.update("y", image + 255, image + 255)
    with pytest.raises(ValueError, match="the label -1"):
        metrics.update("y", image, image.astype(np.int64) - 1)
    with pytest.raises(ValueError, match="whole numbers, got float64"):
        metrics.update("y", image / 2, image)
    with pytest.raises(ValueError, match="1 to 255 classes, got 256"):
        SegmentationMetrics(["a"] * 256)
    with pytest.raises(ValueError, match="counts of 3 classes, got 2"):
        metrics.merge(SegmentationMetrics(["a", "b"]).rows())
    assert len(metrics) == 1
