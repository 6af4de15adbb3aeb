"""Top-k accuracy, confusion and calibration of a classifier, the same whatever the batches were.

Shape legend: N samples, B samples of a batch, K classes, M bins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

NUM_BINS = 15
NUM_TOP = 5

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class ClassificationRows:
    """What is kept of every sample, in the order of the sample ids; can be pickled and sent.

    Attributes:
        sample_ids: Names of the samples, sorted.
        labels: (N,) true classes.
        top: (N, min(5, K)) classes by falling logit; among equal logits the lower index is first.
        confidence: (N,) probability of the first class, in [0, 1].
        loss: (N,) cross-entropy, nats.
    """

    sample_ids: list[str]
    labels: IntArray
    top: IntArray
    confidence: FloatArray
    loss: FloatArray

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def predictions(self) -> IntArray:
        """(N,) predicted classes."""
        return self.top[:, 0]

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """(N,) whether the predicted class is the true one."""
        return np.equal(self.predictions, self.labels)


@dataclass(frozen=True)
class ReliabilityBins:
    """How often predictions of about the same confidence are right.

    Attributes:
        edges: (M + 1,) borders of the bins in [0, 1]; a bin holds its lower border, the last one
            both.
        counts: (M,) samples of each bin.
        confidence: (M,) mean confidence of each bin; NaN where it is empty.
        accuracy: (M,) share of right predictions of each bin; NaN where it is empty.
    """

    edges: FloatArray
    counts: IntArray
    confidence: FloatArray
    accuracy: FloatArray

    @property
    def ece(self) -> float:
        """Expected calibration error in [0, 1], the mean gap weighted by the bins' counts."""
        used = self.counts > 0
        gaps = np.abs(self.accuracy[used] - self.confidence[used])
        return math.fsum(gaps * (self.counts[used] / self.counts.sum()))


