"""The flat arrays that annotations are held in, and the objects of one image.

Shape legend: N objects of an image, M objects of all images, I images.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wavevit.data.detection.segment_table import SegmentTable
from wavevit.data.image_files import PathTable
from wavevit.data.shared_array import SharedArray


@dataclass(frozen=True)
class Objects:
    """The objects of an image."""

    boxes: NDArray[np.float64]
    """(N, 4) x1, y1, x2, y2 in pixels, inside the image, x1 < x2 and y1 < y2."""
    labels: NDArray[np.int64]
    """(N,) index into the class names."""
    crowd: NDArray[np.bool_]
    """(N,) True for what is neither to be learned nor to be counted as missed: COCO's regions of
    many objects, VOC's difficult ones."""
    areas: NDArray[np.float64]
    """(N,) pixels that the object covers, as the file says; else of its outline; else of its box.
    """
    annotation_ids: NDArray[np.int64]
    """(N,) the file's own id; where files have none, numbers from 1 on."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ObjectTable:
    """The objects of all images, those of an image one after the other."""

    boxes_xywh: SharedArray[np.float64]
    """(M * 4,) left, top, width, height in pixels as the file has them, also where they stick out
    of the image a little; a COCO file's numbers to the last bit."""
    labels: SharedArray[np.int64]
    """(M,) index into the class names."""
    crowd: SharedArray[np.bool_]
    """(M,) as in `Objects`."""
    areas: SharedArray[np.float64]
    """(M,) as in `Objects`."""
    annotation_ids: SharedArray[np.int64]
    """(M,) as in `Objects`."""
    segments: SegmentTable | None
    """Of M objects; None where the file has none, or they were not asked for."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageTable:
    """The images."""

    root: Path
    """Folder that the paths are relative to."""
    paths: PathTable
    """I posix paths, relative to `root` or absolute; they are the sample ids."""
    ids: SharedArray[np.int64]
    """(I,) the file's own id; where files have none, numbers from 1 on."""
    sizes: SharedArray[np.int64]
    """(I * 2,) height, width that the annotations are for: those of the upright picture, or of the
    stored pixels."""
    instance_maps: PathTable | None = None
    """I paths of PNG files whose pixels are object numbers, as VOC has them; "" for none."""
