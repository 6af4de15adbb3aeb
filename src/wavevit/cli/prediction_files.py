"""What ``wavevit predict`` writes: JSON lines, CSV rows, and pictures with captions."""

import csv
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from PIL import Image

from wavevit.cli.console import write_json_line
from wavevit.data.images import IMAGE_EXTENSIONS, load_image

_KEPT_SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
# Font objects are not made for several threads at once; decoding and encoding take the time anyway.
_drawing = threading.Lock()


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


class HasPath(Protocol):
    """The outcome for an image file."""

    @property
    def path(self) -> str:
        """Of the image."""
        ...


def caption(image: Image.Image, record: ImageRecord) -> Image.Image:
    """The picture with the classes written below.

    Args:
        image: As it was read.
        record: What was found in it.
    """
    # Here, because matplotlib takes as long to import as many images take to classify.
    from wavevit.pictures.annotate import annotate

    return annotate(image, [(p.label, p.probability) for p in record.predictions])


class PictureFolder:
    """Writes annotated pictures, each at its place relative to a base folder.

    ``.jpg`` and ``.png`` keep their names, others get ``.png`` appended, so no two images of a
    folder share a picture. No input file is ever written to.

    Args:
        folder: Where to.
        base: Absolute folder that places are relative to.
        overwrite: Whether existing pictures may be replaced.
        render: Makes the picture of an image and its record.
        option: That named the folder, for messages.
    """

    def __init__(
        self,
        folder: Path,
        base: str,
        overwrite: bool,
        render: Callable[[Image.Image, Any], Image.Image] = caption,
        option: str = "--draw",
    ) -> None:
        self.folder = folder
        self.option = option
        self._render = render
        self._real = os.path.realpath(folder)
        self._base = base
        self._overwrite = overwrite
        self._in_work: set[Path] = set()
        self._claiming = threading.Condition()

    def prepare(self, arguments: list[str]) -> None:
        """Makes the folder, and refuses one that holds, or lies among, the images to read.

        Args:
            arguments: Files and folders that will be read.

        Raises:
            FileExistsError: It has files already.
            NotADirectoryError: It is a file.
            OSError: It cannot be made or written.
            ValueError: It is inside an input folder, or an input is inside it.
        """
        for argument in arguments:
            real = os.path.realpath(argument)
            if os.path.isdir(argument) and _is_inside(self._real, real):
                raise ValueError(
                    f"{self.option} {self.folder} is inside the input folder {argument}: its "
                    "pictures would be taken for input; choose a folder outside"
                )
            if os.path.exists(argument) and _is_inside(real, self._real):
                raise ValueError(
                    f"the input {argument} is inside {self.option} {self.folder} and could be "
                    "overwritten; choose another folder"
                )
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.option} names a folder, but {self.folder} is a file")
        if self.folder.exists() and not self._overwrite and next(self.folder.iterdir(), None):
            raise FileExistsError(
                f"{self.folder} is not empty; choose another {self.option} or pass --overwrite"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        probe = self.folder / ".writable"
        probe.touch()
        probe.unlink()

    def is_inside(self, other: "PictureFolder") -> bool:
        """Whether it is another folder, or lies in it.

        Args:
            other: Another folder.
        """
        return _is_inside(self._real, other._real)

    def target(self, path: str) -> Path:
        """Where the picture of an image goes.

        Args:
            path: Of the image.
        """
        absolute = os.path.abspath(path)
        if _is_inside(absolute, self._base):
            place = Path(os.path.relpath(absolute, self._base))
        else:
            drive, tail = os.path.splitdrive(absolute)
            place = Path("outside", drive.replace(":", "").strip("\\/"), tail.lstrip("\\/"))
        return self.folder / place.with_name(picture_name(place.name))

    def draw(self, record: HasPath) -> None:
        """Writes the picture of a record that has predictions.

        Args:
            record: Of one image, which is read again: keeping it would cost more memory.

        Raises:
            FileExistsError: The picture exists, and may not be replaced.
            OSError: It cannot be written.
            ValueError: The image lies in the folder itself, or cannot be read any more.
        """
        from wavevit.pictures.style import write_atomically

        target = self.target(record.path)
        if _is_inside(os.path.realpath(record.path), self._real):
            raise ValueError(
                f"it is inside the {self.option} folder {self.folder}; not drawn there"
            )
        with self._claim(target):
            image = load_image(record.path)
            with _drawing:
                picture = self._render(image, record)
            target.parent.mkdir(parents=True, exist_ok=True)
            kind = _KEPT_SUFFIXES[target.suffix.lower()]
            options = {"quality": 92, "subsampling": 0} if kind == "JPEG" else {"compress_level": 3}
            write_atomically(target, lambda file: picture.save(file, kind, **options))

    @contextmanager
    def _claim(self, target: Path) -> Iterator[None]:
        """Inside, no other thread draws the same picture, as when an image is named twice."""
        with self._claiming:
            self._claiming.wait_for(lambda: target not in self._in_work)
            if target.exists() and not self._overwrite:
                raise FileExistsError(f"the picture {target} exists; not replaced")
            self._in_work.add(target)
        try:
            yield
        finally:
            with self._claiming:
                self._in_work.discard(target)
                self._claiming.notify_all()


class PictureFolders:
    """Writes a picture of each image to several folders.

    Args:
        *folders: Any number.

    Raises:
        ValueError: One of them is, or is inside of, another.
    """

    def __init__(self, *folders: PictureFolder) -> None:
        for one, other in itertools.permutations(folders, 2):
            if one.is_inside(other):
                raise ValueError(
                    f"{one.option} {one.folder} and {other.option} {other.folder} would mix their "
                    "pictures; choose folders apart"
                )
        self.folders = folders

    def prepare(self, arguments: list[str]) -> None:
        """As that of `PictureFolder`, of each.

        Args:
            arguments: Files and folders that will be read.

        Raises:
            OSError: One of them cannot be used.
            ValueError: One of them is inside an input folder, or an input is inside of it.
        """
        for folder in self.folders:
            folder.prepare(arguments)

    def draw(self, record: HasPath) -> None:
        """Writes the pictures of a record; what fails in one folder does not stop the others.

        Args:
            record: Of one image.

        Raises:
            ValueError: What went wrong.
        """
        errors = []
        for folder in self.folders:
            try:
                folder.draw(record)
            except (OSError, ValueError) as error:
                errors.append(str(error))
        if errors:
            raise ValueError("; ".join(errors))


def picture_name(name: str) -> str:
    """Name of an image's picture; different for different images of a folder.

    Args:
        name: Of the image, with its extension.
    """
    stem, suffix = os.path.splitext(name)
    inner = os.path.splitext(stem)[1].lower()
    if suffix.lower() in _KEPT_SUFFIXES and inner not in IMAGE_EXTENSIONS:
        return name
    # "a.webp" becomes "a.webp.png"; an image that is called that becomes "a.webp.png.png".
    return f"{name}.png" if suffix.lower() in IMAGE_EXTENSIONS else f"{name}.drawn.png"


def _is_inside(path: str, folder: str) -> bool:
    try:
        return os.path.commonpath([path, folder]) == folder
    except ValueError:  # other drives
        return False
