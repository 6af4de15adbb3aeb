"""The built-in generated set for segmentation: the scenes of detection, with a label per pixel."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from wavevit.data.detection.shapes import DetectionShapes
from wavevit.data.segmentation.palette import class_palette
from wavevit.data.segmentation.sample import SegmentationSample
from wavevit.data.shapes import CLASS_NAMES


class SegmentationShapes:
    """Images with 0 to 7 objects, rendered when asked for; label 0 is the background.

    They are the images of `DetectionShapes`, with the same names.

    Args:
        split: "train" or "val".
        num_images: Number of images; None (the default) is 4,000 for train, 500 for val.
        image_size: Side of the square images in pixels, at least 32.
        seed: Another seed is another data set.

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
    ) -> None:
        self.scenes = DetectionShapes(
            split, num_images=num_images, image_size=image_size, seed=seed
        )
        self.class_names = ["background", *CLASS_NAMES]
        self.palette = class_palette(self.class_names)
        self.image_size = image_size
        self.seed = seed
        self._indices = np.arange(len(self.scenes))

    def __len__(self) -> int:
        return len(self._indices)

    def sample_id(self, index: int) -> str:
        """Name of an image, such as "shapes/train/000002"."""
        return self.scenes.sample_id(self._scene_index(index))

    def sample_ids(self) -> Iterator[str]:
        """The names of all images in order."""
        return map(self.sample_id, range(len(self)))

    def load(self, index: int) -> SegmentationSample:
        """An image and its labels.

        Args:
            index: Of the image.

        Raises:
            IndexError: There are not as many.
        """
        scene = self.scenes.scene(self._scene_index(index))
        return SegmentationSample(
            image=torch.from_numpy(scene.image).permute(2, 0, 1),
            labels=torch.from_numpy(scene.label_map),
        )

    def subset(self, indices: NDArray[np.int64]) -> "SegmentationShapes":
        """The data set of the images at `indices`, in that order, with the same classes."""
        chosen = SegmentationShapes(
            self.scenes.split,
            num_images=self.scenes.num_images,
            image_size=self.image_size,
            seed=self.seed,
        )
        chosen._indices = self._indices[indices]
        return chosen

    def _scene_index(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} out of range for {len(self)} images")
        return int(self._indices[index])
