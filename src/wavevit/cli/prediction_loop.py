"""What prediction does for any task: lists images, writes records, counts failures."""

import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

MAX_WAIT_S = 1.0
"""A result waits no longer for its batch to fill up: the first one comes at once, and a slow source
is followed as it goes."""

_SECONDS_BETWEEN_LINES = 10.0


class Outcome(Protocol):
    """What became of an image."""

    @property
    def path(self) -> str:
        """As given."""
        ...

    @property
    def error(self) -> str | None:
        """Why there is nothing; None when there is."""
        ...


Record = TypeVar("Record", bound=Outcome)
Written = TypeVar("Written", contravariant=True)


class Writer(Protocol[Written]):
    """Writes one record after the other."""

    def write(self, record: Written) -> None:
        """Writes a record completely."""
        ...


class Drawer(Protocol):
    """Draws one record after the other."""

    def draw(self, record: Any) -> None:
        """Writes the pictures of a record that has no error."""
        ...


@dataclass
class Counts:
    """How it went.

    Attributes:
        images: Number of records.
        failures: Number of things that went wrong, each reported.
        unit: What a record is of, in the plural.
    """

    images: int = 0
    failures: int = 0
    unit: str = "images"
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, message: str) -> None:
        """Counts and reports a failure.

        Args:
            message: What went wrong.
        """
        with self._lock:  # folders are listed in a thread of their own
            self.failures += 1
        self.say(message)

    def say_sum(self) -> None:
        """Writes how far it is."""
        self.say(f"{self.images:,} {self.unit} done, {self.failures:,} failures")

    def say(self, message: str) -> None:
        """Writes one line to standard error.

        Args:
            message: Any text.
        """
        sys.stderr.write(f"wavevit predict: {' '.join(message.split())}\n")
        sys.stderr.flush()


class Pace:
    """Says from time to time how far it is.

    Args:
        counts: What to say.
        is_silent: Whether results show by themselves how far it is.
    """

    def __init__(self, counts: Counts, *, is_silent: bool) -> None:
        self._counts = counts
        self._is_silent = is_silent
        self._last = time.monotonic()

    def tick(self) -> None:
        """Says it, if it is time."""
        if not self._is_silent and time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._counts.say_sum()


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, besides raising KeyboardInterrupt as ever.

    Yields:
        The event.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def handle(number: int, frame: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


def listed(images: Sequence[str], null: bool, counts: Counts) -> Iterator[str]:
    """Paths of the images, as they are asked for; folders that cannot be listed are failures.

    Args:
        images: Files, folders, patterns, or "-".
        null: The list on standard input is separated by NUL characters.
        counts: Takes the failures.
    """
    from wavevit.cli.image_paths import iter_paths

    def unlisted(error: OSError) -> None:
        counts.fail(f"cannot list the folder {error.filename!r}: {error.strerror}")

    return iter_paths(images, null=null, on_error=unlisted)


def write_all(
    batches: Iterable[Sequence[Record]],
    writer: Writer[Record],
    pictures: Drawer | None,
    num_workers: int,
    counts: Counts,
    *,
    writes_to_stdout: bool,
) -> None:
    """Writes records and draws pictures, and says from time to time how far it is.

    Args:
        batches: Records, in groups.
        writer: Of the records.
        pictures: Of the images without error; None draws none.
        num_workers: Threads that draw.
        counts: Of images and failures.
        writes_to_stdout: Whether results show by themselves how far it is.
    """
    from concurrent.futures import ThreadPoolExecutor

    pace = Pace(counts, is_silent=writes_to_stdout)
    with ThreadPoolExecutor(num_workers) as pool:
        for records in batches:
            for record in records:
                writer.write(record)
                counts.images += 1
                if record.error is not None:
                    counts.fail(f"cannot read {record.path!r}: {record.error}")
            if pictures is not None:
                drawn = [record for record in records if record.error is None]
                for error in pool.map(lambda record: _draw(pictures, record), drawn):
                    if error is not None:
                        counts.fail(error)
            pace.tick()


def _draw(pictures: Drawer, record: Outcome) -> str | None:
    """Writes the picture of a record; returns what went wrong."""
    try:
        pictures.draw(record)
    except (OSError, ValueError) as error:
        return f"cannot draw {record.path!r}: {error}"
    return None
