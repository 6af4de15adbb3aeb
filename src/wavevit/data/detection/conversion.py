"""Rewriting annotated images from one layout as another."""

import os
import posixpath
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from wavevit.data.detection.annotations import DetectionAnnotations
from wavevit.data.detection.files import read_split, wrong_sizes
from wavevit.data.detection.layouts import DetectionFormat, DetectionLayout
from wavevit.data.detection.problems import DetectionProblem, refuse_errors
from wavevit.data.detection.writers import CocoWriter, DetectionWriter, VocWriter, YoloWriter
from wavevit.files import sync_folder


@dataclass(frozen=True)
class Source:
    """What is to be converted."""

    layout: DetectionLayout
    """Where it comes from."""
    parts: dict[str, DetectionAnnotations]
    """The splits."""
    problems: list[DetectionProblem]
    """What was wrong with it: warnings, and errors whose objects and images are left out."""
    notes: list[str] = field(default_factory=list)
    """What else is left out."""

    @property
    def num_images(self) -> int:
        """Images of all splits."""
        return sum(map(len, self.parts.values()))


def read_source(
    layout: DetectionLayout,
    to: DetectionFormat,
    *,
    repair: bool = False,
    with_masks: bool = True,
) -> Source:
    """All splits of a data set, sound or made so.

    Args:
        layout: Of the data set.
        to: The format it is to be written in. YOLO's readers turn images by their EXIF orientation,
            so annotations for the pixels as they are stored are wrong there.
        repair: Whether what is wrong is left out, and what sticks out of an image clipped.
        with_masks: Whether outlines are kept.

    Returns:
        The splits. A VOC set's "trainval" is left out where it has "train" and "val".

    Raises:
        ValueError: If something is wrong and `repair` is not given, or nothing is left.
        OSError: If a file cannot be read.
    """
    problems: list[DetectionProblem] = []
    parts: dict[str, DetectionAnnotations] = {}
    notes = []
    class_names: list[str] | None = None
    for name in layout.splits:
        if name == "trainval" and {"train", "val"} <= layout.splits.keys():
            notes.append("the split 'trainval': its images are in 'train' and 'val'")
            continue
        reading = read_split(
            layout, name, class_names=class_names, with_masks=with_masks, clip=repair
        )
        problems += reading.problems
        part = reading.annotations
        if part is None:
            continue
        if class_names is None:
            class_names = part.class_names
        # Sizes in YOLO's folders are those of the images anyway.
        wrong = [] if layout.format == "yolo" else list(wrong_sizes(part, range(len(part))))
        if to == "yolo":
            wrong = [replace(p, kind="image_size") if p.kind == "turned" else p for p in wrong]
        problems += wrong
        bad = {problem.file for problem in wrong if problem.is_error}
        if bad and repair:
            is_good = [sample_id not in bad for sample_id in part.sample_ids()]
            part = part.subset(np.flatnonzero(is_good))
        if len(part):
            parts[name] = part
    if not repair:
        refuse_errors(problems, str(layout.root))
    if not parts:
        raise ValueError(f"nothing to convert in {str(layout.root)!r}; `wavevit check-data` tells")
    return Source(layout, parts, problems, notes)


