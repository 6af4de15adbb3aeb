"""Folders of pictures that ``wavevit predict`` draws, one of each image."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from wavevit.cli.prediction_files import ImageRecord
from wavevit.data.images import IMAGE_EXTENSIONS, load_image

_KEPT_SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
# Font objects are not made for several threads at once; decoding and encoding take the time anyway.
_drawing = threading.Lock()


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
        self._drawn: dict[Path, str] = {}  # pictures and the images they are of
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
        with self._claim(target, os.path.abspath(record.path)) as is_new:
            if not is_new:
                return
            image = load_image(record.path)
            with _drawing:
                picture = self._render(image, record)
            target.parent.mkdir(parents=True, exist_ok=True)
            kind = _KEPT_SUFFIXES[target.suffix.lower()]
            options = {"quality": 92, "subsampling": 0} if kind == "JPEG" else {"compress_level": 3}
            write_atomically(target, lambda file: picture.save(file, kind, **options))
            self._drawn[target] = os.path.abspath(record.path)

    @contextmanager
    def _claim(self, target: Path, image: str) -> Iterator[bool]:
        """Inside, no other thread draws the picture; False if it is drawn and of this image."""
        with self._claiming:
            self._claiming.wait_for(lambda: target not in self._in_work)
            is_new = self._drawn.get(target) != image
            if is_new and target.exists() and not self._overwrite:
                raise FileExistsError(f"the picture {target} exists; not replaced")
            self._in_work.add(target)
        try:
            yield is_new
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
