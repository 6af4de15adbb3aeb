"""Reading Pascal VOC folders: an XML file per image, and perhaps a picture of object numbers.

VOC numbers pixels from 1 and counts both ends: ``xmin`` 1 to ``xmax`` 10 are the first ten columns.
On the continuous plane that is x1 = xmin - 1 to x2 = xmax. Tools that write plain coordinates (0 to
the width) come out shifted by a pixel at the left and top, and are clipped there.

``difficult`` objects become crowd: not learned from, and neither hit nor missed in evaluation, as
in VOC's own. The picture ``SegmentationObject/<image>.png`` has the number of the object in each
pixel, in the order of the XML file; 0 is background, 255 the border between objects. Format:
http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html

Shape legend: K classes.
"""

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wavevit.data.class_table import ClassTable
from wavevit.data.detection.annotation_builder import AnnotationBuilder, Reading
from wavevit.data.detection.problems import DetectionProblem
from wavevit.data.image_listing import FileListing, text_lines
from wavevit.data.images import IMAGE_EXTENSIONS, is_image_name

IMAGES, ANNOTATIONS, MASKS = "JPEGImages", "Annotations", "SegmentationObject"
CLASS_LIST = "classes.txt"
MAX_OBJECTS_WITH_MASKS = 254  # 255 is the border
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocSplit:
    """A split of a VOC data set."""

    root: Path
    """Folder of Annotations and JPEGImages."""
    list_path: Path | None
    """Text file with the name of an image per line; None takes all that have annotations."""


