"""Short marks of what a run reads, by which it knows other content when it is resumed."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path


def digest(pieces: Iterable[bytes]) -> str:
    """The start of a SHA-256 of pieces, each told from the next.

    Args:
        pieces: In order.
    """
    running = hashlib.sha256()
    for piece in pieces:
        running.update(piece + b"\0")
    return running.hexdigest()[:16]


def digest_names(names: Iterable[str]) -> str:
    """The same of names, which may be of files and so need not be UTF-8.

    Args:
        names: In order.
    """
    return digest(name.encode("utf-8", "surrogateescape") for name in names)


def file_pieces(path: Path) -> Iterator[bytes]:
    """The content of a model file, a part at a time.

    Args:
        path: Of the file, or of the run directory that it is the best network of.

    Yields:
        The parts in order.
    """
    with open(path / "best.safetensors" if path.is_dir() else path, "rb") as file:
        while piece := file.read(1 << 20):
            yield piece
