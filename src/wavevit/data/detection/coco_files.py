"""Reading COCO's annotation files: boxes, polygons, both kinds of run-length codes, crowd.

A box is [left, top, width, height] in pixels on the continuous plane. Ids of images, annotations
and categories are whole numbers of any order, with holes; 7.0 is one, too, as pandas writes it.
Format:
https://cocodataset.org/#format-data

Shape legend: K classes.
"""

import json
import math
import posixpath
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wavevit.data.class_table import ClassTable
from wavevit.data.detection.annotation_builder import AnnotationBuilder, Reading, rings_with_area
from wavevit.data.detection.object_masks import check_code, encode_counts
from wavevit.data.detection.problems import DetectionProblem
from wavevit.data.image_listing import FileListing, relative_path

# Fields of each list's entries that are whole numbers.
_LISTS = {
    "images": ("id", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "iscrowd"),
    "categories": ("id",),
}
_MAX_ID = 2**63 - 1
_NAMES_TRIED = 64
_MOST_SHOWN = 40  # characters of a wrong value


@dataclass(frozen=True)
class CocoSplit:
    """A split of a COCO data set."""

    root: Path
    """Folder that sample ids are relative to."""
    json_path: Path
    """Annotation file."""
    images: Path
    """Folder that the file names in it are relative to."""


@dataclass
class _Reader:
    """What is known while a file is read."""

    split: CocoSplit
    file: str
    problems: list[DetectionProblem] = field(default_factory=list)
    image_index: dict[int, int] = field(default_factory=dict)
    """Index of each sound image by its id."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Height and width by index."""
    wrong_images: set[int] = field(default_factory=set)
    """Ids of listed images that cannot be used."""

    def tell(self, kind: str, place: str, detail: str) -> None:
        self.problems.append(DetectionProblem(kind, self.file, place, detail))


def read_coco(
    split: CocoSplit,
    *,
    class_names: Sequence[str] | None = None,
    with_masks: bool = True,
    clip: bool = False,
) -> Reading:
    """The annotations of a COCO file, and all that is wrong with it.

    Args:
        split: Where it and its images are.
        class_names: The classes of a trained model, to label by name; None takes those of the file
            in the order of their ids.
        with_masks: Whether outlines are kept; they are checked in any case.
        clip: As in `AnnotationBuilder`.

    Returns:
        Annotations of what is sound, and problems.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read.
    """
    if not split.json_path.is_file():
        raise FileNotFoundError(f"no such annotation file: {str(split.json_path)!r}")
    reader = _Reader(split, relative_path(split.json_path, split.root))
    content = _load(reader)
    if content is None:
        return Reading(None, reader.problems)
    entries = [entry for entry in content["annotations"] if type(entry) is dict]
    used = {entry["category_id"] for entry in entries if _is_id(entry.get("category_id"))}
    classes = _read_categories(reader, content["categories"], used, class_names)

    def where(image: int, place: int) -> tuple[str, str]:
        return reader.file, f"annotation {place}"

    builder = AnnotationBuilder(split.root, where, reader.problems, clip=clip)
    _read_images(reader, content["images"], builder)
    _read_annotations(reader, content["annotations"], classes, builder)
    description = f"COCO file {split.json_path}"
    annotations = builder.build(
        classes.names, classes.category_ids, description, with_masks=with_masks
    )
    return Reading(annotations, reader.problems)


def _load(reader: _Reader) -> dict[str, Any] | None:
    """The content with its three lists; None if it is no such file."""
    data = reader.split.json_path.read_bytes()
    if not data.strip():
        reader.tell("annotation_file", "", f"the file is empty ({len(data)} bytes)")
        return None
    try:
        content = json.loads(data)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        reader.tell("annotation_file", place, f"no valid JSON ({error.msg}); is it complete?")
        return None
    except (UnicodeDecodeError, RecursionError) as error:
        reader.tell("annotation_file", "", f"no valid JSON ({type(error).__name__})")
        return None
    if isinstance(content, list) and _is_result(content[:1]):
        reader.tell("annotation_file", "", "a list of results; expected a file of annotations")
        return None
    missing = [
        name for name in _LISTS if type(content) is not dict or type(content.get(name)) is not list
    ]
    if missing:
        names = " and ".join(repr(name) for name in missing)
        reader.tell("annotation_file", "", f"expected a COCO file; no list {names} in it")
        return None
    for name in ("images", "categories"):
        if not content[name]:
            reader.tell("annotation_file", "", f"the list {name!r} is empty")
            return None
        _make_whole(content[name], _LISTS[name])
    _make_whole(content["annotations"], _LISTS["annotations"])
    return content


def _is_result(entries: list[Any]) -> bool:
    return any(type(entry) is dict and "score" in entry for entry in entries)


