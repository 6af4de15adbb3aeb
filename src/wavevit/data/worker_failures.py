"""A loader's worker process that dies or falls silent, told from faults of the data."""

import re
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

# What torch says when a worker process has died or does not answer.
_WORKER_FAILURE = re.compile(r"DataLoader worker .*|DataLoader timed out.*|Pin memory thread .*")


class LoaderError(RuntimeError):
    """A loader's worker process died, or gave nothing for too long."""

    is_breakdown = True  # how the command line knows it


def received(loader: DataLoader[Any]) -> Iterator[Any]:
    """What a loader gives, with failures of its worker processes told from those of the data.

    Args:
        loader: Any.

    Yields:
        Its batches.

    Raises:
        LoaderError: A worker process died, or gave nothing for too long.
    """
    batches = iter(loader)
    while True:
        try:
            with worker_failures_explained():
                batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            if not loader.num_workers:
                raise
            # The shared memory of a process that has gone cannot be fetched. What a data set
            # raises in a worker says where it comes from.
            is_lost = isinstance(error, OSError | EOFError) and (
                "DataLoader worker process" not in str(error)
            )
            if is_lost:
                stop_watching_workers()
            # torch's frames and the error refer to each other and hold the iterator. Ended by the
            # garbage collector, an iterator waits seconds for each of its workers.
            traceback.clear_frames(error.__traceback__)
            if not is_lost:
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise _loader_error(f"its batch is lost ({reason})") from error
        yield batch


@contextmanager
def worker_failures_explained() -> Iterator[None]:
    """Inside, what torch raises for a dead or silent worker process comes as `LoaderError`.

    torch notices a death by a signal and may raise anywhere, so whoever works with a loader's
    batches is best inside as well.

    Raises:
        LoaderError: A worker process died, or gave nothing for too long.
    """
    try:
        yield
    except RuntimeError as error:
        failure = worker_failure(error)
        if failure is None:
            raise
        raise failure from error


def worker_failure(error: RuntimeError) -> LoaderError | None:
    """What an error says if it is torch's about a loader's worker process, else None.

    Args:
        error: Any.
    """
    text = " ".join(str(error).split())
    if not _WORKER_FAILURE.match(text):
        return None
    return _loader_error(text)


def _loader_error(text: str) -> LoaderError:
    reason = text.rstrip(" .")
    return LoaderError(
        f"a process that loads images has failed: {reason}. Memory may have run out (fewer "
        "workers need less)"
    )


def stop_watching_workers() -> None:
    """Keeps torch from raising once more, wherever the process then is, that a worker has died.

    To be called when that is known and the process is to end: the signal may come after the error
    that the lost worker caused.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
