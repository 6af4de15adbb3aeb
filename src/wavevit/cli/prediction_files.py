"""What ``wavevit predict`` writes of its predictions: JSON lines or CSV rows."""

import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TextIO

from wavevit.cli.console import write_json_line


@dataclass(frozen=True)
class Prediction:
    """A class that the model sees in an image.

    Attributes:
        label: Name of the class.
        index: Its number.
        probability: In [0, 1].
    """

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class ImageRecord:
    """The outcome for one image.

    Attributes:
        path: As given.
        predictions: Best first; empty after an error.
        width: Pixels, of the upright picture; 0 after an error.
        height: Pixels, of the upright picture; 0 after an error.
        error: Why there is no prediction; None when there is.
    """

    path: str
    predictions: tuple[Prediction, ...] = ()
    width: int = 0
    height: int = 0
    error: str | None = None


class RecordWriter(Protocol):
    """Writes one record after the other."""

    def write(self, record: ImageRecord) -> None:
        """Writes a record completely, past all buffers of this process."""
        ...

    def close(self) -> None:
        """Ends the output."""
        ...


class JsonLines:
    """One JSON object per line.

    Args:
        stream: Text stream; closed by `close` unless it is standard output.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, record: ImageRecord) -> None:
        """Writes a line.

        Args:
            record: Of one image.
        """
        content: dict[str, object] = {"path": record.path}
        if record.error is not None:
            content["error"] = record.error
        else:
            content["predictions"] = [
                {"label": p.label, "index": p.index, "probability": round(p.probability, 6)}
                for p in record.predictions
            ]
            content |= {"width": record.width, "height": record.height}
        write_json_line(self._stream, content)

    def close(self) -> None:
        """Ends the output."""
        if self._stream is not sys.stdout:
            self._stream.close()


class CsvRows:
    """One CSV row per image, with a header.

    Args:
        stream: Text stream opened with newline="" and errors="surrogateescape".
        topk: Number of classes per image.
    """

    def __init__(self, stream: TextIO, topk: int) -> None:
        self._stream = stream
        self._topk = topk
        self._writer = csv.writer(stream, lineterminator="\n")
        header = ["path", "width", "height", "error"]
        for rank in range(1, topk + 1):
            header += [f"label{rank}", f"index{rank}", f"probability{rank}"]
        self._writer.writerow(header)
        stream.flush()

    def write(self, record: ImageRecord) -> None:
        """Writes a row.

        Args:
            record: Of one image.
        """
        row: list[object] = [record.path, record.width or "", record.height or ""]
        row.append(record.error or "")
        for prediction in record.predictions:
            row += [prediction.label, prediction.index, f"{prediction.probability:.6f}"]
        row += [""] * (4 + 3 * self._topk - len(row))
        self._writer.writerow(row)
        self._stream.flush()

    def close(self) -> None:
        """Ends the output."""
        self._stream.close()


def check_output(
    path: Path | None, overwrite: bool, suffixes: Sequence[str] = (".jsonl", ".csv")
) -> None:
    """Finds out before any work whether the output can be written.

    Args:
        path: Output file; None for standard output.
        overwrite: Whether it may exist.
        suffixes: That its name may end in.

    Raises:
        FileExistsError: It exists.
        FileNotFoundError: Its folder does not exist.
        IsADirectoryError: It is a folder.
        PermissionError: It cannot be written.
        ValueError: Another suffix.
    """
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(f"--output names a file, but {path} is a folder")
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"--output must end in {' or '.join(suffixes)}, got {path}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another --output or pass --overwrite")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of --output does not exist: {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"cannot write {path}; choose another --output")


def open_output(path: Path | None, topk: int, overwrite: bool) -> RecordWriter:
    """The writer of an output file, by its suffix.

    Args:
        path: Output file; None for JSON lines on standard output.
        topk: Number of classes per image.
        overwrite: Whether the file may exist.

    Raises:
        OSError: It cannot be written.
    """
    if path is None:
        return JsonLines(sys.stdout)
    mode: Literal["w", "x"] = "w" if overwrite else "x"
    if path.suffix.lower() == ".csv":
        # Names that are not valid UTF-8 go to the file as the bytes they are on disk.
        return CsvRows(
            open(path, mode, encoding="utf-8", errors="surrogateescape", newline=""), topk
        )
    return JsonLines(open(path, mode, encoding="utf-8", newline="\n"))
