"""COCO's average precision of boxes and masks, the same for any number of processes.

The numbers are those of pycocotools, to the last bit, computed by faster-coco-eval.

Shape legend: N detections of an image, H rows, W columns, K classes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wavevit.metrics.average_precision import (
    AveragePrecision,
    IntArray,
    Kind,
    average_precision,
)


@dataclass(frozen=True)
class ImageDetections:
    """What was found in an image; can be pickled and sent.

    Attributes:
        image_id: Id of the image in the ground truth.
        boxes_xyxy: (N, 4) pixels of the original image.
        labels: (N,) class indices.
        scores: (N,).
        masks: N run-length codes as COCO compresses them, or None where masks are not evaluated.
    """

    image_id: int
    boxes_xyxy: NDArray[np.float32]
    labels: IntArray
    scores: NDArray[np.float32]
    masks: list[bytes] | None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DetectionResult:
    """What evaluation found.

    Attributes:
        class_names: K names.
        class_counts: (K,) objects of each class, crowds not counted.
        num_images: Images evaluated.
        box: Of boxes.
        mask: Of masks, or None.
    """

    class_names: list[str]
    class_counts: IntArray
    num_images: int
    box: AveragePrecision
    mask: AveragePrecision | None

    def summary(self) -> dict[str, float]:
        """The single numbers, by name: "box_ap", ..., and "mask_ap", ... where there are masks."""
        found = {f"box_{name}": number for name, number in self.box.numbers.items()}
        if self.mask is not None:
            found |= {f"mask_{name}": number for name, number in self.mask.numbers.items()}
        return found


class DetectionMetrics:
    """Collects what was found in each image; masks are kept as run-length codes.

    The result depends neither on the order of the images nor on which process evaluated which.
    Detections of an image with equal scores count in the order they came in, as in pycocotools.

    Args:
        ground_truth: Content of a COCO annotation file: lists "images" (id, height, width),
            "annotations" (id, image_id, category_id, bbox xywh, area, iscrowd; for masks
            segmentation) and "categories" (id, name). It is not changed.
        category_ids: K ids, in the order of the class indices; None takes the order of
            "categories".
        with_masks: Whether masks are evaluated, too.

    Raises:
        ValueError: No images or categories, a repeated or unknown id, or an object without mask.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        *,
        category_ids: Sequence[int] | None = None,
        with_masks: bool = False,
    ) -> None:
        names = {int(item["id"]): str(item["name"]) for item in ground_truth["categories"]}
        ids = list(names) if category_ids is None else [int(number) for number in category_ids]
        if not ids or sorted(ids) != sorted(names):
            raise ValueError(
                f"expected the ids of the {len(names)} categories of the ground truth, each once, "
                f"got {_shortened(ids)}"
            )
        self.category_ids = ids
        self.class_names = [names[number] for number in ids]
        self.with_masks = with_masks
        self._ground_truth = ground_truth
        self._sizes = {
            int(image["id"]): (int(image["height"]), int(image["width"]))
            for image in ground_truth["images"]
        }
        if not self._sizes:
            raise ValueError("the ground truth has no images; the data set is empty")
        if len(self._sizes) < len(ground_truth["images"]):
            raise ValueError("the ground truth lists an image id twice; ids must differ")
        self._check_objects()
        self._found: dict[int, ImageDetections] = {}

    def __len__(self) -> int:
        return len(self._found)

    def update(
        self,
        image_id: int,
        boxes_xyxy: Tensor,
        labels: Tensor,
        scores: Tensor,
        masks: Tensor | Iterable[Tensor] | None = None,
    ) -> None:
        """Adds the detections of an image, which may be none.

        Args:
            image_id: Of the ground truth; each image once.
            boxes_xyxy: (N, 4) pixels of the original image, any float dtype and device.
            labels: (N,) int64 in [0, K).
            scores: (N,).
            masks: (N, H, W) in the original image, bool, uint8, or probabilities, of which 0.5 and
                more belong to the object; or several such parts, one after the other, which are
                encoded as they come. Not used without `with_masks`.

        Raises:
            ValueError: An unknown image or one that came before, wrong shapes, a label outside the
                classes, NaN or infinity.
        """
        self._check_new(image_id)
        found = ImageDetections(
            image_id=int(image_id),
            boxes_xyxy=boxes_xyxy.detach().float().cpu().numpy(),
            labels=labels.detach().cpu().numpy().astype(np.int64),
            scores=scores.detach().float().cpu().numpy(),
            masks=None,
        )
        self._check(found)
        if self.with_masks:
            if masks is None:
                raise ValueError(
                    f"image {image_id}: masks are evaluated, and none came; choose a detector that "
                    "has masks, or evaluate boxes only"
                )
            parts = [masks] if isinstance(masks, Tensor) else masks
            codes = [code for part in parts for code in self._encoded(image_id, part)]
            if len(codes) != len(found):
                raise ValueError(f"image {image_id}: expected {len(found)} masks, got {len(codes)}")
            found = replace(found, masks=codes)
        self._found[found.image_id] = found

    def rows(self) -> list[ImageDetections]:
        """Every image so far, by image id."""
        return [self._found[image_id] for image_id in sorted(self._found)]

    def merge(self, rows: Iterable[ImageDetections]) -> None:
        """Adds images of another accumulator, e.g. of another process.

        Args:
            rows: What `rows` of the other one returned.

        Raises:
            ValueError: An unknown image, or one that came before: it would count twice.
        """
        for found in rows:
            self._check_new(found.image_id)
            self._found[found.image_id] = found

    def compute(self) -> DetectionResult:
        """The metrics of all images.

        Raises:
            ValueError: An image of the ground truth has not been evaluated: all of its objects
                would count as missed.
        """
        missing = [image_id for image_id in self._sizes if image_id not in self._found]
        if missing:
            raise ValueError(
                f"{len(missing):,} of {len(self._sizes):,} images have not been evaluated, the "
                f"first is image {missing[0]}; evaluate every image, or leave it out of the ground "
                "truth"
            )
        place = {number: label for label, number in enumerate(self.category_ids)}
        counts = np.zeros(len(place), np.int64)
        for annotation in self._ground_truth["annotations"]:
            if not annotation.get("iscrowd", 0):
                counts[place[annotation["category_id"]]] += 1
        return DetectionResult(
            class_names=self.class_names,
            class_counts=counts,
            num_images=len(self._sizes),
            box=self._evaluate("box"),
            mask=self._evaluate("mask") if self.with_masks else None,
        )

    def to_results_json(self, kind: Kind) -> list[dict[str, Any]]:
        """The detections as COCO's results format has them, with the categories' own ids.

        Boxes and masks make separate lists: a mask's size class would be told by its box where both
        are in one.

        Args:
            kind: "box" or "mask".

        Returns:
            Plain objects that json can write: by image id, and within an image in the order that
            they came in.

        Raises:
            ValueError: Masks that are not evaluated.
        """
        if kind == "mask" and not self.with_masks:
            raise ValueError("there are no masks to write: only boxes are evaluated")
        return list(self._results(kind))

    def _results(self, kind: Kind) -> Iterator[dict[str, Any]]:
        for found in self.rows():
            boxes = found.boxes_xyxy.astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            for number, (label, score) in enumerate(
                zip(found.labels.tolist(), found.scores.tolist(), strict=True)
            ):
                result = {
                    "image_id": found.image_id,
                    "category_id": self.category_ids[label],
                    "score": score,
                }
                if kind == "box":
                    result["bbox"] = boxes[number].tolist()
                else:
                    assert found.masks is not None
                    size = list(self._sizes[found.image_id])
                    counts = found.masks[number].decode("ascii")
                    result["segmentation"] = {"size": size, "counts": counts}
                yield result

    def _evaluate(self, kind: Kind) -> AveragePrecision:
        results = list(self._results(kind))
        return average_precision(self._ground_truth, results, self.category_ids, kind)

    def _encoded(self, image_id: int, masks: Tensor) -> list[bytes]:
        from faster_coco_eval import mask as mask_api

        if masks.ndim != 3 or masks.shape[1:] != self._sizes[image_id]:
            H, W = self._sizes[image_id]
            raise ValueError(
                f"image {image_id}: expected masks (N, {H}, {W}) in the original image, got "
                f"{tuple(masks.shape)}"
            )
        if len(masks) == 0:
            return []
        binary = masks >= 0.5 if masks.is_floating_point() else masks != 0
        # Codes run down the columns: (W, H) memory is what the encoder takes as it is.
        columns = binary.detach().transpose(1, 2).contiguous().cpu().numpy().view(np.uint8)
        codes = mask_api.encode(columns.transpose(2, 1, 0))
        return [code["counts"] for code in codes]

    def _check_new(self, image_id: int) -> None:
        if image_id not in self._sizes:
            raise ValueError(f"image {image_id} is not in the ground truth; check the image ids")
        if image_id in self._found:
            raise ValueError(
                f"image {image_id} came twice; every image must be evaluated exactly once"
            )

    def _check(self, found: ImageDetections) -> None:
        name, N, K = f"image {found.image_id}", len(found), len(self.category_ids)
        shapes = found.boxes_xyxy.shape, found.labels.shape, found.scores.shape
        if shapes != ((N, 4), (N,), (N,)):
            raise ValueError(
                f"{name}: expected boxes ({N}, 4), labels ({N},) and scores ({N},), got "
                f"{shapes[0]}, {shapes[1]} and {shapes[2]}"
            )
        if not (np.isfinite(found.boxes_xyxy).all() and np.isfinite(found.scores).all()):
            raise ValueError(
                f"{name}: boxes or scores hold NaN or infinity; use a wider precision (fp32), or "
                "weights of a run that did not diverge"
            )
        outside = found.labels[(found.labels < 0) | (found.labels >= K)]
        if len(outside):
            raise ValueError(
                f"{name}: expected labels of the data set's {K} classes (0 to {K - 1}), got "
                f"{outside[0]}"
            )

    def _check_objects(self) -> None:
        lacking: list[Any] = []
        known = set(self.category_ids)
        for item in self._ground_truth["annotations"]:
            if item["image_id"] not in self._sizes or item["category_id"] not in known:
                raise ValueError(
                    f"annotation {item['id']} of the ground truth is of image {item['image_id']} "
                    f"and category {item['category_id']}, one of which is not listed there"
                )
            if not item.get("segmentation"):
                lacking.append(item["id"])
        if lacking and self.with_masks:
            raise ValueError(
                f"{len(lacking):,} objects of the ground truth have no mask, the first is "
                f"annotation {lacking[0]}; evaluate boxes only"
            )


def _shortened(values: Sequence[int], limit: int = 5) -> str:
    text = ", ".join(map(str, values[:limit]))
    return text if len(values) <= limit else f"{text} and {len(values) - limit} more"
