"""Reading image files: one RGB picture whatever the file's format, or one clear error."""

import errno
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image, ImageFile, UnidentifiedImageError

from wavevit.data.pixels import to_rgb

# 13,000 x 13,000: half a GiB of 24-bit pixels. It is where Pillow itself refuses, by default; held
# here so that another `PIL.Image.MAX_IMAGE_PIXELS` in the process does not move it.
MAX_IMAGE_PIXELS = 2 * (1024 * 1024 * 1024 // 4 // 3)

# Only these decoders ever see a file. Pillow knows some forty more, among them EPS, which runs
# Ghostscript on the file's contents.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM")

FORMAT_OF_EXTENSION = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    ".png": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
}
IMAGE_EXTENSIONS = frozenset(FORMAT_OF_EXTENSION)

_EXIF_ORIENTATION = 0x0112
_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(ValueError):
    """A file that is no complete, readable image: `path` says which, `reason` why, in a line."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read image {path!r}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["UnreadableImageError"], tuple[str, str]]:
        # The default would rebuild from the message alone; worker processes send this error back.
        return type(self), (self.path, self.reason)


class ImageTooLargeError(UnreadableImageError):
    """An image whose header promises more than `MAX_IMAGE_PIXELS`; nothing of it was decoded."""


class DecodedImage(NamedTuple):
    """An RGB picture together with what its file said."""

    image: Image.Image
    """Upright RGB picture without metadata."""
    format: str
    """The format of the content, one of `IMAGE_FORMATS` or "MPO" (a JPEG with further pictures)."""


def load_image(source: str | Path | BinaryIO, *, min_size: int | None = None) -> Image.Image:
    """The picture a viewer shows, in mode RGB: upright, first frame, transparency on white.

    The format is told by content, never by the file's name. Grey images of 16 or 32 bits are
    scaled to 8 bits by their type's range, float images by the rule of `pixels.float_to_grey`, CMYK
    goes through the embedded colour profile where there is a sound one. Profiles of RGB and grey
    images are ignored, as in torchvision and timm.

    Args:
        source: Path of a regular file, or a binary stream, which is read from its start and left
            open.
        min_size: Short side in pixels that is enough for the caller. A JPEG is then decoded at 1/2,
            1/4 or 1/8 of its size where both sides stay at least this long, several times faster.
            None (the default) decodes every pixel.

    Returns:
        A new image without metadata (a second orientation pass changes nothing).

    Raises:
        UnreadableImageError: If anything keeps the whole picture from being decoded: no such file,
            a folder, no or other or damaged or missing content, more than `MAX_IMAGE_PIXELS`.
        ValueError: If `min_size` is not positive.
    """
    return decode_image(source, min_size=min_size).image


def decode_image(source: str | Path | BinaryIO, *, min_size: int | None = None) -> DecodedImage:
    """The picture of `load_image` and the format of the content.

    Args:
        source: As in `load_image`.
        min_size: As in `load_image`.

    Returns:
        Picture and format.

    Raises:
        UnreadableImageError: As in `load_image`.
        ValueError: If `min_size` is not positive.
    """
    if min_size is not None and min_size < 1:
        raise ValueError(f"min_size is a number of pixels of at least 1, got {min_size}")
    path = _name_of(source)
    try:
        if isinstance(source, str | Path):
            with open_regular_file(source) as stream:
                return _decode(stream, path, min_size)
        return _decode(source, path, min_size)
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError as error:
        reason = f"over the limit of {MAX_IMAGE_PIXELS:,} pixels"
        raise ImageTooLargeError(path, reason) from error
    except Exception as error:
        # Damaged files reach every corner of the decoders: SyntaxError, struct.error, EOFError,
        # OverflowError, ZeroDivisionError and MemoryError have all been seen.
        raise UnreadableImageError(path, why_unreadable(error)) from error


def iter_image_files(
    root: str | Path, *, on_error: Callable[[OSError], None] | None = None
) -> Iterator[Path]:
    """Image files (by extension) under a folder, one after the other.

    The order is the same on every machine: the files of a folder by name, then its subfolders by
    name. Only the names of one folder and of the subfolders on the way to it are held, so memory
    does not grow with the tree, and the first file comes once its own folder is listed (some 0.1 s
    for 100,000 files). Links are followed, except to a folder that the walk is inside of. Names
    starting with a dot are skipped. A broken link comes out like a file: reading it tells.

    Args:
        root: Folder to walk.
        on_error: Called with the error for a subfolder that cannot be listed, which is then
            skipped. None (the default) raises it.

    Returns:
        Paths that start with `root`.

    Raises:
        FileNotFoundError: If `root` does not exist.
        NotADirectoryError: If `root` is not a folder.
    """
    folder = Path(root)
    if not folder.exists():
        raise FileNotFoundError(f"no such folder: {str(root)!r}; check the path")
    if not folder.is_dir():
        raise NotADirectoryError(f"expected a folder of images, got a file: {str(root)!r}")
    return (Path(path) for path in walk_files(os.fspath(folder), on_error) if is_image_name(path))


def is_image_name(path: str) -> bool:
    """True if the name ends in one of `IMAGE_EXTENSIONS`, in either case."""
    return os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS


def walk_files(folder: str, on_error: Callable[[OSError], None] | None = None) -> Iterator[str]:
    """Paths of all files under a folder that are not hidden, in the order of `iter_image_files`.

    Args:
        folder: Folder to walk.
        on_error: As in `iter_image_files`.

    Returns:
        Paths that start with `folder`.
    """
    return _walk(folder, on_error, ())


def _walk(
    folder: str,
    on_error: Callable[[OSError], None] | None,
    inside: tuple[tuple[int, int], ...],
) -> Iterator[str]:
    try:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        # Windows file systems without inode numbers report 0; links are rare there.
        if identity in inside and status.st_ino != 0:
            return
        files, subfolders = _list_folder(folder)
    except OSError as error:
        if on_error is None:
            raise
        on_error(error)
        return
    yield from (os.path.join(folder, name) for name in files)
    del files
    for name in subfolders:
        yield from _walk(os.path.join(folder, name), on_error, (*inside, identity))


def _list_folder(folder: str) -> tuple[list[str], list[str]]:
    files: list[str] = []
    subfolders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            # Archives packed on macOS bring a shadow tree of resource forks beside the data.
            if not entry.name.startswith(".") and entry.name != "__MACOSX":
                (subfolders if entry.is_dir() else files).append(entry.name)
    files.sort()
    subfolders.sort()
    return files, subfolders


def _name_of(source: str | Path | BinaryIO) -> str:
    if isinstance(source, str | Path):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "<stream>"


def open_regular_file(path: str | Path) -> BinaryIO:
    """An open file that is neither empty nor anything that would be waited for.

    Args:
        path: The file.

    Raises:
        UnreadableImageError: It is no such file.
        OSError: It cannot be opened.
    """
    # Opening a named pipe or a terminal would wait for ever, so the type is asked first.
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise UnreadableImageError(os.fspath(path), "it is a folder, expected an image file")
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError(os.fspath(path), "it is not a regular file")
    if status.st_size == 0:
        raise UnreadableImageError(os.fspath(path), "the file is empty (zero bytes)")
    return open(path, "rb")


def _decode(stream: BinaryIO, path: str, min_size: int | None) -> DecodedImage:
    with pillow_warnings_ignored():
        image = Image.open(stream, formats=IMAGE_FORMATS)
    with image:
        width, height = image.size
        if width * height > MAX_IMAGE_PIXELS:
            raise ImageTooLargeError(
                path, f"{width} x {height} pixels, over the limit of {MAX_IMAGE_PIXELS:,} pixels"
            )
        image_format = image.format or ""
        if min_size is not None:
            image.draft(None, (min_size, min_size))
        # Pillow's TIFF reader looks at metadata, and so warns, while it decodes.
        quiet = pillow_warnings_ignored() if image_format == "TIFF" else nullcontext()
        with _truncated_files_refused(), quiet:
            image.load()
        rgb = _upright(to_rgb(image), exif_orientation(image))
    rgb.info = {}
    return DecodedImage(rgb, image_format)


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8 of a loaded image; 1 where the metadata is damaged, as in viewers.

    Args:
        image: From Pillow.
    """
    try:
        with pillow_warnings_ignored():
            value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as error:  # noqa: BLE001 - whatever a broken EXIF block raises
        del error
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _TRANSPOSE_BY_ORIENTATION.get(orientation)
    return image if method is None else image.transpose(method)


