"""What ``wavevit predict`` writes of a segmenter: shares of classes, index masks and overlays.

Shape legend: H rows, W columns of a picture, K classes.
"""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wavevit.cli.console import write_json_line
from wavevit.cli.picture_folders import PictureFolder
from wavevit.segmentation.card import SegmenterCard

SUFFIXES = (".jsonl", ".csv")


@dataclass(frozen=True)
class LabelRecord:
    """The outcome for one image.

    Attributes:
        path: As given.
        labels: uint8 (H, W) in 0..K-1; None after an error.
        confidence: Mean probability of the labels, in [0, 1], where it was asked for.
        error: Why there are no labels; None when there are.
    """

    path: str
    labels: NDArray[np.uint8] | None = None
    confidence: float | None = None
    error: str | None = None


class LabelWriter(Protocol):
    """Writes one record after the other."""

    def write(self, record: LabelRecord) -> None:
        """Writes a record completely."""
        ...

    def close(self) -> None:
        """Ends the output."""
        ...


class ClassShareLines:
    """One JSON object per image: its path, size, and the share of its pixels that each class has.

    Args:
        stream: Text stream; closed by `close` unless it is standard output.
        class_names: Name of every label.
    """

    def __init__(self, stream: TextIO, class_names: Sequence[str]) -> None:
        self._stream = stream
        self._class_names = class_names

    def write(self, record: LabelRecord) -> None:
        """Writes a line.

        Args:
            record: Of one image.
        """
        content: dict[str, object] = {"path": record.path}
        if record.labels is None:
            content["error"] = record.error
        else:
            height, width = record.labels.shape
            content["classes"] = [
                {"label": self._class_names[label], "index": label, "share": round(share, 6)}
                for label, share in class_shares(record.labels)
            ]
            if record.confidence is not None:
                content["confidence"] = round(record.confidence, 6)
            content |= {"width": width, "height": height}
        write_json_line(self._stream, content)

    def close(self) -> None:
        """Ends the output."""
        if self._stream is not sys.stdout:
            self._stream.close()


class ClassShareRows:
    """One CSV row per image and class in it, with a header.

    Args:
        stream: Text stream opened with newline="" and errors="surrogateescape".
        class_names: Name of every label.
    """

    _COLUMNS = ("path", "width", "height", "error", "confidence", "label", "index", "share")

    def __init__(self, stream: TextIO, class_names: Sequence[str]) -> None:
        self._stream = stream
        self._class_names = class_names
        self._writer = csv.writer(stream, lineterminator="\n")
        self._writer.writerow(self._COLUMNS)
        stream.flush()

    def write(self, record: LabelRecord) -> None:
        """Writes the rows of a record.

        Args:
            record: Of one image.
        """
        if record.labels is None:
            self._writer.writerow((record.path, "", "", record.error, "", "", "", ""))
        else:
            height, width = record.labels.shape
            confidence = "" if record.confidence is None else f"{record.confidence:.6f}"
            start = (record.path, width, height, "", confidence)
            for label, share in class_shares(record.labels):
                self._writer.writerow((*start, self._class_names[label], label, f"{share:.6f}"))
        self._stream.flush()

    def close(self) -> None:
        """Ends the output."""
        self._stream.close()


def open_writer(path: Path | None, class_names: Sequence[str], overwrite: bool) -> LabelWriter:
    """The writer of an output file, by its suffix.

    Args:
        path: Output file; None for JSON lines on standard output.
        class_names: Name of every label.
        overwrite: Whether the file may exist.

    Raises:
        OSError: It cannot be written.
    """
    if path is None:
        return ClassShareLines(sys.stdout, class_names)
    mode: Literal["w", "x"] = "w" if overwrite else "x"
    if path.suffix.lower() == ".csv":
        # Names that are not valid UTF-8 go to the file as the bytes they are on disk.
        return ClassShareRows(
            open(path, mode, encoding="utf-8", errors="surrogateescape", newline=""), class_names
        )
    return ClassShareLines(open(path, mode, encoding="utf-8", newline="\n"), class_names)


def class_shares(labels: NDArray[np.uint8]) -> list[tuple[int, float]]:
    """Labels of a picture and the share of its pixels that each has, the largest first.

    Args:
        labels: (H, W).
    """
    counts = np.bincount(labels.ravel())
    order = np.argsort(-counts, kind="stable")
    return [(int(i), float(counts[i] / labels.size)) for i in order if counts[i]]


class LabelPainter:
    """Paints classes over their picture, with coloured edges and a legend.

    Args:
        card: Names and colours of the classes.
        opacity: Of the colours, in [0, 1].

    Raises:
        ValueError: No such opacity.
    """

    def __init__(self, card: SegmenterCard, opacity: float) -> None:
        if not 0 <= opacity <= 1:
            raise ValueError(f"--opacity must be in [0, 1], got {opacity}")
        self._card = card
        self._opacity = opacity

    def __call__(self, image: Image.Image, record: LabelRecord) -> Image.Image:
        """A copy of the picture with its classes.

        Args:
            image: As it was read.
            record: What was found in it.
        """
        # Here, because matplotlib takes as long to import as many images take to look at.
        from wavevit.pictures.segmentation import draw_segmentation

        assert record.labels is not None  # pictures with errors are not drawn
        return draw_segmentation(
            image,
            record.labels,
            self._card.class_names,
            self._card.palette,
            opacity=self._opacity,
        )


class PredictedPictures:
    """Writes an index mask and an overlay of each record, where they are wanted.

    Masks are PNG files in the classes' colours, at the image's place relative to the base folder
    and with its name up to the extension. Values are those of the data set's own masks.

    Args:
        masks: Folder of masks, prepared.
        overlays: Folder of overlays, prepared.
        card: Colours of the classes, and whether masks hold label + 1.
        overwrite: Whether existing masks may be replaced.
    """

    def __init__(
        self,
        masks: PictureFolder | None,
        overlays: PictureFolder | None,
        card: SegmenterCard,
        overwrite: bool,
    ) -> None:
        self._masks = masks
        self._overlays = overlays
        self._card = card
        self._overwrite = overwrite
        self._written: set[Path] = set()

    def draw(self, record: LabelRecord) -> None:
        """Writes the pictures of a record that has labels.

        Args:
            record: Of one image.

        Raises:
            FileExistsError: A picture exists, and may not be replaced.
            OSError: One cannot be written.
            ValueError: The image cannot be read any more.
        """
        try:
            if self._masks is not None:
                self._write_mask(self._masks, record)
        finally:
            if self._overlays is not None:
                self._overlays.draw(record)

    def _write_mask(self, folder: PictureFolder, record: LabelRecord) -> None:
        from wavevit.pictures.index_png import write_index_png

        assert record.labels is not None
        # "a.jpg", whatever its overlay is called, has the mask "a.png".
        target = folder.target(record.path).with_name(f"{Path(record.path).stem}.png")
        if target in self._written:
            raise FileExistsError(
                f"the mask {target} is that of another image; give images that differ in their "
                "endings other names"
            )
        if target.exists() and not self._overwrite:
            raise FileExistsError(f"the mask {target} exists; not replaced")
        self._written.add(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_index_png(
            target,
            record.labels,
            self._card.palette,
            reduce_zero_label=self._card.reduce_zero_label,
        )
