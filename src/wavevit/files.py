"""Files that are either as they were or complete, whenever the program stops."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Gives a temporary name beside a file, which takes the file's place at the end.

    After an error the file is what it was, and the temporary one is gone.

    Args:
        path: File to write; an old one is replaced in one step.
        durable: Whether that holds for a power cut too: the content is on disk before the renaming.

    Yields:
        The temporary path, which starts with a dot and ends in ".partial".

    Raises:
        OSError: The file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        if durable:
            with open(partial, "r+b") as file:
                sync_file(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Refuses a place that no file can be written to, before hours of work for it.

    Args:
        path: File to be written, which need not exist.

    Raises:
        IsADirectoryError: It is a folder.
        FileNotFoundError: There is no folder for it.
        PermissionError: Nothing can be written into that folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"expected a file, got the folder {path}; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such folder for {path.name}: {path.parent}; create it first")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise PermissionError(
            f"cannot write {path.name} into {path.parent} ({error.strerror}); choose another folder"
        ) from error


def write_file(path: Path, content: bytes) -> None:
    """Writes a file that is as it was or complete, also after a power cut.

    Args:
        path: File to write; an old one is replaced in one step.
        content: Of the file.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """As `write_file`, in UTF-8; file names in the text that are not UTF-8 stay as they are.

    Args:
        path: File to write; an old one is replaced in one step.
        text: Of the file, with "\\n" between its lines.

    Raises:
        OSError: The file cannot be written.
    """
    write_file(path, text.encode("utf-8", "surrogateescape"))


def sync_file(file: IO[bytes]) -> None:
    """Waits until the content of an open file is on disk.

    Args:
        file: Open for writing.

    Raises:
        OSError: It cannot be written.
    """
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on disk.

    Args:
        folder: The folder.

    Raises:
        OSError: It cannot be written.
    """
    if os.name != "posix":  # elsewhere a folder cannot be opened for that
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