@dataclass(frozen=True)
class ClassificationResult:
    """What evaluation found. Accuracies are fractions in [0, 1].

    Attributes:
        num_classes: K.
        top1: Share of samples whose first class is the true one.
        top5: Share of samples whose true class is among the first min(5, K).
        loss: Mean cross-entropy, nats.
        class_counts: (K,) samples of each true class.
        class_accuracy: (K,) top-1 among the samples of each class; NaN where there are none.
        bins: Confidence against accuracy, in 15 bins of equal width.
        rows: Every sample.
    """

    num_classes: int
    top1: float
    top5: float
    loss: float
    class_counts: IntArray
    class_accuracy: FloatArray
    bins: ReliabilityBins
    rows: ClassificationRows

    @property
    def ece(self) -> float:
        """Expected calibration error of the predicted class (l1 norm, 15 bins), in [0, 1]."""
        return self.bins.ece

    @property
    def mean_class_accuracy(self) -> float:
        """Mean of the accuracies of the classes that have samples (balanced accuracy)."""
        return float(np.nanmean(self.class_accuracy))

    @cached_property
    def confusion(self) -> IntArray:
        """(K, K) samples by true class (row) and predicted class (column)."""
        K = self.num_classes
        cells = np.bincount(self.rows.labels * K + self.rows.predictions, minlength=K * K)
        return cells.reshape(K, K).astype(np.int64)

    def summary(self) -> dict[str, float]:
        """The single numbers, by name."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "mean_class_accuracy": self.mean_class_accuracy,
            "loss": self.loss,
            "ece": self.ece,
        }


class ClassificationMetrics:
    """Collects one small row per sample, so memory grows with N and not with N x K.

    Results are equal bit for bit for every order and grouping of the same logits, and for rows
    collected in several processes and merged.

    Args:
        num_classes: K, the length of a sample's logits.

    Raises:
        ValueError: Fewer than two classes.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 2:
            raise ValueError(f"expected at least 2 classes, got {num_classes}")
        self.num_classes = num_classes
        self._known: set[str] = set()
        self._parts: list[ClassificationRows] = []

    def __len__(self) -> int:
        return len(self._known)

    def update(self, sample_ids: Sequence[str], logits: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Args:
            sample_ids: B names, each never seen before.
            logits: (B, K), any float dtype and device.
            labels: (B,) int64 in [0, K).

        Raises:
            ValueError: Wrong shapes, a label outside the classes, NaN or infinite logits, or a
                sample that was added before.
        """
        self._check_shapes(sample_ids, logits, labels)
        values = logits.detach().cpu().double().numpy()
        truth = labels.detach().cpu().numpy().astype(np.int64)
        self._check_values(sample_ids, values, truth)
        top = first_classes(values, min(NUM_TOP, self.num_classes))
        rows = np.arange(len(values))
        shifted = values - values[rows, top[:, 0], None]
        log_total = np.log(np.exp(shifted).sum(axis=1))
        self.merge(
            ClassificationRows(
                sample_ids=list(sample_ids),
                labels=truth,
                top=top,
                confidence=np.exp(-log_total),
                loss=log_total - shifted[rows, truth],
            )
        )

    def merge(self, rows: ClassificationRows) -> None:
        """Adds rows of another accumulator, e.g. of another process.

        Args:
            rows: What `rows` of the other one returned.

        Raises:
            ValueError: A sample that was added before: its result would count twice.
        """
        new = set(rows.sample_ids)
        if len(new) < len(rows) or not new.isdisjoint(self._known):
            seen = set(self._known)
            double = next(i for i in rows.sample_ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise ValueError(
                f"sample {double!r} came twice; every sample must be evaluated exactly once"
            )
        self._known |= new
        self._parts.append(rows)

    def rows(self) -> ClassificationRows:
        """Every sample so far, in the order of the sample ids."""
        sample_ids = [name for part in self._parts for name in part.sample_ids]
        order = sorted(range(len(sample_ids)), key=sample_ids.__getitem__)
        empty = ClassificationRows(
            [],
            np.empty(0, np.int64),
            np.empty((0, min(NUM_TOP, self.num_classes)), np.int64),
            np.empty(0),
            np.empty(0),
        )
        parts = [empty, *self._parts]
        return ClassificationRows(
            sample_ids=[sample_ids[i] for i in order],
            labels=np.concatenate([part.labels for part in parts])[order],
            top=np.concatenate([part.top for part in parts])[order],
            confidence=np.concatenate([part.confidence for part in parts])[order],
            loss=np.concatenate([part.loss for part in parts])[order],
        )

    def compute(self) -> ClassificationResult:
        """The metrics of all samples so far.

        Raises:
            ValueError: There are none.
        """
        rows = self.rows()
        if len(rows) == 0:
            raise ValueError("no samples to compute metrics of; the data set is empty")
        counts = np.bincount(rows.labels, minlength=self.num_classes)
        right = np.bincount(rows.labels[rows.is_right], minlength=self.num_classes)
        accuracy = np.full(self.num_classes, np.nan)
        np.divide(right, counts, out=accuracy, where=counts > 0)
        return ClassificationResult(
            num_classes=self.num_classes,
            top1=int(rows.is_right.sum()) / len(rows),
            top5=int((rows.top == rows.labels[:, None]).sum()) / len(rows),
            # fsum rounds once, so the mean does not depend on the order of the samples.
            loss=math.fsum(rows.loss) / len(rows),
            class_counts=counts.astype(np.int64),
            class_accuracy=accuracy,
            bins=reliability_bins(rows.confidence, rows.is_right),
            rows=rows,
        )

    def _check_shapes(self, sample_ids: Sequence[str], logits: Tensor, labels: Tensor) -> None:
        B, K = len(sample_ids), self.num_classes
        if logits.shape != (B, K) or labels.shape != (B,):
            raise ValueError(
                f"expected logits ({B}, {K}) and labels ({B},) for {B} samples of {K} classes, "
                f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
            )

    def _check_values(
        self, sample_ids: Sequence[str], logits: FloatArray, labels: IntArray
    ) -> None:
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"the network's output for {sample_ids[int(finite.argmin())]!r} holds NaN or "
                "infinity; use a wider precision (fp32), or weights of a run that did not diverge"
            )
        inside = (labels >= 0) & (labels < self.num_classes)
        if not inside.all():
            at = int(inside.argmin())
            raise ValueError(
                f"sample {sample_ids[at]!r} has label {labels[at]}, but the network has "
                f"{self.num_classes} classes (0 to {self.num_classes - 1})"
            )


def first_classes(scores: FloatArray, count: int) -> IntArray:
    """Classes by falling score; among equal scores the lower index comes first.

    Args:
        scores: (B, K), finite.
        count: Number of classes wanted, at most K.

    Returns:
        (B, count).
    """
    # Rounds of argmax, which is specified to return the first maximum; top-k routines are not.
    remaining = scores.copy()
    rows = np.arange(len(scores))
    top = np.empty((len(scores), count), np.int64)
    for rank in range(count):
        top[:, rank] = remaining.argmax(axis=1)
        remaining[rows, top[:, rank]] = -np.inf
    return top


def reliability_bins(confidence: FloatArray, is_right: NDArray[np.bool_]) -> ReliabilityBins:
    """Mean confidence and accuracy in 15 bins of equal width.

    Args:
        confidence: (N,) in [0, 1].
        is_right: (N,).
    """
    edges = np.linspace(0, 1, NUM_BINS + 1)
    index = np.minimum(np.searchsorted(edges, confidence, side="right") - 1, NUM_BINS - 1)
    counts = np.bincount(index, minlength=NUM_BINS)
    right = np.bincount(index[is_right], minlength=NUM_BINS)
    totals = [math.fsum(confidence[index == i]) for i in range(NUM_BINS)]
    with np.errstate(invalid="ignore"):
        return ReliabilityBins(edges, counts.astype(np.int64), totals / counts, right / counts)
