"""Reading parts of files in a folder or at an fsspec URL, from any process or thread."""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.cached import WholeFileCacheFileSystem
from fsspec.implementations.local import LocalFileSystem

logger = logging.getLogger(__name__)

_MAX_OPEN_FILES = 64
_CONNECTIONS = 16


def is_url(path: object) -> bool:
    """True for a string that fsspec is to read: with "://", or "::" between chained parts."""
    return isinstance(path, str) and ("://" in path or "::" in path)


class ShardStore:
    """The files of one folder, or of one URL that plays the part of a folder.

    Files on local disk are read at an offset of a descriptor that is kept open. Files at a URL are
    read by range; with `simplecache::` or `filecache::` before it, whole files are copied to the
    cache's folder on first use, and read there.

    A store can be used in worker processes however they were started: what cannot cross over to
    another process is made anew in it.

    Args:
        location: Folder, or URL (see `is_url`).

    Raises:
        ValueError: If fsspec does not know the URL's protocol, or needs another package for it.
        OSError: If the other side cannot be reached.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.cache_folder: str | None = None
        """Where whole files are kept; None without such a cache."""
        self._folder: str | None = None
        if location.startswith(("file://", "local://")) and "::" not in location:
            self._folder = LocalFileSystem._strip_protocol(location)
        elif not is_url(location):
            self._folder = location
        self._forget()
        if self._folder is None:
            system, _ = self._connect()
            if isinstance(system, WholeFileCacheFileSystem):
                self.cache_folder = system.storage[-1]
                if system.storage_options.get("cache_storage", "TMP") == "TMP":
                    protocol = self._first_protocol()
                    logger.warning(
                        "copies of shards go to a temporary folder, and are gone when this process "
                        "ends; name a lasting one in FSSPEC_%s_CACHE_STORAGE",
                        protocol.upper(),
                    )

    def __getstate__(self) -> dict[str, Any]:
        kept = ("location", "cache_folder", "_folder")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def where(self, name: str) -> str:
        """Path or URL of a file, for messages."""
        if self._folder is not None:
            return os.path.join(self._folder, name)
        return f"{self.location.rstrip('/')}/{name}"

    def read(self, name: str, offset: int, size: int, file_bytes: int) -> bytes:
        """A part of a file; fewer bytes where the file ends before.

        Args:
            name: Of the file.
            offset: Of the first byte.
            size: Number of bytes.
            file_bytes: Size of the whole file as it should be; a cached copy of another size is
                replaced.

        Returns:
            The bytes.

        Raises:
            OSError: If the file is not there or cannot be read.
        """
        if self._folder is not None or self.cache_folder is not None:
            return self._read_local(name, offset, size, file_bytes)
        with _clear_errors(self.where(name)):
            system, root = self._connect()
            part: bytes = system.cat_file(_join(root, name), start=offset, end=offset + size)
        return part

    def read_whole(self, name: str) -> bytes:
        """A whole file as it is now, past any cache.

        Args:
            name: Of the file.

        Raises:
            FileNotFoundError: If there is none.
            OSError: If it cannot be read.
        """
        if self._folder is not None:
            with open(os.path.join(self._folder, name), "rb") as file:
                return file.read()
        with _clear_errors(self.where(name)):
            system, root = self._connect()
            content: bytes = _behind_cache(system).cat_file(_join(root, name))
        return content

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Size in bytes of each file; -1 where there is none, None where the server does not say.

        Args:
            names: Of the files.

        Raises:
            OSError: If the other side cannot be reached.
        """
        if self._folder is not None:
            return [_local_size(os.path.join(self._folder, name)) for name in names]
        system, root = self._connect()
        system = _behind_cache(system)
        listed = _listed_sizes(system, root)

        def size(name: str) -> int | None:
            if listed.get(name) is not None:
                return listed[name]
            with _clear_errors(self.where(name)):
                try:
                    found: int | None = system.info(_join(root, name)).get("size")
                except FileNotFoundError:
                    return -1
            return found

        with ThreadPoolExecutor(_CONNECTIONS, "shard-sizes") as pool:
            return list(pool.map(size, names))

    def reopen(self) -> None:
        """Lets go of open files: what was replaced meanwhile is then seen."""
        self._open.cache_clear()

    def _forget(self) -> None:
        self._open = lru_cache(_MAX_OPEN_FILES)(_Descriptor)
        # By process: the connections of a parent do not work in its forks, and closing them there
        # would disturb it, so a fork keeps them as they are and makes its own.
        self._systems: dict[int, tuple[Any, str]] = {}

    def _connect(self) -> tuple[Any, str]:
        """The file system of this process, and the path in it."""
        found = self._systems.get(os.getpid())
        if found is None:
            options: dict[str, Any] = {}
            if self.cache_folder is not None:
                # Without a folder of its own each process would make one, and fill it.
                options[self._first_protocol()] = {"cache_storage": self.cache_folder}
            with _clear_errors(self.location):
                found = url_to_fs(self.location, **options)
            self._systems[os.getpid()] = found
        return found

    def _first_protocol(self) -> str:
        return self.location.partition("::")[0].partition("://")[0]

    def _read_local(self, name: str, offset: int, size: int, file_bytes: int) -> bytes:
        path = self._local_path(name, file_bytes)
        if not hasattr(os, "pread"):  # Windows
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(size)
        descriptor = self._open(path)
        parts = []
        while size > 0 and (part := os.pread(descriptor.number, size, offset)):
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _local_path(self, name: str, file_bytes: int) -> str:
        """Path of a file on local disk, copied to the cache's folder if need be."""
        if self._folder is not None:
            return os.path.join(self._folder, name)
        system, root = self._connect()
        remote = _join(root, name)
        paths = [os.path.join(folder, system.hash_name(remote)) for folder in system.storage]
        for path in paths:
            if _local_size(path) == file_bytes:
                return path
        path = paths[-1]  # the folder that is written to
        with _locked(f"{path}.lock"):
            if _local_size(path) != file_bytes:
                # fsspec would write to the final name while other processes read it already.
                part = f"{path}.part"
                with _clear_errors(self.where(name)):
                    system.fs.get_file(remote, part)
                os.replace(part, path)
        return path


class _Descriptor:
    """An open file; closed when nobody reads from it any more, also in other threads."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def _join(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}"


def _behind_cache(system: Any) -> Any:
    return system.fs if isinstance(system, WholeFileCacheFileSystem) else system


def _local_size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return -1


def _listed_sizes(system: Any, root: str) -> dict[str, int | None]:
    """Sizes by name from one request, where the server gives lists; else nothing."""
    try:
        entries = system.ls(root, detail=True)
    except Exception:  # noqa: BLE001 - of any kind; asking for each file tells what is wrong
        return {}
    return {entry["name"].rpartition("/")[2]: entry.get("size") for entry in entries}


@contextmanager
def _clear_errors(where: str) -> Iterator[None]:
    """Any failure of the libraries behind fsspec becomes an OSError, a missing one a ValueError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except ImportError as error:
        raise ValueError(f"cannot read {where!r}: {error} (with pip, then try again)") from error
    except ValueError as error:
        raise ValueError(f"cannot read {where!r}: {error}") from error
    except Exception as error:
        # Each library has its own, such as botocore's NoCredentialsError.
        text = " ".join(str(error).split()) or "no further reason given"
        raise OSError(f"cannot read {where!r}: {text} ({type(error).__name__})") from error


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Holds other processes and threads off, as long as all of them ask for the same file."""
    try:
        import fcntl
    except ImportError:  # Windows: the same file may then be fetched twice
        yield
        return
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
