"""Which samples make up each step: seeded, deterministic, resumable at any step."""

from collections.abc import Iterator

import numpy as np

SampleRequest = tuple[int, int]
"""Index of a sample and the seed of its augmentation."""


class TrainSampler:
    """Batches of sample requests for a range of steps; a DataLoader's ``batch_sampler``.

    The samples form one endless stream: a new permutation per epoch, nothing dropped in between,
    so every sample is seen once per epoch and a batch may span two. Step s takes the s-th run of
    ``batch_size * num_processes`` from the stream, each process every ``num_processes``-th of it:
    the order does not depend on where a run was interrupted or on the number of processes.

    Args:
        num_samples: Samples of the data set.
        batch_size: Samples per process and batch.
        seed: Seed of order and augmentation.
        start: First batch to give.
        stop: Batch to stop before.
        repeats: Repeated augmentation: each sample this many times in a row, over an epoch of
            unchanged length (Hoffer et al. 2020).
        rank: Index of this process.
        num_processes: Number of processes.

    Raises:
        ValueError: No samples, or a count that is not positive.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int,
        start: int,
        stop: int,
        repeats: int = 1,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        if num_samples < 1:
            raise ValueError("the training set is empty")
        if batch_size < 1 or repeats < 1:
            raise ValueError(
                f"batch_size and repeats must be at least 1, got {batch_size} and {repeats}"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.stop = stop
        self.repeats = repeats
        self.rank = rank
        self.num_processes = num_processes

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        total = self.batch_size * self.num_processes
        epoch, order = -1, np.empty(0, np.int64)
        for batch in range(self.start, self.stop):
            requests: list[SampleRequest] = []
            for position in range(
                batch * total + self.rank, (batch + 1) * total, self.num_processes
            ):
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    order = self.epoch_order(epoch)
                index = int(order[position % self.num_samples])
                requests.append((index, _mix(self.seed, position)))
            yield requests

    def epoch_order(self, epoch: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """Sample indices of an epoch in order, int64 ``(num_samples,)``.

        Args:
            epoch: From 0.
        """
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
        return np.repeat(order, self.repeats)[: self.num_samples].astype(np.int64)


def _mix(seed: int, position: int) -> int:
    """A 64-bit number that differs for every seed and position (the splitmix64 finaliser)."""
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)
