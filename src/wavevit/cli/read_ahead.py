"""Work on the items of a lazy source, ahead of the reader and in order, with bounded memory."""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


_LOOK_UP_S = 0.5  # how long a wait goes on without looking whether it was interrupted


class ReadAhead(Generic[Item, Result]):
    """Threads that take items from a source and work on them before the reader asks.

    The source is read by a thread of its own, so a slow one (a pipe, a network folder) keeps no
    finished result waiting. At most `depth` items are taken that the reader has not got yet.

    Args:
        items: The source; what it raises is raised by `get` in its place.
        work: Called with each item, in a thread.
        num_threads: Threads that work, at least 1.
        depth: Number of items that may be ahead of the reader.
        interrupted: Set by a handler of Ctrl-C; `get` raises KeyboardInterrupt then, even if the
            one that the handler raised got lost in a destructor.
    """

    def __init__(
        self,
        items: Iterable[Item],
        work: Callable[[Item], Result],
        *,
        num_threads: int,
        depth: int,
        interrupted: threading.Event | None = None,
    ) -> None:
        self._interrupted = interrupted or threading.Event()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read-ahead")
        self._slots = threading.Semaphore(depth)
        self._queue: queue.SimpleQueue[Future[Result] | None] = queue.SimpleQueue()
        self._next: Future[Result] | None = None
        self._is_closed = False
        self._is_at_end = False
        # A daemon: waiting for input that never comes must not keep the process alive.
        threading.Thread(target=self._feed, args=(items, work), daemon=True).start()

    def __enter__(self) -> "ReadAhead[Item, Result]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, timeout_s: float | None = None) -> Result:
        """The next result.

        Args:
            timeout_s: Longest wait; None waits until there is one.

        Raises:
            Exception: What the source or the work on this item raised.
            TimeoutError: It is not there yet; a later call gets it.
            StopIteration: There are no more.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if self._is_at_end:
            raise StopIteration
        if self._next is None:
            self._next = self._wait_for_next(deadline)
            if self._next is None:
                self._is_at_end = True
                raise StopIteration
        future = self._next
        wait([future], None if deadline is None else max(0.0, deadline - time.monotonic()))
        if not future.done():
            raise TimeoutError
        self._next = None
        self._slots.release()
        return future.result()

    def _wait_for_next(self, deadline: float | None) -> Future[Result] | None:
        while True:
            left = math.inf if deadline is None else deadline - time.monotonic()
            try:
                return self._queue.get(timeout=max(0.0, min(left, _LOOK_UP_S)))
            except queue.Empty:
                if self._interrupted.is_set():
                    raise KeyboardInterrupt from None
                if left <= _LOOK_UP_S:
                    raise TimeoutError from None

    def close(self) -> None:
        """Stops taking items and waits for the work in hand; the rest is given up."""
        self._is_closed = True
        self._slots.release()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _feed(self, items: Iterable[Item], work: Callable[[Item], Result]) -> None:
        try:
            iterator = iter(items)
            while True:
                self._slots.acquire()
                if self._is_closed:
                    return
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                self._queue.put(self._pool.submit(work, item))
        except Exception as error:  # noqa: BLE001 - raised where the reader is
            failed: Future[Result] = Future()
            failed.set_exception(error)
            self._queue.put(failed)
        self._queue.put(None)


def batches(
    source: ReadAhead[Item, Result], size: int, *, max_wait_s: float
) -> Iterator[list[Result]]:
    """Results in groups: full ones while the source keeps up, else what has come in time.

    Args:
        source: Where results come from.
        size: Greatest number of results of a group.
        max_wait_s: Longest time that a result waits for others to join it.

    Yields:
        One or more results, in order.
    """
    group: list[Result] = []
    deadline = 0.0
    while True:
        try:
            group.append(source.get(max(0.0, deadline - time.monotonic()) if group else None))
        except StopIteration:
            break
        except TimeoutError:
            yield group
            group = []
            continue
        if len(group) == 1:
            deadline = time.monotonic() + max_wait_s
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
