"""Which validation images of a detector are worth a look, and which detections are drawn.

Shape legend: N detections, G objects of an image, K classes, H rows, W columns, R recall levels.
"""

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import box_iou

from wavevit.data.detection.dataset import DetectionSource
from wavevit.data.detection.object_masks import decode_masks
from wavevit.data.detection.sample import DetectionSample
from wavevit.metrics.average_precision import AveragePrecision, recall_levels
from wavevit.metrics.detection import ImageDetections
from wavevit.pictures.detection import DrawnObjects
from wavevit.pictures.detection_grids import DetectionExample

_EXAMPLES = 6  # with many mistakes, and of the others, each
_MOST_DRAWN = 24  # detections of a picture: more would hide it
_DEFAULT_THRESHOLD = 0.3  # of a class that has no right detection
_IOU = 0.5  # from here on a detection is right


def best_f1(box: AveragePrecision) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The best F1 of each class at IoU 0.5, and the score from which detections then count.

    Args:
        box: AP of boxes.

    Returns:
        F1 (K,), NaN for classes without objects; scores (K,), 0.3 where none is found.
    """
    precision, scores = box.precision[0], box.scores[0]  # (R, K)
    recall = recall_levels()[:, None]
    total = precision + recall
    f1 = 2 * precision * recall / np.where(total > 0, total, 1)
    place = np.nan_to_num(f1, nan=-1.0).argmax(axis=0)
    columns = np.arange(f1.shape[1])
    best, threshold = f1[place, columns], scores[place, columns]
    return best, np.where(best > 0, threshold, _DEFAULT_THRESHOLD)


def choose_detection_examples(
    dataset: DetectionSource, rows: list[ImageDetections], box: AveragePrecision
) -> list[tuple[str, list[DetectionExample]]]:
    """Images with the most mistakes, and others spread over the data.

    Detections count from the score on that has their class's best F1; drawn are the right ones
    first, then the best of the others.

    Args:
        dataset: The validation images.
        rows: What was found in them.
        box: AP of boxes.

    Returns:
        Headings and examples.
    """
    threshold = best_f1(box)[1]
    truth = _truth_by_image(dataset)
    counts: list[tuple[int, int, int]] = []  # of each image: right, wrong, missed
    kept = [np.flatnonzero(row.scores >= threshold[row.labels]) for row in rows]
    for number, row in enumerate(rows):
        chosen = kept[number][np.argsort(-row.scores[kept[number]], kind="stable")]
        boxes, labels = truth[row.image_id]
        is_right = _are_right(row.boxes_xyxy[chosen], row.labels[chosen], boxes, labels)
        kept[number] = np.concatenate([chosen[is_right], chosen[~is_right]])
        num_right = int(is_right.sum())
        counts.append((num_right, len(chosen) - num_right, len(labels) - num_right))
    mistakes = np.array([wrong + missed for _, wrong, missed in counts])
    hardest = np.argsort(-mistakes, kind="stable")[:_EXAMPLES]
    hardest = hardest[mistakes[hardest] > 0]
    others = np.setdiff1d(np.arange(len(rows)), hardest)
    with_something = np.array([sum(numbers) > 0 for numbers in counts])[others]
    others = others[with_something] if with_something.any() else others
    places = np.linspace(0, len(others) - 1, min(_EXAMPLES, len(others))).round().astype(int)
    spread = others[places]
    index_of = {dataset.image_id(index): index for index in range(len(dataset))}

    def example(number: int) -> DetectionExample:
        row, (right, wrong, missed) = rows[number], counts[number]
        index = index_of[row.image_id]
        caption = f"{right} right, {wrong} wrong, {missed} missed"
        return _example(dataset, index, row, kept[number], caption)

    return [
        ("Validation images with the most mistakes", [example(int(i)) for i in hardest]),
        ("Others, spread over the data", [example(int(i)) for i in spread]),
    ]


def drawn_truth(sample: DetectionSample, class_names: list[str]) -> DrawnObjects:
    """The objects of a sample as a picture shows them.

    Args:
        sample: The image and its objects.
        class_names: Names of all classes.
    """
    target = sample.target()
    masks = target.get("masks")
    return DrawnObjects(
        boxes_xyxy=target["boxes"].numpy(),
        labels=target["labels"].numpy(),
        class_names=class_names,
        masks=None if masks is None else masks.numpy(),
    )


def to_picture(image: torch.Tensor) -> Image.Image:
    """A picture of pixels.

    Args:
        image: uint8 ``(3, H, W)``, RGB.
    """
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _example(
    dataset: DetectionSource,
    index: int,
    row: ImageDetections,
    kept: NDArray[np.int64],
    caption: str,
) -> DetectionExample:
    sample = dataset.load(index)
    H, W = sample.size
    most = max(_MOST_DRAWN, len(sample.labels))
    if len(kept) > most:
        caption += f" (of those found, {most} are drawn)"
    kept = kept[:most]
    found = DrawnObjects(
        boxes_xyxy=row.boxes_xyxy[kept],
        labels=row.labels[kept],
        class_names=dataset.class_names,
        scores=row.scores[kept],
        masks=None if row.masks is None else decode_masks([row.masks[i] for i in kept], H, W),
    )
    return DetectionExample(
        to_picture(sample.image),
        drawn_truth(sample, dataset.class_names),
        found,
        dataset.sample_id(index),
        caption,
    )


def _truth_by_image(
    dataset: DetectionSource,
) -> dict[int, tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Boxes (G, 4) xyxy and labels (G,) of every image by its id, crowds left out."""
    content = dataset.to_coco()
    label_of = {number: label for label, number in enumerate(dataset.category_ids)}
    found: dict[int, list[tuple[list[float], int]]] = defaultdict(list)
    for item in content["annotations"]:
        if not item["iscrowd"]:
            x, y, w, h = item["bbox"]
            found[item["image_id"]].append(([x, y, x + w, y + h], label_of[item["category_id"]]))
    return {
        image["id"]: (
            np.array([box for box, _ in found[image["id"]]], np.float32).reshape(-1, 4),
            np.array([label for _, label in found[image["id"]]], np.int64),
        )
        for image in content["images"]
    }


def _are_right(
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    true_boxes: NDArray[np.float32],
    true_labels: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Which detections, best first, have an object of their class to themselves."""
    is_right = np.zeros(len(boxes), np.bool_)
    if not len(boxes) or not len(true_boxes):
        return is_right
    iou = box_iou(torch.from_numpy(boxes), torch.from_numpy(true_boxes)).numpy()
    iou[labels[:, None] != true_labels] = 0
    for number, row in enumerate(iou):
        best = int(row.argmax())
        if row[best] >= _IOU:
            is_right[number] = True
            iou[:, best] = 0
    return is_right