def why_unreadable(error: Exception) -> str:
    """What to tell of an image that could not be read.

    Args:
        error: What Pillow or the system raised.
    """
    if isinstance(error, UnidentifiedImageError):
        formats = ", ".join(IMAGE_FORMATS)
        return f"the content is no image, or of an unsupported kind (supported: {formats})"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.ENOENT:
            return "no such file"
        return os.strerror(error.errno)
    text = " ".join(str(error).split())
    if text.lstrip("-").isdigit():  # all that Pillow passes on from libtiff
        return f"the compressed data is damaged (decoder error {text})"
    return f"{text} ({type(error).__name__})" if text else type(error).__name__


# `warnings.catch_warnings` swaps process-wide state, so two threads inside it at once could leave
# the filters changed for good. Only headers are read under the lock.
_global_state_lock = threading.RLock()
_warnings_are_off = False


def ignore_pillow_warnings() -> None:
    """Lets this process ignore Pillow's warnings from now on, rather than around each file.

    For loader workers, where nothing else reads images: changing the filters and back takes two
    hundredths of the time of a photo, its whole augmentation included.
    """
    global _warnings_are_off
    warnings.filterwarnings("ignore", module=r"PIL\.")
    _warnings_are_off = True


def _renew_lock() -> None:
    global _global_state_lock
    _global_state_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    # A worker forked while another thread reads a header would wait for that thread for ever.
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def pillow_warnings_ignored() -> Iterator[None]:
    """Inside, Pillow's warnings about what it reads are not shown."""
    if _warnings_are_off:
        yield
        return
    with _global_state_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _truncated_files_refused() -> Iterator[None]:
    """Undoes, for one decoding, a `LOAD_TRUNCATED_IMAGES = True` set elsewhere in the process."""
    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        yield
        return
    with _global_state_lock:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = True
