"""How many of a known number are done: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def counter(total: int, doing: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Shows progress on standard error while the context lasts.

    Args:
        total: Number to be done.
        doing: Of the work, e.g. "packing".
        unit: What is counted, in the plural.

    Yields:
        A callback that takes how many more are done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeColumn

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(doing, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, start = 0, time.monotonic()
    last = start

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            seconds_left = (total - done) * (now - start) / done
            sys.stderr.write(f"{doing}: {done:,} of {total:,} {unit}, {seconds_left:,.0f} s left\n")
            sys.stderr.flush()

    yield advance
