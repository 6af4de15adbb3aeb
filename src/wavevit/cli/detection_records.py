"""What ``wavevit predict`` writes of a detector: COCO results, JSON lines, CSV rows, pictures.

Shape legend: H rows, W columns of a picture.
"""

import csv
import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, TextIO

import numpy as np

from wavevit.cli.console import write_json_line
from wavevit.cli.image_ids import ImageIds, table_path
from wavevit.data.detection.object_masks import code_to_counts, encode_counts, encode_mask
from wavevit.detection.inference import FoundObjects
from wavevit.detection.object_mask import ObjectMask
from wavevit.files import replacing, write_text

SUFFIXES = (".json", ".jsonl", ".csv")


@dataclass(frozen=True)
class ObjectRecord:
    """The outcome for one image, or one frame of a video.

    Attributes:
        path: As given.
        found: The objects; None after an error.
        error: Why there are none; None when there are.
        frame: Number of the frame in its video, from 0.
        time_s: When it is shown, seconds from the start.
    """

    path: str
    found: FoundObjects | None = None
    error: str | None = None
    frame: int | None = None
    time_s: float | None = None


class ObjectWriter(Protocol):
    """Writes one record after the other, inside of a ``with``."""

    def __enter__(self) -> "ObjectWriter":
        """Begins the output."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the output."""
        ...

    def write(self, record: ObjectRecord) -> None:
        """Writes a record completely."""
        ...


class _Stream:
    """A text file, made when it is entered; standard output when there is no path."""

    def __init__(self, path: Path | None, overwrite: bool, **options: Any) -> None:
        self._path = path
        self._mode: Literal["w", "x"] = "w" if overwrite else "x"
        self._options = options
        self._stream: TextIO = sys.stdout

    def __enter__(self) -> Any:
        if self._path is not None:
            self._stream = open(self._path, self._mode, encoding="utf-8", **self._options)
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            self._stream.close()


class ObjectLines(_Stream):
    """One JSON object per image: its path, size and objects.

    Args:
        path: File to write; None for standard output.
        class_names: Name of every label.
        overwrite: Whether the file may exist.
    """

    def __init__(self, path: Path | None, class_names: list[str], overwrite: bool) -> None:
        super().__init__(path, overwrite, newline="\n")
        self._class_names = class_names

    def write(self, record: ObjectRecord) -> None:
        """Writes a line.

        Args:
            record: Of one image.
        """
        content: dict[str, object] = {"path": record.path}
        if record.frame is not None:
            content |= {"frame": record.frame, "time_s": record.time_s}
        if record.found is None:
            content["error"] = record.error
        else:
            H, W = record.found.size
            content |= {"objects": self._objects(record.found), "width": W, "height": H}
        write_json_line(self._stream, content)

    def _objects(self, found: FoundObjects) -> list[dict[str, object]]:
        objects: list[dict[str, object]] = []
        for number, (label, score, box) in enumerate(_rows(found)):
            entry: dict[str, object] = {
                "label": self._class_names[label],
                "index": label,
                "score": round(score, 6),
                "box": [round(side, 2) for side in box],
            }
            if found.masks is not None:
                entry["mask"] = coco_mask(found.masks[number], found.size)
            objects.append(entry)
        return objects


class ObjectRows(_Stream):
    """One CSV row per object, with a header; one without an object for an image that has none.

    Args:
        path: File to write.
        class_names: Name of every label.
        overwrite: Whether the file may exist.
    """

    _COLUMNS = ("path", "frame", "time_s", "width", "height", "error")
    _OBJECT_COLUMNS = ("label", "index", "score", "x1", "y1", "x2", "y2")

    def __init__(self, path: Path, class_names: list[str], overwrite: bool) -> None:
        # Names that are not valid UTF-8 go to the file as the bytes they are on disk.
        super().__init__(path, overwrite, newline="", errors="surrogateescape")
        self._class_names = class_names

    def __enter__(self) -> "ObjectRows":
        super().__enter__()
        self._writer = csv.writer(self._stream, lineterminator="\n")
        self._writer.writerow((*self._COLUMNS, *self._OBJECT_COLUMNS))
        self._stream.flush()
        return self

    def write(self, record: ObjectRecord) -> None:
        """Writes the rows of a record.

        Args:
            record: Of one image.
        """
        found = record.found
        height, width = ("", "") if found is None else found.size
        frame = ("", "") if record.frame is None else (record.frame, record.time_s)
        start = (record.path, *frame, width, height, record.error or "")
        rows = [] if found is None else _rows(found)
        for label, score, box in rows:
            name = self._class_names[label]
            sides = [f"{side:.2f}" for side in box]
            self._writer.writerow((*start, name, label, f"{score:.6f}", *sides))
        if not rows:
            self._writer.writerow((*start, *[""] * len(self._OBJECT_COLUMNS)))
        self._stream.flush()


