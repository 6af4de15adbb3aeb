"""Annotated images of any layout in one neutral form: flat arrays that worker processes share.

Boxes live on the continuous plane of `geometry`: 0 is the outer edge of the first pixel, so a box
over the whole picture is (0, 0, width, height).

Shape legend: N objects of an image, M objects of all images, I images, K classes, H rows, W
columns.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wavevit.data.detection.annotation_tables import ImageTable, Objects, ObjectTable
from wavevit.data.detection.object_masks import (
    decode_masks,
    encode_mask,
    encode_polygons,
    read_instance_map,
)
from wavevit.data.detection.segment_table import Polygons
from wavevit.data.shared_array import SharedArray


class DetectionAnnotations:
    """Images with boxes and perhaps masks, addressed by index.

    All that grows with the data set lies in flat arrays, which forked and spawned workers share.

    Args:
        images: The images.
        objects: The objects of all images.
        first_objects: (I,) the row of each image's first object.
        num_objects: (I,) number of objects of each image.
        class_names: Name of every label.
        category_ids: (K,) the file's own id of every label.
        description: One line for the log: where all this was read from.
    """

    def __init__(
        self,
        images: ImageTable,
        objects: ObjectTable,
        first_objects: NDArray[np.int64],
        num_objects: NDArray[np.int64],
        class_names: Sequence[str],
        category_ids: Sequence[int],
        description: str,
    ) -> None:
        self.class_names = list(class_names)
        self.category_ids = np.array(category_ids, np.int64)
        self.description = description
        self._images = images
        self._objects = objects
        self._first_objects = SharedArray(first_objects)
        self._num_objects = SharedArray(num_objects)

    def __len__(self) -> int:
        return len(self._images.paths)

    @property
    def root(self) -> Path:
        """Folder that the sample ids are relative to."""
        return self._images.root

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """(I,) id of each image, that of the COCO file where there is one."""
        return self._images.ids.array

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(I, 2) height and width that the annotations of each image are for."""
        return self._images.sizes.array.reshape(-1, 2)

    @property
    def num_objects(self) -> NDArray[np.int64]:
        """(I,) number of objects of each image, crowd and boxes without area included."""
        return self._num_objects.array

    @property
    def labels(self) -> NDArray[np.int64]:
        """(M,) label of every object, image after image, crowd and boxes without area included."""
        return self._objects.labels.array[self._all_rows()]

    @property
    def crowd(self) -> NDArray[np.bool_]:
        """(M,) whether an object is crowd, in the order of `labels`."""
        return self._objects.crowd.array[self._all_rows()]

    @property
    def boxes_xywh(self) -> NDArray[np.float64]:
        """(M, 4) left, top, width, height as in the file, in the order of `labels`."""
        return self._objects.boxes_xywh.array.reshape(-1, 4)[self._all_rows()]

    @property
    def areas(self) -> NDArray[np.float64]:
        """(M,) area of every object as in `Objects`, in the order of `labels`."""
        return self._objects.areas.array[self._all_rows()]

    @property
    def num_masks(self) -> int:
        """Number of objects that have a mask."""
        segments = self._objects.segments
        return 0 if segments is None else int(segments.exists[self._all_rows()].sum())

    @property
    def has_masks(self) -> bool:
        """Whether there are objects, and every one has a mask."""
        return 0 < int(self.num_objects.sum()) == self.num_masks

    def check_masks(self) -> None:
        """Raises a ValueError, naming an object and the count, unless every object has a mask."""
        rows = self._all_rows()
        segments = self._objects.segments
        lacking = rows if segments is None else rows[~segments.exists[rows]]
        if len(lacking):
            annotation_id = int(self._objects.annotation_ids.array[lacking[0]])
            raise ValueError(
                f"{len(lacking):,} of {len(rows):,} objects have no mask, the first is annotation "
                f"{annotation_id} ({self.description}); add outlines, or choose a detector "
                "without masks"
            )

    def image_id(self, index: int) -> int:
        """Id of an image."""
        return int(self._images.ids.array[index])

    def sample_id(self, index: int) -> str:
        """Posix path of an image file, relative to `root` where it was given so."""
        return self._images.paths[index]

    def sample_ids(self) -> Iterator[str]:
        """The sample ids of all images in order."""
        return iter(self._images.paths)

    def path(self, index: int) -> Path:
        """Path of an image file."""
        return self.root / self._images.paths[index]

    def instance_map(self, index: int) -> Path | None:
        """Path of an image's picture of object numbers, which the masks are taken from; or None."""
        maps = self._images.instance_maps
        return None if maps is None or not maps[index] else self.root / maps[index]

    def mask_numbers(self, index: int) -> NDArray[np.int32]:
        """(L,) numbers of an image's objects in that picture, L of them or none."""
        segments = self._objects.segments
        if segments is None:
            return np.zeros(0, np.int32)
        numbers = segments.numbers.array[self._rows(index)]
        return numbers[numbers > 0]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width that the annotations are for."""
        height, width = self._images.sizes.array[2 * index : 2 * index + 2].tolist()
        return height, width

    def objects(self, index: int) -> Objects:
        """The objects of an image, with boxes clipped to it.

        Boxes without any width or height inside the image are left out: COCO's own files have a few
        of them, and nothing can be learned from them.

        Args:
            index: Of the image.
        """
        rows, boxes = self._rows_and_boxes(index)
        table = self._objects
        return Objects(
            boxes=boxes,
            labels=table.labels.array[rows],
            crowd=table.crowd.array[rows],
            areas=table.areas.array[rows],
            annotation_ids=table.annotation_ids.array[rows],
        )

    def masks(self, index: int) -> NDArray[np.uint8]:
        """The masks of the objects of an image, drawn now; 1 inside and 0 outside.

        Args:
            index: Of the image.

        Returns:
            (N, H, W) in the order of `objects`.

        Raises:
            ValueError: If an object has none.
            UnreadableImageError: If a picture of numbered pixels cannot be read.
        """
        height, width = self.size(index)
        rows, _ = self._rows_and_boxes(index)
        table = self._objects.segments
        if table is not None and len(rows) and (numbers := table.numbers.array[rows]).all():
            return self._masks_by_number(index, numbers)
        segments = self._segments(index, rows)
        if None in segments:
            row = rows[segments.index(None)]
            annotation_id = int(self._objects.annotation_ids.array[row])
            raise ValueError(
                f"annotation {annotation_id} has no mask ({self.description}); add its outline, or "
                "choose a detector without masks"
            )
        codes = [
            encode_polygons(segment, height, width) if isinstance(segment, list) else segment
            for segment in segments
            if segment is not None
        ]
        return decode_masks(codes, height, width)

    def segments(self, index: int) -> list[Polygons | bytes | None]:
        """What outlines each object of an image, in the order of `objects`.

        Args:
            index: Of the image.

        Returns:
            Polygons (lists of (P, 2) points in pixels), run-length codes, or None for objects that
            have no mask.

        Raises:
            UnreadableImageError: If a picture of numbered pixels cannot be read.
        """
        return self._segments(index, self._rows_and_boxes(index)[0])

    def subset(self, indices: NDArray[np.int64]) -> "DetectionAnnotations":
        """The annotations of the images at `indices`, in that order, with the same classes.

        Args:
            indices: Of images. The arrays of the objects are shared with the subset.
        """
        images = self._images
        maps = images.instance_maps
        taken = ImageTable(
            root=images.root,
            paths=images.paths.take(indices),
            ids=SharedArray(images.ids.array[indices]),
            sizes=SharedArray(self.sizes[indices].ravel()),
            instance_maps=None if maps is None else maps.take(indices),
        )
        return DetectionAnnotations(
            taken,
            self._objects,
            self._first_objects.array[indices],
            self._num_objects.array[indices],
            self.class_names,
            self.category_ids.tolist(),
            self.description,
        )

    def to_coco(self, *, with_masks: bool = True) -> dict[str, Any]:
        """All annotations as the content of a COCO file, the ground truth of an evaluation.

        Boxes are those of the file, unclipped, as pycocotools would have read them. Where a file
        has the annotation id 0, which pycocotools takes for "no match", ids are numbers from 1 on.

        Args:
            with_masks: Whether outlines are part of it.

        Returns:
            Lists "images", "categories" and "annotations" of plain Python objects. Outlines are
            flat polygons, or run-length codes as text.
        """
        table = self._objects
        all_rows = self._all_rows()
        renumber = bool((table.annotation_ids.array[all_rows] == 0).any())
        annotations: list[dict[str, Any]] = []
        for index, image_id in enumerate(self.image_ids.tolist()):
            rows = self._rows(index)
            segments = self._segments(index, rows) if with_masks else [None] * len(rows)
            for row, segment in zip(rows.tolist(), segments, strict=True):
                number = len(annotations) + 1
                annotation: dict[str, Any] = {
                    "id": number if renumber else int(table.annotation_ids.array[row]),
                    "image_id": image_id,
                    "category_id": int(self.category_ids[table.labels.array[row]]),
                    "bbox": table.boxes_xywh.array[4 * row : 4 * row + 4].tolist(),
                    "area": float(table.areas.array[row]),
                    "iscrowd": int(table.crowd.array[row]),
                }
                if segment is not None:
                    annotation["segmentation"] = _coco_segmentation(segment, self.size(index))
                annotations.append(annotation)
        images = [
            {"id": image_id, "file_name": path, "height": height, "width": width}
            for image_id, path, (height, width) in zip(
                self.image_ids.tolist(), self.sample_ids(), self.sizes.tolist(), strict=True
            )
        ]
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids.tolist(), self.class_names, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _rows(self, index: int) -> NDArray[np.int64]:
        first = int(self._first_objects.array[index])
        return np.arange(first, first + int(self._num_objects.array[index]))

    def _all_rows(self) -> NDArray[np.int64]:
        counts = self._num_objects.array
        shift = self._first_objects.array - (np.cumsum(counts) - counts)
        return np.arange(int(counts.sum())) + np.repeat(shift, counts)

    def _rows_and_boxes(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows of the objects with extent, and their clipped boxes."""
        rows = self._rows(index)
        height, width = self.size(index)
        boxes = self._objects.boxes_xywh.array.reshape(-1, 4)[rows]
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0, [width, height, width, height])
        has_extent = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return rows[has_extent], boxes[has_extent]

    def _segments(self, index: int, rows: NDArray[np.int64]) -> list[Polygons | bytes | None]:
        """What outlines the objects at rows of an image, with codes in place of numbers."""
        table = self._objects.segments
        if table is None:
            return [None] * len(rows)
        numbers = table.numbers.array[rows]
        masks = iter(self._masks_by_number(index, numbers[numbers > 0]) if numbers.any() else ())
        return [
            encode_mask(next(masks)) if isinstance(segment, int) else segment
            for segment in (table[int(row)] for row in rows)
        ]

    def _masks_by_number(self, index: int, numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
        path = self.instance_map(index)
        assert path is not None  # numbers come with pictures of them
        picture = read_instance_map(path, self.size(index))
        return (picture == numbers[:, None, None]).astype(np.uint8)


def _coco_segmentation(
    segment: Polygons | bytes, size: tuple[int, int]
) -> list[list[float]] | dict[str, Any]:
    if isinstance(segment, bytes):
        return {"size": list(size), "counts": segment.decode("ascii")}
    return [ring.ravel().tolist() for ring in segment]