def _make_whole(entries: list[Any], fields: Sequence[str]) -> None:
    """Replaces floats without a fraction by whole numbers."""
    for entry in entries:
        if type(entry) is dict:
            for name in fields:
                value = entry.get(name)
                if type(value) is float and value.is_integer():
                    entry[name] = int(value)


def _read_categories(
    reader: _Reader,
    entries: list[Any],
    used: set[int],
    class_names: Sequence[str] | None,
) -> ClassTable:
    name_of: dict[int, str] = {}
    for number, entry in enumerate(entries):
        place = f"categories[{number}]"
        if type(entry) is not dict or type(entry.get("name")) is not str:
            reader.tell("entry", place, "a category without a text 'name'")
        elif not _is_id(entry.get("id")):
            reader.tell("entry", place, f"expected a whole number 'id', got {entry.get('id')!r}")
        elif entry["id"] in name_of:
            reader.tell("duplicate_id", place, f"the category id {entry['id']} is there already")
        else:
            name_of[entry["id"]] = entry["name"]
    _check_names(reader, name_of, used)
    return ClassTable.of(name_of, class_names)


def _check_names(reader: _Reader, name_of: dict[int, str], used: set[int]) -> None:
    """Tells names that several categories have, and removes those without annotations."""
    ids_of: dict[str, list[int]] = {}
    # Those with annotations first: one of them keeps the name.
    for category_id in sorted(name_of, key=lambda i: (i not in used, i)):
        ids_of.setdefault(name_of[category_id], []).append(category_id)
    for name, (first, *others) in ids_of.items():
        for category_id in others:
            is_used = category_id in used
            # Some tools write the name of the whole project as one more category.
            kind = "duplicate_id" if is_used else "unused_category"
            detail = f"the name {name!r} is that of category {first} too"
            reader.tell(kind, f"category {category_id}", detail)
            if not is_used:
                del name_of[category_id]


def _read_images(reader: _Reader, entries: list[Any], builder: AnnotationBuilder) -> None:
    files = FileListing()
    base = _base_folder(reader.split, entries, files)
    prefix = relative_path(base, reader.split.root)
    seen: set[str] = set()
    missing: list[tuple[int, str]] = []
    for number, entry in enumerate(entries):
        fault = _image_fault(entry)
        if fault is not None:
            reader.tell("entry", f"images[{number}]", fault)
            if type(entry) is dict and _is_id(entry.get("id")):
                reader.wrong_images.add(entry["id"])
            continue
        image_id, name = entry["id"], entry["file_name"]
        if image_id in reader.image_index or image_id in reader.wrong_images:
            reader.tell("duplicate_id", f"image {image_id}", f"the id is there already ({name!r})")
            continue
        path = posixpath.normpath(posixpath.join(prefix, name))
        if "\\" in name and not files.has(base / name):
            path = posixpath.normpath(posixpath.join(prefix, name.replace("\\", "/")))
        if path in seen:
            reader.tell("duplicate_id", f"image {image_id}", f"{path!r} is listed already")
            reader.wrong_images.add(image_id)
        elif not files.has(reader.split.root / path):
            missing.append((image_id, path))
            reader.wrong_images.add(image_id)
        else:
            seen.add(path)
            size = entry["height"], entry["width"]
            reader.image_index[image_id] = builder.add_image(path, image_id, size)
            reader.sizes.append(size)
    if missing and not reader.image_index and len(missing) > 1:
        detail = f"none of the {len(missing):,} images is there, such as {missing[0][1]!r}"
        reader.tell("missing_image", f"image {missing[0][0]}", detail)
        return
    for image_id, path in missing:
        reader.tell("missing_image", f"image {image_id}", f"no such file: {path!r}")


def _base_folder(split: CocoSplit, entries: list[Any], files: FileListing) -> Path:
    """The folder that most file names are relative to."""
    picked = np.linspace(0, len(entries) - 1, min(len(entries), _NAMES_TRIED)).astype(int)
    names = [
        entries[i]["file_name"].replace("\\", "/")
        for i in picked.tolist()
        if _image_fault(entries[i]) is None
    ]
    candidates = [split.images, split.root, split.json_path.parent]
    found = [sum(files.has(folder / name) for name in names) for folder in candidates]
    return candidates[found.index(max(found))]


def _image_fault(entry: Any) -> str | None:
    if type(entry) is not dict:
        return "an image that is no JSON object"
    if not _is_id(entry.get("id")):
        return f"an image whose 'id' is no whole number: {entry.get('id')!r}"
    name = entry.get("file_name")
    if type(name) is not str or not name or "\0" in name:
        return f"the image {entry['id']} has no 'file_name'"
    for side in ("height", "width"):
        if type(entry.get(side)) is not int or not 0 < entry[side] < 2**31:
            got = entry.get(side)
            return f"the image {entry['id']} needs a whole number {side!r} above 0, got {got!r}"
    return None


