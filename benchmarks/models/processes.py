"""Contestants in processes of their own, which take turns."""

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TypeVar

WARM_UP = 3

Who = TypeVar("Who", bound=Hashable)


def take_turns(
    prepare: Callable[[Who], Callable[[], object]], contestants: Sequence[Who], rounds: int
) -> dict[Who, list[float]]:
    """Seconds that each contestant's call takes, round after round.

    A process each, since the memory allocator is set for a whole process, and thread pools of
    several runtimes in one disturb each other. All wait for their turns, A B A B, so that a noisy
    neighbour disturbs all alike.

    Args:
        prepare: What makes a contestant's call, in its process; a function of a module.
        contestants: Whose turns they are.
        rounds: Calls of each that count.
    """
    seconds: dict[Who, list[float]] = {who: [] for who in contestants}
    with contextlib.ExitStack() as stack:
        links = {who: stack.enter_context(_started(prepare, who)) for who in contestants}
        for turn in range(rounds + 1):
            for who, link in links.items():
                link.send(True)
                taken = link.recv()
                if turn:  # the first only brings all back from their sleep
                    seconds[who].append(taken)
    return seconds


@contextlib.contextmanager
def _started(prepare: Callable[[Who], Callable[[], object]], who: Who) -> Iterator[Connection]:
    """A contestant's process, warmed up."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, prepare, who), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield ours
        ours.send(False)
        process.join()
    finally:
        process.kill()


def _work(link: Connection, prepare: Callable[[Who], Callable[[], object]], who: Who) -> None:
    """Calls once whenever told to, and says how many seconds it took."""
    call = prepare(who)
    for _ in range(WARM_UP):
        call()
    link.send(0.0)
    while link.recv():
        started = time.perf_counter()
        call()
        link.send(time.perf_counter() - started)
