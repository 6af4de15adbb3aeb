"""The built-in generated set for detection: up to seven objects an image, with boxes and masks.

Shape legend: N objects, K classes.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch

from wavevit.data.detection.object_masks import encode_mask
from wavevit.data.detection.sample import DetectionSample, MaskView
from wavevit.data.shapes import CLASS_NAMES, NUM_IMAGES, ShapesScene, render_scene

MAX_OBJECTS = 7

# Added to the scene index of validation images: no data set is long enough to reach it.
_VAL_OFFSET = 2**40


class DetectionShapes:
    """Images with 0 to 7 objects, rendered when asked for.

    The same index is the same image on every machine; train and val share none. Objects may cover
    each other in part; a box is tight around what is visible of one. At another `image_size` the
    same scenes are drawn larger.

    Args:
        split: "train" or "val".
        num_images: Number of images; None (the default) is 4,000 for train, 500 for val.
        image_size: Side of the square images in pixels, at least 32.
        seed: Another seed is another data set.
        with_masks: Whether samples have masks.

    Raises:
        ValueError: No such split, or a number out of range.
    """

    def __init__(
        self,
        split: Literal["train", "val"],
        *,
        num_images: int | None = None,
        image_size: int = 128,
        seed: int = 0,
        with_masks: bool = False,
    ) -> None:
        if split not in NUM_IMAGES:
            raise ValueError(f"expected split 'train' or 'val', got {split!r}")
        if num_images is None:
            num_images = NUM_IMAGES[split]
        if num_images < 1:
            raise ValueError(f"num_images is at least 1, got {num_images}")
        if image_size < 32 or seed < 0:
            raise ValueError(
                "expected an image_size of at least 32 pixels and a seed that is not negative, got "
                f"{image_size} and {seed}"
            )
        self.class_names = list(CLASS_NAMES)
        self.category_ids = list(range(1, len(CLASS_NAMES) + 1))
        self.split = split
        self.num_images = num_images
        self.image_size = image_size
        self.seed = seed
        self.with_masks = with_masks

    def __len__(self) -> int:
        return self.num_images

    def sample_id(self, index: int) -> str:
        """Name of an image, such as "shapes/train/000002"."""
        return f"shapes/{self.split}/{index:06d}"

    def sample_ids(self) -> Iterator[str]:
        """The names of all images in order."""
        return map(self.sample_id, range(len(self)))

    def image_id(self, index: int) -> int:
        """Its index plus one."""
        return index + 1

    def load(self, index: int) -> DetectionSample:
        """An image and its objects.

        Args:
            index: Of the image.

        Raises:
            IndexError: There are not as many.
        """
        scene = self.scene(index)
        return DetectionSample(
            image=torch.from_numpy(scene.image).permute(2, 0, 1),
            boxes=torch.from_numpy(scene.boxes_xyxy),
            labels=torch.from_numpy(scene.labels),
            masks=MaskView.of(scene.masks.astype(np.uint8)) if self.with_masks else None,
        )

    def scene(self, index: int) -> ShapesScene:
        """The scene that an image shows.

        Args:
            index: Of the image.

        Raises:
            IndexError: There are not as many.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} out of range for {len(self)} images")
        number = index + (_VAL_OFFSET if self.split == "val" else 0)
        # A stream of its own, so that the scene's draws are those of any scene of its number.
        sequence = np.random.SeedSequence(self.seed, spawn_key=(number, 1))
        draw = np.random.Generator(np.random.PCG64(sequence)).random()
        num_objects = int(draw * (MAX_OBJECTS + 1))
        return render_scene(self.seed, number, image_size=self.image_size, num_objects=num_objects)

    def to_coco(self) -> dict[str, Any]:
        """Content of a COCO file with all objects; every image is rendered for it."""
        side = self.image_size
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, name in enumerate(self.sample_ids()):
            image_id = self.image_id(index)
            images.append({"id": image_id, "file_name": name, "height": side, "width": side})
            scene = self.scene(index)
            for label, box, mask in zip(
                scene.labels.tolist(), scene.boxes_xyxy.tolist(), scene.masks, strict=True
            ):
                x1, y1, x2, y2 = box
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": self.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                }
                if self.with_masks:
                    counts = encode_mask(mask).decode("ascii")
                    annotation["segmentation"] = {"size": [side, side], "counts": counts}
                annotations.append(annotation)
        categories = [
            {"id": number, "name": name}
            for number, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}