class CocoResults:
    """One file in COCO's results format, complete or not there, and a table of the images beside.

    Boxes and masks share their entries; what reads one kind ignores the other.

    Args:
        path: File to write.
        class_names: Name of every label.
        category_ids: Id of every label.
        image_ids: Ids of the images.
        overwrite: Whether the file may exist.
    """

    def __init__(
        self,
        path: Path,
        class_names: list[str],
        category_ids: list[int],
        image_ids: ImageIds,
        overwrite: bool,
    ) -> None:
        self._path = path
        self._class_names = class_names
        self._category_ids = category_ids
        self._image_ids = image_ids
        self._overwrite = overwrite
        self._images: list[dict[str, object]] = []
        self._separator = "["
        self._stack = ExitStack()

    def __enter__(self) -> "CocoResults":
        partial = self._stack.enter_context(replacing(self._path))
        self._stream = self._stack.enter_context(open(partial, "w", encoding="utf-8"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._stream.write("]\n" if self._separator != "[" else "[]\n")
            if not self._overwrite and self._path.exists():
                error = FileExistsError(f"{self._path} has appeared meanwhile; not replaced")
                self._stack.__exit__(type(error), error, None)
                raise error
            if not self._image_ids.is_given:
                write_text(table_path(self._path), self._table())
        self._stack.__exit__(kind, error, trace)

    def write(self, record: ObjectRecord) -> None:
        """Writes the entries of a record, or notes its error in the table.

        Args:
            record: Of one image.
        """
        if record.found is None:
            self._images.append({"file_name": record.path, "error": record.error})
            return
        image_id = self._image_ids.id_of(record.path)
        H, W = record.found.size
        entry = {"id": image_id, "file_name": record.path, "width": W, "height": H}
        if not self._image_ids.is_given:
            self._images.append(entry)
        for number, (label, score, (x1, y1, x2, y2)) in enumerate(_rows(record.found)):
            result: dict[str, object] = {
                "image_id": image_id,
                "category_id": self._category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            if record.found.masks is not None:
                result["segmentation"] = coco_mask(record.found.masks[number], (H, W))
            self._stream.write(f"{self._separator}{json.dumps(result)}")
            self._separator = ",\n"

    def _table(self) -> str:
        categories = [
            {"id": number, "name": name}
            for number, name in zip(self._category_ids, self._class_names, strict=True)
        ]
        images = [image for image in self._images if "error" not in image]
        failures = [image for image in self._images if "error" in image]
        content = {"images": images, "categories": categories, "failures": failures}
        return json.dumps(content, indent=1) + "\n"


def open_writer(
    path: Path | None,
    class_names: list[str],
    category_ids: list[int],
    image_ids: ImageIds,
    overwrite: bool,
) -> ObjectWriter:
    """The writer of an output file, by its suffix; nothing is made before it is entered.

    Args:
        path: Output file; None for JSON lines on standard output.
        class_names: Name of every label.
        category_ids: Id of every label in COCO files.
        image_ids: Ids of the images in COCO files.
        overwrite: Whether the file may exist.
    """
    suffix = ".jsonl" if path is None else path.suffix.lower()
    if path is None or suffix == ".jsonl":
        return ObjectLines(path, class_names, overwrite)
    if suffix == ".csv":
        return ObjectRows(path, class_names, overwrite)
    return CocoResults(path, class_names, category_ids, image_ids, overwrite)


def coco_mask(mask: ObjectMask, size: tuple[int, int]) -> dict[str, object]:
    """The compressed run-length code of a mask in its whole picture, which is never drawn.

    Args:
        mask: Of an object.
        size: H and W.
    """
    H, W = size
    columns = np.zeros((H, mask.width), np.uint8)
    columns[mask.top : mask.top + mask.height] = mask.pixels()
    counts = [H * mask.width]
    if mask.width:
        counts = code_to_counts(encode_mask(columns)).tolist()
    before, after = H * mask.left, H * (W - mask.left - mask.width)
    counts[0] += before
    if len(counts) % 2:  # the last run is outside of the object
        counts[-1] += after
    elif after:
        counts.append(after)
    return {"size": [H, W], "counts": encode_counts(counts, H, W).decode("ascii")}


def _rows(found: FoundObjects) -> list[tuple[int, float, list[float]]]:
    """Label, score and xyxy box of every object."""
    return list(
        zip(
            found.labels.tolist(),
            found.scores.tolist(),
            found.boxes_xyxy.double().tolist(),
            strict=True,
        )
    )
