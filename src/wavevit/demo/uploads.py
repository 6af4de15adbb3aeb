"""Files that users send: kept in one private folder for a while, and read with suspicion."""

import contextlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from PIL import Image

from wavevit.data.image_header import read_header
from wavevit.data.images import UnreadableImageError, load_image
from wavevit.demo.limits import MEGABYTE, MEGAPIXEL, Limits

LONG_SIDE = 1600
"""Pixels: pictures are shrunk to this before a network sees them, since they go back to a page."""


class UploadError(ValueError):
    """A file that is not looked at; its text is for the user who sent it."""


class UploadFolder:
    """The only folder that the server writes to and serves from; nobody else can open it.

    Its `path` has no links in it.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="wavevit-demo-")).resolve()  # mode 0700

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path, links followed, is that of a regular file in the folder.

        Args:
            path: Of any kind, from anybody.
        """
        try:
            found = Path(path).resolve(strict=True)
            return found.is_relative_to(self.path) and found.is_file()
        except (
            OSError,
            ValueError,
            RuntimeError,
        ):  # no such file, NUL characters, circles of links
            return False

    def used_bytes(self) -> int:
        """Size of everything inside."""
        return sum(status.st_size for _, status in self._files())

    def sweep(self, older_than_s: float, keep: Collection[Path] = ()) -> None:
        """Removes files.

        Args:
            older_than_s: Only those that came more than so many seconds ago.
            keep: Files that stay however old they are.
        """
        latest = time.time() - older_than_s
        for path, status in self._files():
            # A rename, by which uploads come, sets the time of change only.
            if max(status.st_mtime, status.st_ctime) < latest and path not in keep:
                self.discard(path)

    def discard(self, path: Path) -> None:
        """Removes a file, and its own folder inside of this one if nothing else is in it.

        Args:
            path: The file.
        """
        path.unlink(missing_ok=True)
        if path.parent.resolve() != self.path.resolve():
            with contextlib.suppress(OSError):  # other files are in it, or it went meanwhile
                path.parent.rmdir()

    def files(self) -> frozenset[Path]:
        """All files inside."""
        return frozenset(path for path, _ in self._files())

    def remove(self) -> None:
        """Removes the folder and all inside."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder, _, names in os.walk(self.path):
            for name in names:
                path = Path(folder, name)
                try:
                    status = path.lstat()
                except FileNotFoundError:  # swept meanwhile
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield path, status


def read_upload(path: str, folder: UploadFolder, limits: Limits) -> Image.Image:
    """The picture in a file of a user, upright RGB, its longer side 1,600 pixels or less.

    Its size in bytes, then the number of pixels in its header are looked at before it is decoded.
    A file that is refused for its content is removed.

    Args:
        path: As the browser's request names it: nothing to be trusted.
        folder: Where it must be.
        limits: What is too large.

    Raises:
        UploadError: It is not there, too large, or no complete picture.
    """
    if not folder.holds(path):
        raise UploadError("This picture is no longer on the server: send it again.")
    try:
        return _read(path, limits)
    except FileNotFoundError as error:
        raise UploadError("This picture is no longer on the server: send it again.") from error
    except UnreadableImageError as error:
        folder.discard(Path(path))
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise UploadError(
                f"This picture has far more than the {limits.megapixels:g} megapixels that are the "
                "most: send a smaller one."
            ) from error
        reason = re.sub(r"\.? \(\w+\)$", "", error.reason)  # the kind of error is for programmers
        raise UploadError(
            f"This file cannot be used: {reason}. Send a photo or drawing as JPEG, PNG, "
            "WebP, GIF, TIFF or BMP."
        ) from error
    except UploadError:
        folder.discard(Path(path))
        raise


def _read(path: str, limits: Limits) -> Image.Image:
    size = os.stat(path).st_size
    if size > limits.upload_mb * MEGABYTE:
        raise UploadError(
            f"This file has {size / MEGABYTE:.1f} MB, and {limits.upload_mb:g} MB are the most: "
            "send a smaller one."
        )
    height, width = read_header(path).size
    if height * width > limits.megapixels * MEGAPIXEL:
        raise UploadError(
            f"This picture has {width:,} x {height:,} pixels, which is "
            f"{height * width / MEGAPIXEL:.0f} megapixels, and {limits.megapixels:g} are the most: "
            "send a smaller one."
        )
    factor = min(LONG_SIDE / max(height, width), 1.0)
    # A large JPEG is decoded at a half, a quarter or an eighth, where that is enough.
    picture = load_image(path, min_size=max(int(min(height, width) * factor), 1))
    if max(picture.size) > LONG_SIDE:
        # Of its own header's numbers: what was decoded may be smaller already.
        target = max(round(width * factor), 1), max(round(height * factor), 1)
        picture = picture.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return picture
