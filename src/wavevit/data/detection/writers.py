"""Writing annotated images as COCO, YOLO or Pascal VOC files; the images themselves are not ours.

Legend: N objects, H rows, W columns, K classes.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from xml.sax.saxutils import escape

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from wavevit.data.detection.annotations import DetectionAnnotations
from wavevit.data.detection.mask_outlines import joined_rings, mask_outline
from wavevit.data.detection.object_masks import decode_masks
from wavevit.data.detection.segment_table import Polygons
from wavevit.data.detection.voc_files import (
    ANNOTATIONS,
    CLASS_LIST,
    IMAGES,
    MASKS,
    MAX_OBJECTS_WITH_MASKS,
)
from wavevit.data.detection.yolo_files import label_path

_ROUNDING_PIXELS = 1e-6
_SAME_BOX_PIXELS = 1.0
_YAML_SPLITS = ("train", "val", "test")


class DetectionWriter(Protocol):
    """Writes the annotations of one format into a folder."""

    losses: Counter[str]
    """What could not be written as it was, and how many of it."""

    def image_path(self, split: str, name: str) -> Path:
        """Where the image of that name is to be put.

        Args:
            split: Name of the split.
            name: Of the image: a posix path that no other image has.
        """
        ...

    def add(self, split: str, part: DetectionAnnotations, index: int, name: str) -> None:
        """Takes the annotations of the next image.

        Args:
            split: Name of its split.
            part: Annotations of the split.
            index: Of the image.
            name: Of the image.
        """
        ...

    def finish(self, parts: dict[str, DetectionAnnotations]) -> None:
        """Writes what goes with all images.

        Args:
            parts: All splits.
        """
        ...


class CocoWriter:
    """COCO: annotations/instances_<split>.json and images/<split>.

    Args:
        folder: To write to.
        with_masks: Whether outlines are written.
        keep_ids: Whether ids of categories are those of the source, else 1 to K.
    """

    def __init__(self, folder: Path, *, with_masks: bool, keep_ids: bool) -> None:
        self.losses: Counter[str] = Counter()
        self._folder = folder
        self._with_masks = with_masks
        self._keep_ids = keep_ids
        self._names: dict[str, list[str]] = {}

    def image_path(self, split: str, name: str) -> Path:
        """As in `DetectionWriter`.

        Args:
            split: Name of the split.
            name: Of the image.
        """
        return self._folder / "images" / split / name

    def add(self, split: str, part: DetectionAnnotations, index: int, name: str) -> None:
        """As in `DetectionWriter`.

        Args:
            split: Name of the split.
            part: Annotations of the split.
            index: Of the image.
            name: Of the image.
        """
        self._names.setdefault(split, []).append(name)

    def finish(self, parts: dict[str, DetectionAnnotations]) -> None:
        """As in `DetectionWriter`.

        Args:
            parts: All splits.
        """
        (self._folder / "annotations").mkdir()
        for split, part in parts.items():
            content = {"info": {}, "licenses": [], **part.to_coco(with_masks=self._with_masks)}
            for image, name in zip(content["images"], self._names.get(split, []), strict=True):
                image["file_name"] = name
            if not self._keep_ids:
                label_of = {int(old): label for label, old in enumerate(part.category_ids)}
                for category in content["categories"]:
                    category["id"] = label_of[category["id"]] + 1
                for annotation in content["annotations"]:
                    annotation["category_id"] = label_of[annotation["category_id"]] + 1
            path = self._folder / "annotations" / f"instances_{split}.json"
            with open(path, "w", encoding="ascii") as file:
                json.dump(content, file)


class YoloWriter:
    """YOLO: images/<split>, labels/<split> and data.yaml.

    Args:
        folder: To write to.
        with_masks: Whether objects with outlines are written as outlines.
    """

    def __init__(self, folder: Path, *, with_masks: bool) -> None:
        self.losses: Counter[str] = Counter()
        self._folder = folder
        self._with_masks = with_masks

    def image_path(self, split: str, name: str) -> Path:
        """As in `DetectionWriter`.

        Args:
            split: Name of the split.
            name: Of the image.
        """
        return self._folder / "images" / split / name

    def add(self, split: str, part: DetectionAnnotations, index: int, name: str) -> None:
        """As in `DetectionWriter`.

        Args:
            split: Name of the split.
            part: Annotations of the split.
            index: Of the image.
            name: Of the image.
        """
        objects = part.objects(index)
        height, width = part.size(index)
        scale = np.array([width, height], np.float64)
        segments = part.segments(index) if self._with_masks else [None] * len(objects)
        centres = (objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2 / scale
        sizes = (objects.boxes[:, 2:] - objects.boxes[:, :2]) / scale
        lines = []
        for row, segment in enumerate(segments):
            if objects.crowd[row]:
                self.losses["crowd or difficult objects: left out"] += 1
                continue
            values = np.concatenate([centres[row], sizes[row]])
            ring = None if segment is None else self._ring(segment, part.size(index))
            if ring is not None:
                ring = ring.clip(0, scale)
                around = np.concatenate([ring.min(0), ring.max(0)])
                is_other = bool((np.abs(around - objects.boxes[row]) > _SAME_BOX_PIXELS).any())
                self.losses["boxes that differ from their outline: become those around it"] += (
                    is_other
                )
                values = (ring / scale).ravel()
            numbers = " ".join(f"{value:.9g}" for value in values.tolist())
            lines.append(f"{objects.labels[row]} {numbers}\n")
        path = Path(label_path(os.fspath(self.image_path(split, name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")

    def finish(self, parts: dict[str, DetectionAnnotations]) -> None:
        """As in `DetectionWriter`.

        Args:
            parts: All splits.
        """
        content: dict[str, object] = {split: f"images/{split}" for split in parts}
        names = next(iter(parts.values())).class_names
        content["names"] = dict(enumerate(names))
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (self._folder / "data.yaml").write_text(text, encoding="utf-8")
        for split in parts:
            if split not in _YAML_SPLITS:
                self.losses[f"the split {split!r}: it has no place in data.yaml"] = 1

    def _ring(self, segment: Polygons | bytes, size: tuple[int, int]) -> NDArray[np.float64] | None:
        if isinstance(segment, bytes):
            segment = mask_outline(decode_masks([segment], *size)[0])
            if not segment:
                self.losses["masks without a pixel: written as boxes"] += 1
                return None
            self.losses["run lengths: written as outlines along pixel edges"] += 1
        if len(segment) > 1:
            self.losses["outlines of several parts: joined by bridges to one"] += 1
        return joined_rings(segment)


class VocWriter:
    """Pascal VOC: JPEGImages, Annotations, ImageSets/Main and classes.txt; SegmentationObject.

    Args:
        folder: To write to.
        with_masks: Whether pictures of object numbers are written, for images whose objects all
            have masks.
    """

    def __init__(self, folder: Path, *, with_masks: bool) -> None:
        self.losses: Counter[str] = Counter()
        self._folder = folder
        self._with_masks = with_masks
        self._stems: dict[str, list[str]] = {}
        for name in (ANNOTATIONS, "ImageSets/Main"):
            (folder / name).mkdir(parents=True)

    def image_path(self, split: str, name: str) -> Path:
        """As in `DetectionWriter`.

        Args:
            split: Name of the split.
            name: Of the image.
        """
        return self._folder / IMAGES / name

    def add(self, split: str, part: DetectionAnnotations, index: int, name: str) -> None:
        """As in `DetectionWriter`.

        Args:
            split: Name of the split.
            part: Annotations of the split.
            index: Of the image.
            name: Of the image.
        """
        objects = part.objects(index)
        stem = Path(name).stem
        self._stems.setdefault(split, []).append(stem)
        has_masks = self._with_masks and self._write_masks(part, index, stem)
        elements = [
            _voc_object(part.class_names[label], box, is_crowd)
            for label, box, is_crowd in zip(
                objects.labels.tolist(),
                objects.boxes.tolist(),
                objects.crowd.tolist(),
                strict=True,
            )
        ]
        height, width = part.size(index)
        text = (
            f"<annotation>\n  <folder>{IMAGES}</folder>\n"
            f"  <filename>{_xml_text(name)}</filename>\n"
            f"  <size>\n    <width>{width}</width>\n    <height>{height}</height>\n"
            f"    <depth>3</depth>\n  </size>\n  <segmented>{int(has_masks)}</segmented>\n"
            f"{''.join(elements)}</annotation>\n"
        )
        path = self._folder / ANNOTATIONS / f"{stem}.xml"
        path.write_text(text, encoding="utf-8", errors="surrogateescape")

    def finish(self, parts: dict[str, DetectionAnnotations]) -> None:
        """As in `DetectionWriter`.

        Args:
            parts: All splits.
        """
        for split in parts:
            text = "".join(f"{stem}\n" for stem in self._stems.get(split, []))
            path = self._folder / "ImageSets" / "Main" / f"{split}.txt"
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
        names = next(iter(parts.values())).class_names
        text = "".join(f"{name}\n" for name in names)
        (self._folder / CLASS_LIST).write_text(text, encoding="utf-8")

    def _write_masks(self, part: DetectionAnnotations, index: int, stem: str) -> bool:
        """Writes the picture of object numbers, if there can be one."""
        segments = part.segments(index)
        if not segments or None in segments:
            self.losses["masks of images where not every object has one: left out"] += sum(
                segment is not None for segment in segments
            )
            return False
        if len(segments) > MAX_OBJECTS_WITH_MASKS:
            why = f"masks of images with more than {MAX_OBJECTS_WITH_MASKS} objects: left out"
            self.losses[why] += len(segments)
            return False
        masks = part.masks(index)
        areas = masks.sum((1, 2), dtype=np.int64)
        numbers = np.zeros(part.size(index), np.uint8)
        # Smaller ones last: they are the ones in front more often than not.
        for row in np.argsort(-areas, kind="stable").tolist():
            numbers[masks[row] > 0] = row + 1
        visible = np.bincount(numbers.ravel(), minlength=len(masks) + 1)[1:]
        hidden = int((visible < areas).sum())
        self.losses["masks that lose the pixels where a smaller one lies over them"] += hidden
        picture = Image.fromarray(numbers)
        picture.putpalette(_voc_palette())
        path = self._folder / MASKS / f"{stem}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
        return True


def _voc_object(name: str, box_xyxy: Sequence[float], is_crowd: bool) -> str:
    x1, y1, x2, y2 = box_xyxy
    corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}  # see `voc_files`
    lines = "".join(f"      <{key}>{_plain(value)}</{key}>\n" for key, value in corners.items())
    return (
        f"  <object>\n    <name>{_xml_text(name)}</name>\n    <pose>Unspecified</pose>\n"
        f"    <truncated>0</truncated>\n    <difficult>{int(is_crowd)}</difficult>\n"
        f"    <bndbox>\n{lines}    </bndbox>\n  </object>\n"
    )


def _plain(value: float) -> str:
    """Whole numbers without a point, as VOC's own tools need them; else four decimals."""
    if abs(value - round(value)) < _ROUNDING_PIXELS:
        return str(round(value))
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _xml_text(text: str) -> str:
    # Control characters are not allowed in XML at all.
    return escape("".join(c if c.isprintable() else "_" for c in text))


def _voc_palette() -> list[int]:
    """VOC's colours: the bits of a number, in turn red, green, blue, from the highest on."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.ravel().tolist()
