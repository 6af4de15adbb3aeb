"""Reading YOLO folders: a text file per image, with a line per object.

A line is ``class cx cy w h``, the box's centre and size as parts of the image's width and height,
or ``class x1 y1 x2 y2 x3 y3 ...``, the points of an outline likewise. The text file of
``images/train/a.jpg`` is ``labels/train/a.txt``; an image without one has no objects. Format:
https://docs.ultralytics.com/datasets/detect/ and .../segment/

Shape legend: H rows, W columns.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from wavevit.data.class_table import ClassTable
from wavevit.data.detection.annotation_builder import AnnotationBuilder, Reading
from wavevit.data.detection.problems import DetectionProblem
from wavevit.data.image_header import ImageHeader, read_headers
from wavevit.data.image_listing import FileListing, relative_path, text_lines
from wavevit.data.images import UnreadableImageError, is_image_name, walk_files

_BOX_FIELDS = 5
_MIN_OUTLINE_FIELDS = 7
_IMAGES, _LABELS = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"
# Parts of an image's side; more than this is no rounding, but another unit.
_MAX_PART = 1.5


@dataclass(frozen=True)
class YoloSplit:
    """A split of a YOLO data set."""

    root: Path
    """Folder that sample ids are relative to."""
    sources: tuple[Path, ...]
    """Folders of images, or text files that list images."""
    class_names: tuple[str, ...]
    """Name of every class number."""


def read_yolo(
    split: YoloSplit,
    *,
    class_names: Sequence[str] | None = None,
    with_masks: bool = True,
    clip: bool = False,
) -> Reading:
    """The annotations of a YOLO split, and all that is wrong with it.

    Sizes come from the headers of the images. The box of an outline is the one around its points.

    Args:
        split: Where the images are.
        class_names: The classes of a trained model, to label by name; None takes those of the data
            set in their order.
        with_masks: Whether outlines are kept; they are checked in any case.
        clip: As in `AnnotationBuilder`.

    Returns:
        Annotations of what is sound, and problems.

    Raises:
        OSError: If a folder or a file cannot be read.
        ValueError: If a list of images is no text.
    """
    problems: list[DetectionProblem] = []
    classes = ClassTable.of(dict(enumerate(split.class_names)), class_names)
    paths = list(_list_images(split, problems))
    label_paths = [label_path(path) for path in paths]
    files = FileListing()
    _check_label_files(split, paths, label_paths, files, problems)
    reader = _Reader(split, classes, problems, clip)
    for path, labels, header in zip(paths, label_paths, read_headers(paths), strict=True):
        reader.read(path, labels if files.has(labels) else None, header)
    description = f"YOLO labels of {', '.join(str(source) for source in split.sources)}"
    annotations = reader.builder.build(
        classes.names, classes.category_ids, description, with_masks=with_masks
    )
    return Reading(annotations, problems)


def label_path(image_path: str) -> str:
    """Where the labels of an image are: beside it, but for the last "images" in its path.

    Args:
        image_path: Of the image.
    """
    before, found, after = image_path.rpartition(_IMAGES)
    path = f"{before}{_LABELS}{after}" if found else image_path
    return os.path.splitext(path)[0] + ".txt"


def _list_images(split: YoloSplit, problems: list[DetectionProblem]) -> Iterator[str]:
    seen: set[str] = set()
    for path in chain.from_iterable(_images_of(source, split.root) for source in split.sources):
        if path in seen:
            name = relative_path(Path(path), split.root)
            problems.append(DetectionProblem("duplicate_id", name, "", "it is listed already"))
            continue
        seen.add(path)
        yield path
    if not seen:
        names = ", ".join(relative_path(source, split.root) for source in split.sources)
        problems.append(DetectionProblem("annotation_file", names, "", "no images in it"))


def _images_of(source: Path, root: Path) -> Iterator[str]:
    if source.is_dir():
        yield from filter(is_image_name, walk_files(os.fspath(source)))
        return
    for name in text_lines(source):
        # "./" stands for the folder of the list, other paths are relative to the root.
        base = source.parent if name.startswith("./") else root
        yield os.path.normpath(base / name)


def _check_label_files(
    split: YoloSplit,
    paths: Sequence[str],
    label_paths: Sequence[str],
    files: FileListing,
    problems: list[DetectionProblem],
) -> None:
    """Tells label files without an image, and images that share one."""
    image_of: dict[str, str] = {}
    for path, labels in zip(paths, label_paths, strict=True):
        other = image_of.setdefault(labels, path)
        if other != path:
            name = relative_path(Path(path), split.root)
            detail = f"its labels are those of {os.path.basename(other)!r} too; rename one of them"
            problems.append(DetectionProblem("duplicate_id", name, "", detail))
    if paths and not any(map(files.has, image_of)):
        folder = relative_path(Path(label_paths[0]).parent, split.root)
        detail = f"no text file in it for any of the {len(paths):,} images"
        problems.append(DetectionProblem("annotation_file", folder, "", detail))
    for folder in sorted({os.path.dirname(labels) for labels in label_paths}):
        for name in sorted(files.names(folder)):
            path = os.path.join(folder, name)
            if name.endswith(".txt") and name != "classes.txt" and path not in image_of:
                shown = relative_path(Path(path), split.root)
                problems.append(DetectionProblem("unused_file", shown, "", "no image for it"))


class _Reader:
    """Reads images with their labels one after the other."""

    def __init__(
        self, split: YoloSplit, classes: ClassTable, problems: list[DetectionProblem], clip: bool
    ) -> None:
        self.builder = AnnotationBuilder(split.root, self._where, problems, clip=clip)
        self._root = split.root
        self._classes = classes
        self._problems = problems
        self._files: list[str] = []
        """The label file of each image that was added."""
        self._num_objects = 0

    def read(
        self, path: str, labels: str | None, header: ImageHeader | UnreadableImageError
    ) -> None:
        """Adds an image with its objects.

        Args:
            path: Of the image.
            labels: Path of its labels; None if there are none.
            header: Of the image, or why there is none.
        """
        name = relative_path(Path(path), self._root)
        if isinstance(header, UnreadableImageError):
            kind = "unreadable_image" if os.path.exists(path) else "missing_image"
            self._problems.append(DetectionProblem(kind, name, "", header.reason))
            return
        image = self.builder.add_image(name, len(self._files) + 1, header.size)
        self._files.append(relative_path(Path(labels or path), self._root))
        if labels is None:
            return
        try:
            text = Path(labels).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            detail = f"expected UTF-8 text, got byte 0x{error.object[error.start]:02x}"
            file = self._files[image]
            self._problems.append(DetectionProblem("annotation_file", file, "", detail))
            return
        for number, line in enumerate(text.splitlines(), start=1):
            if fields := line.split():
                self._add(image, number, fields, header.size)

    def _add(self, image: int, line: int, fields: list[str], size: tuple[int, int]) -> None:
        found = _read_line(fields, size, self._classes)
        if isinstance(found, tuple):
            kind, detail = found
            file, place = self._where(image, line)
            self._problems.append(DetectionProblem(kind, file, place, detail))
            return
        self._num_objects += 1
        segment = None if found.points is None else [found.points]
        self.builder.add_object(
            image, line, found.box_xywh, found.label, self._num_objects, segment=segment
        )

    def _where(self, image: int, place: int) -> tuple[str, str]:
        return self._files[image], f"line {place}"


@dataclass(frozen=True)
class _Object:
    box_xywh: list[float]
    label: int
    points: list[float] | None


def _read_line(
    fields: list[str], size: tuple[int, int], classes: ClassTable
) -> _Object | tuple[str, str]:
    """An object in pixels, or the kind of a problem and what to say of it."""
    try:
        class_number, *values = map(float, fields)
    except ValueError:
        return "entry", f"expected numbers, got {' '.join(fields)[:80]!r}"
    if not class_number.is_integer():
        return "entry", f"expected a whole class number first, got {fields[0]!r}"
    is_box = len(fields) == _BOX_FIELDS
    if not is_box and (len(fields) < _MIN_OUTLINE_FIELDS or len(fields) % 2 == 0):
        hint = "; a confidence is no part of it" if len(fields) == _BOX_FIELDS + 1 else ""
        expected = "expected class cx cy w h, or class x1 y1 x2 y2 x3 y3 ..."
        return "entry", f"{expected}, got {len(fields)} fields{hint}"
    label = classes.label_of_id.get(int(class_number))
    if label is None:
        return _unknown(int(class_number), classes)
    largest = max(values, key=abs)
    if abs(largest) > _MAX_PART:
        kind = "box_outside" if is_box else "mask_outside"
        return kind, f"expected parts of the image's size, from 0 to 1, got {largest:.6g}"
    height, width = size
    if is_box:
        cx, cy, w, h = values
        box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
        return _Object(box, label, None)
    points = [value * (height if i % 2 else width) for i, value in enumerate(values)]
    left, top = min(points[::2]), min(points[1::2])
    box = [left, top, max(points[::2]) - left, max(points[1::2]) - top]
    return _Object(box, label, points)


def _unknown(number: int, classes: ClassTable) -> tuple[str, str]:
    if number in classes.name_of_id:
        return "other_class", classes.unknown(number)
    num_named = len(classes.name_of_id)
    return "unknown_category", f"the class {number} is not among the {num_named} named ones, from 0"
