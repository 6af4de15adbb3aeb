"""What the tasks have in common: samples that are drawn, a validation set, the best network's file.

Legend: B samples of a batch.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from wavevit.data.samplers import TrainSampler
from wavevit.data.worker_failures import received
from wavevit.training.model_file import read_best, write_best
from wavevit.training.run_directory import RunDirectory


class Samples(Protocol):
    """What is trained on."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def sample_id(self, index: int) -> str:
        """Name of a sample."""
        ...


class DataTask:
    """Base of the tasks: draws the samples of each step, and keeps the best network.

    Args:
        train_set: What is trained on.
        card: How to rebuild and feed the network; a dataclass with "metrics".
        batch_size: Samples per process and forward pass.
        num_workers: Processes that decode and augment; 0 does so in the main process.
        seed: Seed of order and augmentation.
        repeats: How often a sample comes in a row, each time augmented anew.

    Attributes:
        num_samples: Samples of an epoch.
        left_out: Validation samples that cannot be read, and why.
        timeout_s: Longest wait for a worker of an evaluation's loader, seconds.
    """

    def __init__(
        self,
        train_set: Samples,
        card: Any,
        *,
        batch_size: int,
        num_workers: int,
        seed: int,
        repeats: int = 1,
    ) -> None:
        self.train_set = train_set
        self.card = card
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.repeats = repeats
        self.num_samples = len(train_set)
        self.left_out: dict[str, str] = {}
        self.timeout_s = 0.0

    def train_loader(
        self, sampler: TrainSampler, *, pin_memory: bool, timeout_s: float
    ) -> DataLoader[Any]:
        """Batches for the steps of the sampler.

        Args:
            sampler: Which samples make up each batch.
            pin_memory: Whether batches are copied to page-locked memory, for CUDA.
            timeout_s: Longest wait for a batch of the workers, seconds; 0 waits for ever.
        """
        raise NotImplementedError

    def train_batches(
        self, fabric: Fabric, *, start: int, stop: int, accumulate: int, timeout_s: float
    ) -> Iterator[Any]:
        """This process's batches of steps start..stop, on the device.

        Args:
            fabric: Device and processes.
            start: First step.
            stop: Step to stop before.
            accumulate: Batches per step.
            timeout_s: Longest wait for a loader's worker, seconds.

        Yields:
            The batches in order.

        Raises:
            LoaderError: A worker process died, or gave nothing for too long.
        """
        sampler = TrainSampler(
            self.num_samples,
            self.batch_size,
            seed=self.seed,
            start=start,
            stop=stop,
            accumulate=accumulate,
            repeats=self.repeats,
            rank=fabric.global_rank,
            num_processes=fabric.world_size,
        )
        loader = self.train_loader(
            sampler, pin_memory=fabric.device.type == "cuda", timeout_s=timeout_s
        )
        for batch in received(loader):
            yield batch.to(fabric.device)

    def sample_ids(self, indices: Tensor) -> list[str]:
        """Ids of training samples, for messages.

        Args:
            indices: int64 ``(B,)``.
        """
        return [self.train_set.sample_id(int(index)) for index in indices]

    def save_best(
        self, run: RunDirectory, state: dict[str, Tensor], metrics: dict[str, float]
    ) -> None:
        """Writes ``best.safetensors``.

        Args:
            run: Where.
            state: The network's weights, whole.
            metrics: Its results.
        """
        kept = {key: value for key, value in metrics.items() if key != "score"}
        write_best(run, state, replace(self.card, metrics=kept))

    def load_best(self, run: RunDirectory) -> dict[str, Tensor]:
        """The weights in ``best.safetensors``.

        Args:
            run: Where.

        Raises:
            ValueError: The file is gone or damaged.
        """
        return read_best(run)
