"""What evaluation reports: known answers, torchmetrics as reference, independence of the order."""

import math
import pickle

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from wavevit.metrics.classification import (
    ClassificationMetrics,
    ClassificationResult,
    ClassificationRows,
    first_classes,
)


def random_batch(count: int, classes: int, seed: int = 0, scale: float = 2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    logits[torch.arange(count), labels] += 1.5
    return [f"{i:04d}.png" for i in range(count)], logits, labels


def collect(ids, logits, labels, order=None, batch_size=7) -> ClassificationMetrics:
    metrics = ClassificationMetrics(logits.shape[1])
    order = list(range(len(ids))) if order is None else order
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        metrics.update([ids[i] for i in part], logits[part], labels[part])
    return metrics


def assert_same(a: ClassificationResult, b: ClassificationResult) -> None:
    """Bit for bit."""
    assert pickle.dumps(a.summary()) == pickle.dumps(b.summary())
    assert a.rows.sample_ids == b.rows.sample_ids
    for name in ("labels", "top", "confidence", "loss"):
        np.testing.assert_array_equal(getattr(a.rows, name), getattr(b.rows, name))
    for name in ("edges", "counts", "confidence", "accuracy"):
        np.testing.assert_array_equal(getattr(a.bins, name), getattr(b.bins, name))
    np.testing.assert_array_equal(a.confusion, b.confusion)
    np.testing.assert_array_equal(a.class_accuracy, b.class_accuracy)


def test_known_answer_of_four_samples() -> None:
    logits = torch.tensor([[3.0, 1, 0], [0, 2, 1], [0, 1, 2], [5, 0, 0]])
    metrics = ClassificationMetrics(3)
    metrics.update(["a", "b", "c", "d"], logits, torch.tensor([0, 1, 1, 1]))
    result = metrics.compute()
    assert result.top1 == 0.5
    assert result.top5 == 1.0  # k = 3, all the classes there are
    assert result.confusion.tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert result.class_counts.tolist() == [1, 3, 0]
    assert result.class_accuracy[:2].tolist() == [1.0, 1 / 3]
    assert math.isnan(result.class_accuracy[2])
    assert result.mean_class_accuracy == pytest.approx(2 / 3, rel=1e-15)
    expected = torch.nn.functional.cross_entropy(logits.double(), torch.tensor([0, 1, 1, 1]))
    assert result.loss == pytest.approx(expected.item(), rel=1e-14)
    assert result.rows.predictions.tolist() == [0, 1, 2, 0]
    assert set(result.summary()) == {"top1", "top5", "mean_class_accuracy", "loss", "ece"}


def test_top5_counts_the_true_class_up_to_rank_five_and_no_further() -> None:
    logits = -torch.arange(8.0).repeat(8, 1)
    metrics = ClassificationMetrics(8)
    metrics.update([str(i) for i in range(8)], logits, torch.arange(8))
    result = metrics.compute()
    assert (result.top1, result.top5) == (1 / 8, 5 / 8)


@pytest.mark.parametrize("classes", [2, 5, 10, 1000])
@pytest.mark.parametrize("scale", [0.1, 2.0, 50.0])
def test_equals_torchmetrics(classes: int, scale: float) -> None:
    ids, logits, labels = random_batch(500, classes, seed=classes, scale=scale)
    result = collect(ids, logits, labels).compute()
    logits = logits.double()
    ece = multiclass_calibration_error(
        logits.softmax(1), labels, num_classes=classes, n_bins=15, norm="l1"
    )
    # torchmetrics keeps confidences in float32 and sums 500 of them: 1e-6 is its own rounding.
    assert result.ece == pytest.approx(ece.item(), abs=1e-6)
    for k, value in ((1, result.top1), (min(5, classes), result.top5)):
        reference = multiclass_accuracy(
            logits, labels, num_classes=classes, top_k=k, average="micro"
        )
        assert value == pytest.approx(reference.item(), abs=1e-7)
    confusion = multiclass_confusion_matrix(logits, labels, num_classes=classes)
    np.testing.assert_array_equal(result.confusion, confusion.numpy())
    assert result.confusion.dtype == np.int64


@pytest.mark.parametrize("batch_size", [1, 64, 100])
@pytest.mark.parametrize("seed", [1, 2])
def test_order_and_batch_size_change_nothing(batch_size: int, seed: int) -> None:
    ids, logits, labels = random_batch(100, 6)
    order = np.random.default_rng(seed).permutation(100).tolist()
    assert_same(
        collect(ids, logits, labels).compute(),
        collect(ids, logits, labels, order, batch_size).compute(),
    )


def test_rows_of_three_processes_merge_to_the_result_of_one() -> None:
    ids, logits, labels = random_batch(100, 6)
    merged = ClassificationMetrics(6)
    for rank in range(3):
        part = collect(ids, logits, labels, list(range(rank, 100, 3)))
        merged.merge(pickle.loads(pickle.dumps(part.rows())))
    assert len(merged) == 100
    assert_same(merged.compute(), collect(ids, logits, labels).compute())


def test_an_accumulator_without_samples_merges_too() -> None:
    ids, logits, labels = random_batch(5, 6)
    merged = collect(ids, logits, labels)
    merged.merge(ClassificationMetrics(6).rows())
    assert_same(merged.compute(), collect(ids, logits, labels).compute())


def test_equal_logits_rank_by_index() -> None:
    metrics = ClassificationMetrics(6)
    metrics.update(["a", "b"], torch.tensor([[0.0] * 6, [0, 1, 0, 1, 0, 1]]), torch.tensor([5, 3]))
    assert metrics.rows().top.tolist() == [[0, 1, 2, 3, 4], [1, 3, 5, 0, 2]]


def test_first_classes_equals_a_stable_sort() -> None:
    scores = np.random.default_rng(0).integers(0, 4, (200, 12)).astype(float)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(first_classes(scores, 5), expected)


def test_low_precision_logits_are_measured_in_float64() -> None:
    ids, logits, labels = random_batch(50, 6)
    low = logits.bfloat16()
    assert_same(collect(ids, low, labels).compute(), collect(ids, low.double(), labels).compute())


def test_huge_logits_neither_overflow_nor_lose_the_loss() -> None:
    metrics = ClassificationMetrics(2)
    metrics.update(["a", "b"], torch.tensor([[3e38, 0], [0, 1e4]]), torch.tensor([0, 0]))
    result = metrics.compute()
    assert result.loss == 5000.0
    assert result.rows.confidence.tolist() == [1.0, 1.0]
    assert result.bins.counts.tolist() == [0] * 14 + [2]
    assert result.ece == 0.5


def test_bins_hold_every_sample_and_mark_empty_ones() -> None:
    ids, logits, labels = random_batch(300, 4)
    bins = collect(ids, logits, labels).compute().bins
    assert bins.counts.sum() == 300
    assert len(bins.edges) == 16
    used = bins.counts > 0
    assert ((bins.edges[:-1] <= bins.confidence) & (bins.confidence <= bins.edges[1:]))[used].all()
    assert np.isnan(bins.accuracy[~used]).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused_with_the_sample(bad: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    with pytest.raises(ValueError, match=r"'cat/b\.jpg' holds NaN or infinity; use a wider"):
        ClassificationMetrics(4).update(["a", "cat/b.jpg", "c"], logits, torch.zeros(3).long())


def test_a_refused_batch_leaves_no_trace() -> None:
    metrics = ClassificationMetrics(4)
    with pytest.raises(ValueError, match="NaN"):
        metrics.update(["a"], torch.full((1, 4), math.nan), torch.tensor([0]))
    metrics.update(["a"], torch.zeros(1, 4), torch.tensor([0]))
    assert len(metrics) == 1


def test_a_sample_that_comes_twice_is_refused() -> None:
    ids, logits, labels = random_batch(4, 3)
    metrics = collect(ids, logits, labels)
    with pytest.raises(ValueError, match=r"'0002\.png' came twice"):
        metrics.update(["x", ids[2]], logits[:2], labels[:2])
    with pytest.raises(ValueError, match="'y' came twice"):
        metrics.update(["y", "y"], logits[:2], labels[:2])
    with pytest.raises(ValueError, match=r"'0000\.png' came twice"):
        metrics.merge(collect(ids, logits, labels).rows())
    assert len(metrics) == 4


def test_errors_say_what_was_expected() -> None:
    metrics = ClassificationMetrics(3)
    with pytest.raises(ValueError, match=r"expected logits \(2, 3\) .* got \(2, 4\) and \(2,\)"):
        metrics.update(["a", "b"], torch.zeros(2, 4), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"'b' has label 3, but the network has 3 classes"):
        metrics.update(["a", "b"], torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="'a' has label -1"):
        metrics.update(["a"], torch.zeros(1, 3), torch.tensor([-1]))
    with pytest.raises(ValueError, match="no samples"):
        metrics.compute()
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        ClassificationMetrics(1)


def test_a_row_keeps_five_classes_whatever_the_number_of_classes() -> None:
    ids, logits, labels = random_batch(20, 2000)
    rows = collect(ids, logits, labels).rows()
    assert isinstance(rows, ClassificationRows)
    assert rows.top.shape == (20, 5)
