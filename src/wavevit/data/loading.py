"""What the loaders of all tasks share: seeded samples, replaced files, worker processes."""

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from wavevit.data.images import UnreadableImageError, ignore_pillow_warnings
from wavevit.data.samplers import EvalSampler
from wavevit.data.worker_failures import received

MAX_REPLACEMENTS = 100

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
B = TypeVar("B")


class SampleSource(Protocol[T_co]):
    """Samples addressed by index, each of which may turn out unreadable."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def sample_id(self, index: int) -> str:
        """Unique name of a sample."""
        ...

    def load(self, index: int) -> T_co:
        """The sample; raises `UnreadableImageError` for a damaged file, which is replaced.

        What is wrong and not damaged, such as a mask with unknown labels, is another ValueError and
        stops the run.
        """
        ...


def load_or_replace(source: SampleSource[T], index: int) -> tuple[T, int, dict[str, str]]:
    """A sample, or another one where it cannot be read, drawn by the global generator.

    Args:
        source: The samples.
        index: Of the wanted one.

    Returns:
        What was loaded, its index, and what was tried before: sample id to reason.

    Raises:
        ValueError: A hundred samples in a row cannot be read.
    """
    unreadable: dict[str, str] = {}
    for _ in range(MAX_REPLACEMENTS):
        try:
            return source.load(index), index, unreadable
        except UnreadableImageError as error:
            unreadable[source.sample_id(index)] = str(error)
            index = random.randrange(len(source))
    example = next(iter(unreadable.values()))
    raise ValueError(
        f"{MAX_REPLACEMENTS} images in a row could not be read, the last ones such as: "
        f"{example}; list them all with `wavevit check-data`"
    )


def load_or_explain(source: SampleSource[T], index: int) -> T | dict[str, str]:
    """A sample, or ``{id: reason}`` where it cannot be read: evaluation does not replace it.

    Args:
        source: The samples; none of them is a dictionary.
        index: Of the wanted one.
    """
    try:
        return source.load(index)
    except UnreadableImageError as error:
        return {source.sample_id(index): str(error)}


class _WhyUnreadable(Dataset["tuple[int, dict[str, str]] | None"]):
    """None for a sample that can be loaded, or its index and ``{id: reason}``."""

    def __init__(self, source: SampleSource[Any]) -> None:
        self.source = source

    def __getitem__(self, index: int) -> "tuple[int, dict[str, str]] | None":
        sample = load_or_explain(self.source, index)
        return (index, sample) if isinstance(sample, dict) else None


def find_unreadable(
    source: SampleSource[Any],
    *,
    num_workers: int,
    rank: int = 0,
    num_processes: int = 1,
    timeout_s: float = 0,
) -> dict[int, dict[str, str]]:
    """The samples of this process's share that cannot be loaded: index to ``{id: reason}``.

    Args:
        source: The samples.
        num_workers: Processes that load; 0 loads in this one.
        rank: Index of this process.
        num_processes: Number of processes.
        timeout_s: Longest wait for a worker, seconds; 0 waits for ever.

    Raises:
        LoaderError: A process that loads images died.
    """
    loader = batches_of(
        _WhyUnreadable(source),
        EvalSampler(len(source), 16, rank=rank, num_processes=num_processes),
        list,
        num_workers=num_workers,
        pin_memory=False,
        timeout_s=timeout_s,
    )
    return {found[0]: found[1] for batch in received(loader) for found in batch if found}


def collate_strictly(
    samples: "list[T | dict[str, str]]", collate: Callable[[list[T]], B]
) -> "B | dict[str, str]":
    """A batch, or, if any sample is unreadable, all such ids and reasons.

    Args:
        samples: Of an evaluation; an unreadable one is ``{id: reason}``.
        collate: Makes a batch of readable ones.
    """
    unreadable: dict[str, str] = {}
    readable: list[T] = []
    for sample in samples:
        if isinstance(sample, dict):
            unreadable.update(sample)
        else:
            readable.append(sample)
    return unreadable or collate(readable)


def batches_of(
    samples: Dataset[Any],
    sampler: "Sampler[Any] | Any",
    collate: Callable[[list[Any]], Any],
    *,
    num_workers: int,
    pin_memory: bool,
    timeout_s: float,
    prefetch_factor: int = 2,
) -> DataLoader[Any]:
    """A loader with our settings of worker processes and generators.

    Args:
        samples: Asked for what the sampler gives.
        sampler: Lists of requests, one list per batch.
        collate: Makes a batch of samples.
        num_workers: Worker processes; 0 loads in this one.
        pin_memory: Whether batches are copied to page-locked memory, for CUDA.
        timeout_s: Longest wait for a batch of the workers, seconds; 0 waits for ever.
        prefetch_factor: Batches that each worker makes ahead.
    """
    return DataLoader(
        samples,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_worker,
        # Its own generator: building an iterator must not advance the global one, or a resumed run
        # would draw other numbers than an uninterrupted one.
        generator=torch.Generator().manual_seed(0),
        prefetch_factor=prefetch_factor if num_workers else None,
        timeout=timeout_s if num_workers else 0,
    )


def eval_batches_of(
    samples: Dataset[Any],
    num_samples: int,
    collate: Callable[[list[Any]], Any],
    *,
    batch_size: int,
    num_workers: int,
    rank: int,
    num_processes: int,
    pin_memory: bool,
    timeout_s: float,
) -> DataLoader[Any]:
    """Every sample once and in order, nothing padded; each process takes its share of the batches.

    Args:
        samples: By index; an unreadable one is ``{id: reason}``.
        num_samples: How many there are.
        collate: Makes a batch of readable samples.
        batch_size: Samples per batch; the last one may be smaller.
        num_workers: Worker processes; 0 loads in this one.
        rank: Index of this process.
        num_processes: Number of processes.
        pin_memory: Whether batches are copied to page-locked memory, for CUDA.
        timeout_s: Longest wait for a batch of the workers, seconds; 0 waits for ever.

    Returns:
        The loader, for `strict_batches`.
    """
    return batches_of(
        samples,
        EvalSampler(num_samples, batch_size, rank=rank, num_processes=num_processes),
        partial(collate_strictly, collate=collate),
        num_workers=num_workers,
        pin_memory=pin_memory,
        timeout_s=timeout_s,
    )


def strict_batches(batches: DataLoader[Any]) -> Iterator[Any]:
    """The batches of an evaluation; stops at the first unreadable image.

    Args:
        batches: Of `eval_batches_of`.

    Yields:
        The batches in order.

    Raises:
        ValueError: An image cannot be read: evaluation does not skip.
        LoaderError: A worker process died.
    """
    for batch in received(batches):
        if isinstance(batch, dict):
            reason = next(iter(batch.values()))
            raise ValueError(f"evaluation does not skip images, and one cannot be read: {reason}")
        yield batch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the generators of ``random``, numpy and torch inside the context.

    In a worker process they are left seeded: nothing else draws from them there.

    Args:
        seed: 64 bits.
    """
    in_worker = get_worker_info() is not None
    saved = None if in_worker else (random.getstate(), np.random.get_state(), torch.get_rng_state())
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if saved is not None:
            random.setstate(saved[0])
            np.random.set_state(saved[1])
            torch.set_rng_state(saved[2])


def _prepare_worker(worker: int) -> None:
    torch.set_num_threads(1)
    ignore_pillow_warnings()
    # Ctrl-C and job managers signal every process of a run at once. The main one decides what
    # happens; it still needs batches while it saves. A worker ends when its parent does.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
