"""Which of many files are there, from listing each folder once; and text files that list them."""

import os
from pathlib import Path


class FileListing:
    """Tells whether files exist; a network drive is asked once per folder, not once per file."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def names(self, folder: str | Path) -> frozenset[str]:
        """Names of all files and folders in a folder; none if it cannot be listed.

        Args:
            folder: The folder.
        """
        key = os.fspath(folder)
        if key not in self._names:
            try:
                self._names[key] = frozenset(os.listdir(folder))
            except OSError:
                self._names[key] = frozenset()
        return self._names[key]

    def has(self, path: str | Path) -> bool:
        """Whether a file is there.

        Args:
            path: Of the file.
        """
        folder, name = os.path.split(path)
        # The name may be spelled otherwise where the file system ignores case.
        return name in self.names(folder or ".") or os.path.exists(path)


def relative_path(path: Path, root: Path) -> str:
    """The posix path relative to a folder; the whole path where it is not in that folder.

    Args:
        path: Of a file.
        root: The folder.
    """
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def text_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without blanks around them.

    Args:
        path: Of the file, UTF-8.

    Raises:
        ValueError: If it is no such text.
        OSError: If it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x}"
        raise ValueError(f"{path}: expected UTF-8 text, got byte {byte}") from error
    return [line.strip() for line in lines if line.strip()]