def _read_annotations(
    reader: _Reader, entries: list[Any], classes: ClassTable, builder: AnnotationBuilder
) -> None:
    seen: set[int] = set()
    for number, entry in enumerate(entries):
        fault = _annotation_fault(entry)
        if fault is not None:
            named = type(entry) is dict and _is_id(entry.get("id"))
            place = f"annotation {entry['id']}" if named else f"annotations[{number}]"
            reader.tell("entry", place, fault)
            continue
        annotation_id = entry["id"]
        place = f"annotation {annotation_id}"
        if annotation_id in seen:
            reader.tell("duplicate_id", place, "the id is there already")
            continue
        seen.add(annotation_id)
        label = classes.label_of_id.get(entry["category_id"])
        if label is None:
            is_named = entry["category_id"] in classes.name_of_id
            kind = "other_class" if is_named else "unknown_category"
            reader.tell(kind, place, classes.unknown(entry["category_id"]))
            continue
        image = reader.image_index.get(entry["image_id"])
        if image is None:
            if entry["image_id"] not in reader.wrong_images:  # told already
                reader.tell("unknown_image", place, f"no image has the id {entry['image_id']}")
            continue
        try:
            segment = _read_segmentation(reader, entry, place, reader.sizes[image])
            builder.add_object(
                image,
                annotation_id,
                entry["bbox"],
                label,
                annotation_id,
                crowd=bool(entry.get("iscrowd")),
                area=_area(entry),
                segment=segment,
            )
        except (TypeError, OverflowError):
            reader.tell("entry", place, _no_number(entry))
        except ValueError as error:
            reader.tell("mask", place, str(error))


def _annotation_fault(entry: Any) -> str | None:
    if type(entry) is not dict:
        return "an annotation that is no JSON object"
    for key in ("id", "image_id", "category_id"):
        if not _is_id(entry.get(key)):
            return f"expected a whole number {key!r}, got {entry.get(key)!r}"
    box = entry.get("bbox")
    if type(box) is not list or len(box) != 4:
        return f"expected 'bbox': [left, top, width, height], got {str(box)[:80]}"
    crowd = entry.get("iscrowd", 0)
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        return f"expected 'iscrowd' to be 0 or 1, got {_short(crowd)}"
    return None


def _read_segmentation(
    reader: _Reader, entry: dict[str, Any], place: str, size: tuple[int, int]
) -> bytes | list[Sequence[float]] | None:
    """The outline of an annotation, checked but for places and finiteness of its points."""
    segmentation = entry.get("segmentation")
    if not segmentation:
        return None
    if type(segmentation) is list:
        if not all(type(ring) is list for ring in segmentation):
            raise ValueError("expected 'segmentation' to be a list of lists of coordinates")
        rings, num_small = rings_with_area(segmentation)
        if not rings:
            raise ValueError("an outline without three points")
        if num_small:
            reader.tell("mask_part", place, f"{num_small} of {len(segmentation)} parts")
        return rings
    if type(segmentation) is not dict:
        raise ValueError(f"expected polygons or run lengths, got {type(segmentation).__name__}")
    if segmentation.get("size") != list(size):
        got = segmentation.get("size")
        raise ValueError(f"run lengths for [height, width] {got}, the image is {list(size)}")
    counts = segmentation.get("counts")
    if type(counts) is list:
        return encode_counts(counts, *size)
    if type(counts) is not str or not counts.isascii():
        raise ValueError("run lengths without 'counts', a list or a text")
    check_code(counts.encode("ascii"), *size)
    return counts.encode("ascii")


def _no_number(entry: dict[str, Any]) -> str:
    """Which of an annotation's fields has something else than numbers, and what."""
    outline = entry.get("segmentation")
    rings = outline if type(outline) is list else []  # codes have been checked
    values = {"bbox": entry["bbox"], "segmentation": [value for ring in rings for value in ring]}
    for name, numbers in values.items():
        for value in numbers:
            try:
                array("d", [value])
            except (TypeError, OverflowError):
                return f"expected numbers in {name!r}, got {_short(value)}"
    return f"expected 'area' to be a number of at least 0, got {_short(entry.get('area'))}"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _area(entry: dict[str, Any]) -> float:
    area = entry.get("area")
    if area is None:
        return float("nan")
    if type(area) not in (int, float):
        raise TypeError("an area that is no number")
    if not math.isfinite(area) or area < 0:
        raise OverflowError(f"an area of {area}")
    return float(area)


def _is_id(value: Any) -> bool:
    return type(value) is int and -_MAX_ID <= value <= _MAX_ID
