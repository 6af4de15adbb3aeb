"""COCO's average precision: faster-coco-eval's matching, rounded as pycocotools does.

Shape legend: K classes, T = 10 IoU thresholds (0.50, 0.55, ..., 0.95),
R = 101 recall levels (0, 0.01, ..., 1), A = 4 area ranges, M = 3 limits of the detections of an
image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["box", "mask"]

NUMBERS = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)
"""COCO's twelve, in its order. Small: up to 32 x 32 pixels; large: from 96 x 96 on."""

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_IOU_TYPE: dict[Kind, str] = {"box": "bbox", "mask": "segm"}


@dataclass(frozen=True)
class AveragePrecision:
    """What evaluation found, for boxes or for masks. Precision, recall and AP are in [0, 1].

    Attributes:
        numbers: COCO's twelve by name (see `NUMBERS`); -1 where there are no objects of that kind.
        precision: (T, R, K) best precision at each recall or a higher one; NaN for classes without
            objects.
        scores: (T, R, K) score at which that recall is reached; 0 where it never is, NaN for
            classes without objects.
    """

    numbers: dict[str, float]
    precision: FloatArray
    scores: FloatArray

    @property
    def class_ap(self) -> FloatArray:
        """(K,) AP of each class over all IoU thresholds; NaN for classes without objects."""
        mean: FloatArray = self.precision.mean(axis=(0, 1))
        return mean

    @property
    def class_ap50(self) -> FloatArray:
        """(K,) AP of each class at IoU 0.5; NaN for classes without objects."""
        mean: FloatArray = self.precision[0].mean(axis=0)
        return mean

    def curve(self, iou_threshold: float = 0.5) -> FloatArray:
        """Precision at each recall, the mean over the classes that have objects.

        Args:
            iou_threshold: One of the T thresholds.

        Returns:
            (R,); NaN if no class has objects.

        Raises:
            ValueError: No such threshold.
        """
        thresholds = iou_thresholds()
        place = int(np.abs(thresholds - iou_threshold).argmin())
        if abs(thresholds[place] - iou_threshold) > 1e-6:
            raise ValueError(
                f"expected an IoU threshold of 0.5, 0.55, ..., 0.95; got {iou_threshold}"
            )
        precision = self.precision[place]
        with_objects: FloatArray = precision[:, ~np.isnan(precision).any(axis=0)]
        if with_objects.shape[1] == 0:
            return np.full(len(precision), np.nan)
        mean: FloatArray = with_objects.mean(axis=1)
        return mean


def iou_thresholds() -> FloatArray:
    """(T,) thresholds that AP is the mean over."""
    return np.linspace(0.5, 0.95, 10)


def recall_levels() -> FloatArray:
    """(R,) recalls that precision is given at."""
    return np.linspace(0, 1, 101)


def average_precision(
    ground_truth: Mapping[str, Any],
    results: Sequence[dict[str, Any]],
    category_ids: Sequence[int],
    kind: Kind,
) -> AveragePrecision:
    """COCO's evaluation. Every image of the ground truth counts.

    Args:
        ground_truth: Content of a COCO annotation file; it is not changed.
        results: In COCO's results format, with "bbox" or "segmentation" as the kind has it; they
            are marked in place.
        category_ids: K ids in the order of the labels, all that the ground truth has.
        kind: Whether boxes or masks are compared.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    # The library marks annotations, and adds run-length codes to them.
    names = ("images", "categories", "annotations")
    dataset = {name: [dict(item) for item in ground_truth[name]] for name in names}
    truth = COCO(dataset, print_function=_silent)
    found = (
        truth.loadRes(list(results))
        if results
        else COCO({**dataset, "annotations": []}, print_function=_silent)
    )
    evaluator = COCOeval_faster(truth, found, _IOU_TYPE[kind], print_function=_silent)
    params = evaluator.params
    params.catIds = sorted(category_ids)
    num_objects = _num_objects(ground_truth["annotations"], params.catIds, params.areaRng)
    levels = np.union1d(recall_levels(), _second_object(num_objects))
    params.recThrs = levels
    evaluator.evaluate()
    evaluator.accumulate()
    precision, scores, recall = (
        np.asarray(evaluator.eval[name]) for name in ("precision", "scores", "recall")
    )
    precision = _rounded_as_pycocotools(precision[..., -1], num_objects, levels)
    asked = np.searchsorted(levels, recall_levels())
    precision, scores = precision[:, asked], scores[..., 0, -1][:, asked]
    # The classes are sorted by category id up to here: the last bit of a mean tells the order.
    of_label = np.searchsorted(params.catIds, category_ids)
    of_all_sizes = precision[:, :, of_label, 0]
    has_objects = of_all_sizes > -1
    return AveragePrecision(
        numbers=_numbers(precision, recall),
        precision=np.where(has_objects, of_all_sizes, np.nan),
        scores=np.where(has_objects, scores[:, :, of_label], np.nan),
    )


def _num_objects(
    annotations: Sequence[Mapping[str, Any]],
    category_ids: Sequence[int],
    area_ranges: Sequence[Sequence[float]],
) -> IntArray:
    """(K, A) objects to be found."""
    place_of = {number: place for place, number in enumerate(category_ids)}
    counts = np.zeros((len(category_ids), len(area_ranges)), np.int64)
    for item in annotations:
        if not item.get("iscrowd", 0):
            counts[place_of[item["category_id"]]] += [
                low <= item["area"] <= high for low, high in area_ranges
            ]
    return counts


def _second_object(num_objects: IntArray) -> FloatArray:
    """The recall that only two right detections reach; 2, which none reaches, for one object."""
    return np.where(num_objects > 1, 1.5 / num_objects.clip(1), 2.0)


def _rounded_as_pycocotools(
    precision: FloatArray, num_objects: IntArray, levels: FloatArray
) -> FloatArray:
    """Precision as pycocotools rounds it.

    It divides by the number of detections plus 2.2e-16, which differs from that number only if it
    is 1. So where the first detection is right, and the second one, if any, is not, its precision
    is the largest float below 1; faster-coco-eval has 1 there.

    Args:
        precision: (T, levels, K, A) of faster-coco-eval.
        num_objects: (K, A) objects to be found.
        levels: Recalls, `_second_object` of every class and range among them.
    """
    place = np.searchsorted(levels, _second_object(num_objects))
    K, A = num_objects.shape
    is_second_right = precision[:, place, np.arange(K)[:, None], np.arange(A)] == 1
    is_first_alone = (precision == 1) & ~is_second_right[:, None]
    rounded: FloatArray = np.where(is_first_alone, 1 / (1 + np.spacing(1)), precision)
    return rounded


def _numbers(precision: FloatArray, recall: FloatArray) -> dict[str, float]:
    """COCO's twelve by name, of (T, R, K, A) precision and (T, K, A, M) recall."""
    everything, last = 0, -1  # all sizes, at most 100 detections of an image
    parts = [precision[..., everything], precision[:1, ..., everything]]
    parts.append(precision[5:6, ..., everything])  # IoU 0.75
    parts += [precision[..., area] for area in (1, 2, 3)]
    parts += [recall[:, :, everything, limit] for limit in range(3)]
    parts += [recall[:, :, area, last] for area in (1, 2, 3)]
    return {
        name: float(np.mean(part[part > -1])) if (part > -1).any() else -1.0
        for name, part in zip(NUMBERS, parts, strict=True)
    }


def _silent(*_: object, **__: object) -> None:
    """Takes the place of the library's printing."""
