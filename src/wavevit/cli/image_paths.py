"""Images named on the command line: files, folders, patterns and lists on standard input."""

import glob
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from wavevit.data.images import IMAGE_EXTENSIONS, is_image_name, iter_image_files

STDIN = "-"
_CHUNK = 65536  # bytes


def check_arguments(arguments: Sequence[str]) -> None:
    """Finds out before any work whether every argument names something.

    Args:
        arguments: Files, folders, patterns, or "-".

    Raises:
        FileNotFoundError: No such file or folder, or a pattern that fits no image.
        ValueError: No arguments, or a folder without images.
    """
    if not arguments:
        raise ValueError(
            "no images given; name files, folders or quoted patterns, or - for a list on stdin"
        )
    if list(arguments).count(STDIN) > 1:
        raise ValueError("- (a list on stdin) can be given once only")
    for argument in arguments:
        if argument == STDIN or os.path.isfile(argument):
            continue
        if os.path.isdir(argument):
            # One image is enough to know; listing all would keep the first result waiting.
            if next(iter(iter_image_files(argument, on_error=_ignore)), None) is None:
                raise ValueError(
                    f"no images in the folder {argument!r} "
                    f"(looked for {' '.join(sorted(IMAGE_EXTENSIONS))})"
                )
        elif not os.path.lexists(argument):
            if not glob.has_magic(argument):
                raise FileNotFoundError(f"no such file or folder: {argument!r}")
            if next(_matches(argument), None) is None:
                raise FileNotFoundError(f"the pattern {argument!r} fits no image file")


def iter_paths(
    arguments: Sequence[str],
    *,
    null: bool = False,
    on_error: Callable[[OSError], None] | None = None,
    stdin: IO[Any] | None = None,
) -> Iterator[str]:
    """Paths of the images, one by one, in the order of the arguments.

    A file that is named is taken whatever its extension; folders (recursively) and patterns give
    the files with an image's extension.

    Args:
        arguments: Files, folders, patterns, or "-".
        null: The list on standard input is separated by NUL, not by line ends.
        on_error: Called with the error for a subfolder that cannot be listed.
        stdin: Where "-" reads; the process's own when None.

    Yields:
        Paths as given, or below the folder as given.
    """
    for argument in arguments:
        if argument == STDIN:
            yield from read_list(sys.stdin if stdin is None else stdin, b"\0" if null else b"\n")
        elif os.path.isdir(argument):
            for path in iter_image_files(argument, on_error=on_error):
                yield os.fspath(path)
        elif not os.path.lexists(argument) and glob.has_magic(argument):
            yield from _matches(argument)
        else:
            yield argument


def read_list(stream: IO[Any], separator: bytes) -> Iterator[str]:
    """Paths of a list as soon as each is complete; empty ones are skipped.

    Args:
        stream: Text or binary stream.
        separator: Byte between paths.

    Yields:
        Paths, undecodable bytes kept as `os.fsdecode` does.
    """
    rest = b""
    for chunk in _chunks(stream):
        *complete, rest = (rest + chunk).split(separator)
        yield from _decoded(complete, separator)
    yield from _decoded([rest], separator)


def base_folder(arguments: Sequence[str]) -> str:
    """The folder, absolute, that drawn pictures keep their places relative to.

    It is the nearest one that holds everything named; lists count as the current folder.

    Args:
        arguments: Files, folders, patterns, or "-".
    """
    roots = [os.path.abspath(root) for root in map(_root, arguments)]
    try:
        return os.path.commonpath(roots)
    except ValueError:  # several drives
        return os.getcwd()


def _root(argument: str) -> str:
    if argument == STDIN:
        return "."
    if os.path.isdir(argument):
        return argument
    if not os.path.lexists(argument) and glob.has_magic(argument):
        parts = argument.split("/" if os.sep == "/" else os.sep)
        plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
        return os.sep.join(plain) or (os.sep if argument.startswith(os.sep) else ".")
    return os.path.dirname(argument) or "."


def _matches(pattern: str) -> Iterator[str]:
    paths = (path for path in glob.iglob(pattern, recursive=True) if is_image_name(path))
    # Sorted, as a shell does: the order of a folder's entries differs between machines. The names
    # of one pattern are small; contents are not held.
    return (path for path in sorted(paths) if not os.path.isdir(path))


def _chunks(stream: IO[Any]) -> Iterator[bytes]:
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):  # not a real file, as in tests
        data = stream.read()
        yield data if isinstance(data, bytes) else os.fsencode(data)
        return
    # Past Python's own buffer: a thread that waits inside its lock makes the interpreter abort when
    # the process ends.
    while chunk := os.read(descriptor, _CHUNK):
        yield chunk


def _decoded(names: Sequence[bytes], separator: bytes) -> Iterator[str]:
    for name in names:
        name = name.removesuffix(b"\r") if separator == b"\n" else name
        if name:
            yield os.fsdecode(name)


def _ignore(error: OSError) -> None:
    del error  # the walk itself reports it