def convert_detection(
    source: Source,
    out: Path,
    to: DetectionFormat,
    *,
    link: bool = False,
    with_masks: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Writes a data set in another format; the folder appears when all of it is there.

    Args:
        source: What to convert.
        out: Folder to write; must not exist.
        to: The format.
        link: Whether images are hard links to the files of the source instead of copies.
        with_masks: Whether outlines are written.
        on_progress: Called after each image with 1.

    Returns:
        What was lost or changed, a line each.

    Raises:
        FileExistsError: If `out` exists.
        OSError: If it cannot be written, or a link cannot be made.
    """
    if os.path.lexists(out):
        raise FileExistsError(f"{str(out)!r} exists; name a folder that is not there yet")
    names = output_names(source.parts, to)
    with _appearing(out) as folder:
        writer = _make_writer(folder, to, source.layout.format, with_masks)
        for split, part in source.parts.items():
            for index, name in enumerate(names[split]):
                path = writer.image_path(split, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                _place(part.path(index), path, link)
                writer.add(split, part, index, name)
                if on_progress is not None:
                    on_progress(1)
        writer.finish(source.parts)
    return [*source.notes, *_losses(source, to, writer.losses, with_masks)]


def output_names(
    parts: dict[str, DetectionAnnotations], to: DetectionFormat
) -> dict[str, list[str]]:
    """Names of the images in the new folders, all different where the format needs it.

    They are the old ones, relative to the folder that all images of a split are in. VOC has one
    folder without subfolders for all splits; YOLO and VOC tell files apart by what comes before
    the extension.

    Args:
        parts: The splits.
        to: The format.
    """
    names: dict[str, list[str]] = {}
    taken: set[str] = set()
    for split, part in parts.items():
        if to != "voc":
            taken = set()
        sample_ids = list(part.sample_ids())
        folder = posixpath.commonpath([posixpath.dirname(name) for name in sample_ids])
        names[split] = []
        for sample_id in sample_ids:
            name = posixpath.relpath(sample_id, folder or ".")
            if to == "voc":
                name = name.replace("/", "_")
            names[split].append(_new_name(name, to, taken))
    return names


def _new_name(name: str, to: DetectionFormat, taken: set[str]) -> str:
    stem, extension = posixpath.splitext(name)
    number = 1
    while True:
        candidate = stem if number == 1 else f"{stem}_{number}"
        # Some file systems do not tell upper from lower case.
        key = (candidate + extension if to == "coco" else candidate).casefold()
        if key not in taken:
            taken.add(key)
            return candidate + extension
        number += 1


def _make_writer(
    folder: Path, to: DetectionFormat, source: DetectionFormat, with_masks: bool
) -> DetectionWriter:
    if to == "coco":
        return CocoWriter(folder, with_masks=with_masks, keep_ids=source == "coco")
    if to == "yolo":
        return YoloWriter(folder, with_masks=with_masks)
    return VocWriter(folder, with_masks=with_masks)


def _place(source: Path, target: Path, link: bool) -> None:
    if not link:
        shutil.copyfile(source, target)
        return
    try:
        os.link(os.path.realpath(source), target)
    except OSError as error:
        raise OSError(
            f"cannot link {str(source)!r} ({error.strerror}); copy the images instead, without "
            "--link"
        ) from error


def _losses(
    source: Source, to: DetectionFormat, losses: Counter[str], with_masks: bool
) -> Iterator[str]:
    origin = source.layout.format
    num_left_out = sum(problem.is_error for problem in source.problems)
    if num_left_out:
        yield f"{num_left_out:,} errors: their images or objects are left out"
    num_clipped = sum(problem.kind == "clipped" for problem in source.problems)
    if num_clipped:
        yield f"{num_clipped:,} boxes or outlines that stuck out of their image: clipped"
    num_crowd = sum(int(part.crowd.sum()) for part in source.parts.values())
    num_masks = sum(part.num_masks for part in source.parts.values())
    if origin == "coco" and to != "coco":
        yield "ids of images, annotations and categories, and areas: made anew by whoever reads it"
    if origin == "coco":
        yield "licences, super-categories, key points and other fields: left out"
    if num_crowd and origin == "voc" and to == "coco":
        yield f"{num_crowd:,} difficult objects: they become crowd, which may be found many times"
    if num_crowd and origin == "coco" and to == "voc":
        yield f"{num_crowd:,} crowd objects: they become difficult objects"
    if num_masks and not with_masks:
        yield f"{num_masks:,} masks: left out"
    if to != "coco":
        num_empty = sum(problem.kind == "empty_box" for problem in source.problems)
        if num_empty:
            yield f"{num_empty:,} boxes without width or height: left out"
    for what, count in losses.items():
        if count:
            yield f"{count:,} {what}"


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Gives a folder beside one that is not there, which gets its name at the end."""
    folder = Path(os.path.abspath(folder))
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {str(folder.parent)!r}; create it first")
    partial = folder.with_name(f".{folder.name}.part-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        yield partial
        if os.path.lexists(folder):  # a rename would replace an empty folder made meanwhile
            raise FileExistsError(f"{str(folder)!r} was made by another program meanwhile")
        os.rename(partial, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