class _NoDocumentType(ElementTree.TreeBuilder):
    """Refuses documents that declare entities, which can be made to fill the memory."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Called for a document type, before what it declares.

        Args:
            name: Of the document type.
            pubid: Its public identifier.
            system: Its system identifier.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"a document type {name!r}, which VOC files do not have")


def read_voc(
    split: VocSplit,
    *,
    class_names: Sequence[str] | None = None,
    with_masks: bool = True,
    clip: bool = False,
) -> Reading:
    """The annotations of a VOC split, and all that is wrong with it.

    Args:
        split: Where it is.
        class_names: Names in the order of their labels; None takes `voc_class_names`.
        with_masks: Whether pictures of object numbers are used.
        clip: As in `AnnotationBuilder`.

    Returns:
        Annotations of what is sound, and problems.

    Raises:
        OSError: If a folder or a file cannot be read.
        ValueError: If a list is no text.
    """
    if class_names is None:
        class_names = voc_class_names(split.root)
    # VOC has no numbers for classes; from 1 on, they are those of its own segmentation pictures.
    classes = ClassTable.of({i + 1: name for i, name in enumerate(class_names)}, class_names)
    reader = _Reader(split, classes, with_masks, clip)
    for stem in _listed(split, reader.files, reader.problems):
        reader.read(stem)
    listed = "all annotations" if split.list_path is None else split.list_path.name
    description = f"VOC folder {split.root}, {listed}"
    annotations = reader.builder.build(
        classes.names, classes.category_ids, description, with_masks=with_masks
    )
    return Reading(annotations, reader.problems)


def voc_class_names(root: Path) -> list[str]:
    """The lines of classes.txt; without one, the names in all annotation files, sorted.

    Args:
        root: Folder of Annotations and JPEGImages.

    Raises:
        OSError: If the folder cannot be read.
        ValueError: If classes.txt is no text.
    """
    path = root / CLASS_LIST
    if path.is_file():
        return list(dict.fromkeys(text_lines(path)))
    names: set[str] = set()
    for path in sorted((root / ANNOTATIONS).glob("*.xml")):
        document = _parse(path)
        if not isinstance(document, str):
            names.update(_text(element, "name") for element in document.findall("object"))
    return sorted(names - {""})


class _Reader:
    """Reads files one after the other."""

    def __init__(self, split: VocSplit, classes: ClassTable, with_masks: bool, clip: bool) -> None:
        self.problems: list[DetectionProblem] = []
        self.files = FileListing()
        self.builder = AnnotationBuilder(split.root, self._where, self.problems, clip=clip)
        self._root = split.root
        self._classes = classes
        self._masks = self.files.names(split.root / MASKS) if with_masks else frozenset()
        self._images = _image_names(self.files.names(split.root / IMAGES))
        self._read: list[str] = []
        """The file of each image that was added."""
        self._num_objects = 0

    def read(self, stem: str) -> None:
        """Adds an image with its objects.

        Args:
            stem: Name of the image without extension.
        """
        file = f"{ANNOTATIONS}/{stem}.xml"
        document = _parse(self._root / file)
        if isinstance(document, str):
            self._tell("annotation_file", file, "", document)
            return
        image_name = _image_name(stem, document, self._images)
        if image_name is None:
            detail = f"no image {stem}.jpg or of another kind in {IMAGES}"
            self._tell("missing_image", file, "", detail)
            return
        size = _size(document)
        if size is None:
            detail = "no <size> with whole numbers <width> and <height> above 0"
            self._tell("entry", file, "", detail)
            return
        elements = document.findall("object")
        has_map = f"{stem}.png" in self._masks and len(elements) <= MAX_OBJECTS_WITH_MASKS
        instance_map = f"{MASKS}/{stem}.png" if has_map else ""
        image_id = len(self._read) + 1
        image = self.builder.add_image(f"{IMAGES}/{image_name}", image_id, size, instance_map)
        self._read.append(file)
        for number, element in enumerate(elements, start=1):
            found = _read_object(element, self._classes)
            if isinstance(found, tuple):
                kind, detail = found
                self._tell(kind, file, f"object {number}", detail)
                continue
            self._num_objects += 1
            self.builder.add_object(
                image,
                number,
                found.box_xywh,
                found.label,
                self._num_objects,
                crowd=found.is_difficult,
                segment=number if has_map else None,
            )

    def _tell(self, kind: str, file: str, place: str, detail: str) -> None:
        self.problems.append(DetectionProblem(kind, file, place, detail))

    def _where(self, image: int, place: int) -> tuple[str, str]:
        return self._read[image], f"object {place}"


@dataclass(frozen=True)
class _Object:
    box_xywh: tuple[float, float, float, float]
    label: int
    is_difficult: bool


def _listed(split: VocSplit, files: FileListing, problems: list[DetectionProblem]) -> Iterator[str]:
    """Names of images without their extensions."""
    if split.list_path is None:
        names = sorted(n[:-4] for n in files.names(split.root / ANNOTATIONS) if n.endswith(".xml"))
        file = ANNOTATIONS
    else:
        listed = text_lines(split.list_path)
        # Lists of single classes have a second column; other names may have spaces in them.
        known = files.names(split.root / ANNOTATIONS)
        names = [line if f"{line}.xml" in known else line.split()[0] for line in listed]
        file = split.list_path.relative_to(split.root).as_posix()
    if not names:
        problems.append(DetectionProblem("annotation_file", file, "", "no images listed in it"))
    seen: set[str] = set()
    for name in names:
        if name in seen:
            problems.append(DetectionProblem("duplicate_id", file, name, "it is listed already"))
            continue
        seen.add(name)
        yield name


def _image_names(names: frozenset[str]) -> dict[str, list[str]]:
    """File names of images by their name without extension."""
    found: dict[str, list[str]] = {}
    for name in sorted(filter(is_image_name, names)):
        found.setdefault(os.path.splitext(name)[0], []).append(name)
    return found


def _image_name(
    stem: str, document: ElementTree.Element, image_names: dict[str, list[str]]
) -> str | None:
    candidates = image_names.get(stem, [])
    named = _text(document, "filename")
    if named in candidates or len(candidates) == 0:
        return named if named in candidates else None
    rank = {f"{stem}{extension}": i for i, extension in enumerate((".jpg", *IMAGE_EXTENSIONS))}
    return min(candidates, key=lambda name: rank.get(name.lower(), len(rank)))


def _parse(path: Path) -> ElementTree.Element | str:
    """The root element <annotation>, or why there is none."""
    if not path.is_file():
        return "no such file"
    data = path.read_bytes()
    if not data.strip():
        return f"the file is empty ({len(data)} bytes)"
    try:
        parser = ElementTree.XMLParser(target=_NoDocumentType())
        document: ElementTree.Element = ElementTree.fromstring(data, parser)
    except ElementTree.ParseError as error:
        return f"no valid XML ({error})"
    except (ValueError, LookupError) as error:  # an unknown or wrong encoding, a document type
        return f"no valid XML: {error}"
    if document.tag != "annotation":
        return f"expected <annotation>, got <{document.tag}>"
    return document


def _size(document: ElementTree.Element) -> tuple[int, int] | None:
    size = document.find("size")
    if size is None:
        return None
    sides = [_number(size, side) for side in ("height", "width")]
    if not all(side is not None and side.is_integer() and 0 < side < 2**31 for side in sides):
        return None
    height, width = (int(side) for side in sides if side is not None)
    return height, width


def _read_object(element: ElementTree.Element, classes: ClassTable) -> _Object | tuple[str, str]:
    """An object, or the kind of a problem and what to say of it."""
    name = _text(element, "name")
    if not name:
        return "entry", "no <name>"
    if name not in classes.names:
        return "other_class", classes.missing(name)
    box = element.find("bndbox")
    corners = [None if box is None else _number(box, corner) for corner in _CORNERS]
    values = [value for value in corners if value is not None]
    if len(values) < len(_CORNERS):
        return "entry", f"no <bndbox> with numbers {', '.join(_CORNERS)}"
    xmin, ymin, xmax, ymax = values
    if xmax < xmin or ymax < ymin:
        return "box_size", f"xmin {xmin:g} to xmax {xmax:g}, ymin {ymin:g} to ymax {ymax:g}"
    return _Object(
        (xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1),
        classes.names.index(name),
        _text(element, "difficult") == "1",
    )


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _number(element: ElementTree.Element, tag: str) -> float | None:
    try:
        return float(_text(element, tag))
    except ValueError:
        return None
