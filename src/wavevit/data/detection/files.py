"""Annotated images from files of any layout: as a whole and without faults, or what is sound.

Shape legend: I images.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wavevit.data.detection.annotation_builder import Reading
from wavevit.data.detection.annotations import DetectionAnnotations
from wavevit.data.detection.coco_files import CocoSplit, read_coco
from wavevit.data.detection.layouts import DetectionFormat, DetectionLayout, find_detection_layout
from wavevit.data.detection.problems import DetectionProblem, refuse_errors
from wavevit.data.detection.voc_files import VocSplit, read_voc
from wavevit.data.detection.yolo_files import YoloSplit, read_yolo
from wavevit.data.image_header import ImageHeader, read_headers
from wavevit.data.images import UnreadableImageError

# Enough to find annotations that are for pictures of other sizes; a second or so of work.
_SIZES_COMPARED = 256


def read_detection(
    data: str | Path | DetectionLayout,
    split: str = "train",
    *,
    format: DetectionFormat | None = None,
    class_names: Sequence[str] | None = None,
    with_masks: bool = True,
    clip: bool = False,
) -> DetectionAnnotations:
    """The annotations of a split, all of them sound.

    The sizes of up to 256 images are compared with what the annotations say; those of all others
    are to be when they are loaded. Annotations may also be for the pixels as they are stored, where
    the EXIF orientation turns an image.

    Args:
        data: Folder or file, as in `find_detection_layout`, or its layout.
        split: Name of the split: "train", "val", or another that the layout has.
        format: As in `find_detection_layout`.
        class_names: The classes of a trained model, or of the training split, to label by name;
            None takes those of the split.
        with_masks: Whether outlines are kept, which take most of the memory.
        clip: Whether boxes and outlines that stick out of the image are clipped to it; otherwise
            they are errors, but for two pixels or a thousandth of the image's side.

    Returns:
        The annotations.

    Raises:
        FileNotFoundError: If nothing is at `data`.
        ValueError: If it is no such data set, has no such split or no objects in it, or anything is
            wrong with it: the message has the first error and how many there are.
        OSError: If a file cannot be read.
    """
    layout = data if isinstance(data, DetectionLayout) else find_detection_layout(data, format)
    reading = read_split(layout, split, class_names=class_names, with_masks=with_masks, clip=clip)
    annotations = reading.annotations
    if annotations is not None and not isinstance(layout.split(split), YoloSplit):
        picked = np.unique(np.linspace(0, len(annotations) - 1, _SIZES_COMPARED).astype(int))
        reading.problems.extend(wrong_sizes(annotations, picked if len(annotations) else []))
    refuse_errors(reading.problems, str(layout.root))
    assert annotations is not None  # the reason would have been an error
    if annotations.num_objects.sum() == 0:
        raise ValueError(f"no objects in the split {split!r} ({annotations.description})")
    return annotations


def read_split(
    layout: DetectionLayout,
    split: str,
    *,
    class_names: Sequence[str] | None = None,
    with_masks: bool = True,
    clip: bool = False,
) -> Reading:
    """What is sound in a split, and all that is wrong; pictures are not decoded.

    Args:
        layout: Of the data set.
        split: Name of the split.
        class_names: As in `read_detection`.
        with_masks: As in `read_detection`.
        clip: As in `read_detection`.

    Returns:
        Annotations and problems.

    Raises:
        ValueError: If there is no such split.
        OSError: If a file cannot be read.
    """
    source = layout.split(split)
    if isinstance(source, CocoSplit):
        return read_coco(source, class_names=class_names, with_masks=with_masks, clip=clip)
    if isinstance(source, YoloSplit):
        return read_yolo(source, class_names=class_names, with_masks=with_masks, clip=clip)
    assert isinstance(source, VocSplit)
    return read_voc(source, class_names=class_names, with_masks=with_masks, clip=clip)


def wrong_sizes(
    annotations: DetectionAnnotations, indices: Sequence[int] | NDArray[np.int64]
) -> Iterator[DetectionProblem]:
    """Images that are of another size than their annotations say, by their headers.

    Args:
        annotations: The annotations.
        indices: Of images.

    Yields:
        A problem per image that is wrong, unreadable, or turned by its EXIF orientation after it
        was annotated; the last is a warning.
    """
    paths = (annotations.path(int(index)) for index in indices)
    for index, header in zip(indices, read_headers(paths), strict=True):
        problem = size_problem(annotations, int(index), header)
        if problem is not None:
            yield problem


def size_problem(
    annotations: DetectionAnnotations, index: int, header: ImageHeader | UnreadableImageError
) -> DetectionProblem | None:
    """What is wrong with the size of an image, if anything.

    Args:
        annotations: The annotations.
        index: Of the image.
        header: Of its file.
    """
    name, (height, width) = annotations.sample_id(index), annotations.size(index)
    if isinstance(header, UnreadableImageError):
        return DetectionProblem("unreadable_image", name, "", header.reason)
    if header.size == (height, width):
        return None
    detail = (
        f"{header.size[1]} x {header.size[0]} pixels, its annotations are for {width} x {height}"
    )
    if header.is_sideways and header.size == (width, height):
        return DetectionProblem("turned", name, "", detail)
    return DetectionProblem("image_size", name, "", detail)
