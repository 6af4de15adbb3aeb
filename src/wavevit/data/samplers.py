"""Which samples make up each step: seeded, deterministic, resumable at any step."""

from collections.abc import Iterator

import numpy as np

SampleRequest = tuple[int, int]
"""Index of a sample and the seed of its augmentation."""


class TrainSampler:
    """Batches of sample requests for a range of steps; a DataLoader's ``batch_sampler``.

    The samples form one endless stream: a new permutation per epoch, nothing dropped in between,
    so every sample is seen once per epoch and a step may span two. A step takes the next
    ``batch_size * accumulate * num_processes`` of the stream and deals them out, one by one, to
    ``accumulate * num_processes`` batches; pass a of process r takes batch
    ``a * num_processes + r``. So neither the samples of a step nor those of a batch depend on
    where a run was interrupted or on whether batches run side by side or one after the other, and
    the copies of repeated augmentation lie in different batches.

    Args:
        num_samples: Samples of the data set.
        batch_size: Samples per process and forward pass.
        seed: Seed of order and augmentation.
        start: First step to give.
        stop: Step to stop before.
        accumulate: Batches per step and process.
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
        accumulate: int = 1,
        repeats: int = 1,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        if num_samples < 1:
            raise ValueError("the training set is empty")
        for name, count in (
            ("batch_size", batch_size),
            ("accumulate", accumulate),
            ("repeats", repeats),
        ):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if not 0 <= rank < num_processes:
            raise ValueError(f"expected a rank in [0, {num_processes}), got {rank}")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.stop = stop
        self.accumulate = accumulate
        self.repeats = repeats
        self.rank = rank
        self.num_processes = num_processes

    def __len__(self) -> int:
        return max(self.stop - self.start, 0) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        num_batches = self.accumulate * self.num_processes
        per_step = self.batch_size * num_batches
        orders: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}
        for step in range(self.start, self.stop):
            first_epoch = step * per_step // self.num_samples
            orders = {epoch: order for epoch, order in orders.items() if epoch >= first_epoch}
            for batch in range(self.rank, num_batches, self.num_processes):
                requests: list[SampleRequest] = []
                for position in range(step * per_step + batch, (step + 1) * per_step, num_batches):
                    epoch, place = divmod(position, self.num_samples)
                    if epoch not in orders:
                        orders[epoch] = self.epoch_order(epoch)
                    requests.append((int(orders[epoch][place]), mix_seeds(self.seed, position)))
                yield requests

    def epoch_order(self, epoch: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """Sample indices of an epoch in order, int64 ``(num_samples,)``.

        Args:
            epoch: From 0.
        """
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
        return np.repeat(order, self.repeats)[: self.num_samples].astype(np.int64)


class EvalSampler:
    """Whole batches in order, dealt out to the processes; a DataLoader's ``batch_sampler``.

    A batch holds the same samples for any number of processes, and nothing is padded: so are the
    results of every sample the same, to the last bit.

    Args:
        num_samples: Samples of the data set.
        batch_size: Samples per batch; the last one may be smaller.
        rank: Index of this process.
        num_processes: Number of processes.
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, rank: int = 0, num_processes: int = 1
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.rank = rank
        self.num_processes = num_processes

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[list[int]]:
        for start in self._starts():
            yield list(range(start, min(start + self.batch_size, self.num_samples)))

    def _starts(self) -> range:
        step = self.batch_size * self.num_processes
        return range(self.rank * self.batch_size, self.num_samples, step)


def mix_seeds(seed: int, position: int) -> int:
    """A 64-bit number that differs for every seed and position (the splitmix64 finaliser).

    Args:
        seed: Of the run.
        position: Of a sample in the stream, or of whatever needs a seed of its own.
    """
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)
