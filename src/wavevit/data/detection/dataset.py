"""Detection data sets: an image with its objects by index, as training and evaluation want it.

Shape legend: N objects, H rows, W columns, H0 and W0 those of the image as stored, K classes.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wavevit.data.detection.annotations import DetectionAnnotations
from wavevit.data.detection.sample import DetectionSample, MaskView
from wavevit.data.sized_image import load_sized

MIN_TRAIN_SIDE = 32


class DetectionSource(Protocol):
    """Images with boxes and perhaps masks, addressed by index."""

    class_names: list[str]
    """Name of every label."""

    @property
    def category_ids(self) -> list[int]:
        """(K,) ids of the classes in a COCO file, by label."""
        ...

    @property
    def with_masks(self) -> bool:
        """Whether samples have masks."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def sample_id(self, index: int) -> str:
        """Unique name of an image, a posix path that is the same on every machine."""
        ...

    def sample_ids(self) -> Iterator[str]:
        """The names of all images in order."""
        ...

    def image_id(self, index: int) -> int:
        """Id of an image in a COCO file."""
        ...

    def load(self, index: int) -> DetectionSample:
        """An image and its objects; raises `UnreadableImageError`."""
        ...

    def to_coco(self) -> dict[str, Any]:
        """Content of a COCO file with all that is to be found, the ground truth of an evaluation.

        Crowds are in it, and masks where samples have them.
        """
        ...


class DetectionDataset:
    """Annotated image files.

    Crowds are not among the objects of a sample: nothing is to be learned from them. Evaluation
    knows them from `to_coco`.

    Args:
        annotations: Of the files.
        with_masks: Whether samples have masks.

    Raises:
        ValueError: Masks are wanted, and an object has none.
    """

    def __init__(self, annotations: DetectionAnnotations, *, with_masks: bool = False) -> None:
        if with_masks:
            annotations.check_masks()
        self.class_names = annotations.class_names
        self.annotations = annotations
        self.with_masks = with_masks

    @property
    def category_ids(self) -> list[int]:
        """(K,) the file's own id of every label."""
        ids: list[int] = self.annotations.category_ids.tolist()
        return ids

    def __len__(self) -> int:
        return len(self.annotations)

    def sample_id(self, index: int) -> str:
        """Posix path of an image file, relative to the data set's root where it was given so."""
        return self.annotations.sample_id(index)

    def sample_ids(self) -> Iterator[str]:
        """The sample ids of all images in order."""
        return self.annotations.sample_ids()

    def image_id(self, index: int) -> int:
        """Id of an image, the file's own where it has ids."""
        return self.annotations.image_id(index)

    def load(self, index: int) -> DetectionSample:
        """An image and its objects, crowds and boxes without area left out.

        Args:
            index: Of the image.

        Raises:
            UnreadableImageError: If the image cannot be decoded, or has another size than its
                annotations are for.
        """
        picture = load_annotated(self.annotations, index)
        objects = self.annotations.objects(index)
        is_wanted = ~objects.crowd
        masks = None
        if self.with_masks:
            masks = MaskView.of(self.annotations.masks(index)).take(is_wanted)
        return DetectionSample(
            # A view of (H, W, 3) memory, which resizing is quickest with.
            image=torch.from_numpy(np.array(picture)).permute(2, 0, 1),
            boxes=torch.from_numpy(objects.boxes[is_wanted].astype(np.float32)),
            labels=torch.from_numpy(objects.labels[is_wanted]),
            masks=masks,
        )

    def to_coco(self) -> dict[str, Any]:
        """Content of a COCO file with all objects, crowds included."""
        return self.annotations.to_coco(with_masks=self.with_masks)

    def subset(self, indices: NDArray[np.int64]) -> "DetectionDataset":
        """The data set of the images at `indices`, in that order, with the same classes."""
        return DetectionDataset(self.annotations.subset(indices), with_masks=self.with_masks)

    def for_training(
        self, *, keep_empty: bool = False, min_side: int = MIN_TRAIN_SIDE
    ) -> "DetectionDataset":
        """The images that the published detectors were trained on.

        Args:
            keep_empty: Whether images without objects stay, crowds not counted. They teach what is
                background; officially they are dropped.
            min_side: Shorter side in pixels that an image must have; officially 32.

        Raises:
            ValueError: None are left.
        """
        annotations = self.annotations
        is_large = annotations.sizes.min(axis=1) >= min_side
        has_objects = _has_objects(annotations)
        is_kept = is_large & (has_objects | keep_empty)
        if not is_kept.any():
            raise ValueError(
                f"none of the {len(self):,} images can be trained on: {int((~is_large).sum()):,} "
                f"are smaller than {min_side} pixels, {int((~has_objects).sum()):,} have no "
                f"objects ({annotations.description})"
            )
        return self.subset(np.flatnonzero(is_kept))


def load_annotated(annotations: DetectionAnnotations, index: int) -> Image.Image:
    """The picture that the annotations were made on.

    That is the upright one, as viewers show it, where its size is the one that the annotations are
    for. Some tools know nothing of the EXIF orientation: where rows and columns are swapped, it is
    the picture as stored.

    Args:
        annotations: Of the images.
        index: Of the image.

    Raises:
        UnreadableImageError: If it cannot be decoded, or has another size.
    """
    return load_sized(annotations.path(index), annotations.size(index), "its annotations are for")


def _has_objects(annotations: DetectionAnnotations) -> NDArray[np.bool_]:
    """Per image, whether there is anything to learn from: no crowd, and with area inside of it."""
    counts = annotations.num_objects
    image = np.repeat(np.arange(len(counts)), counts)
    boxes = annotations.boxes_xywh
    first, last = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    limits = annotations.sizes[image, ::-1]
    has_area = (last.clip(0, limits) > first.clip(0, limits)).all(axis=1)
    usable = np.bincount(image[has_area & ~annotations.crowd], minlength=len(counts))
    has_objects: NDArray[np.bool_] = usable > 0
    return has_objects
