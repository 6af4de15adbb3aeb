"""What the tasks have in common: samples that are drawn, a validation set, the best network's file.

Legend: B samples of a batch.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wavevit.data.loading import SampleSource
from wavevit.data.samplers import TrainSampler
from wavevit.data.worker_failures import received
from wavevit.training.model_file import read_best, write_best
from wavevit.training.run_directory import RunDirectory
from wavevit.training.validation_check import check_images

Source = TypeVar("Source", bound=SampleSource[Any])
Source_co = TypeVar("Source_co", bound=SampleSource[Any], covariant=True)


class Splits(Protocol[Source_co]):
    """What a run trains on and what it is measured on."""

    @property
    def train(self) -> Source_co:
        """Images to train on."""
        ...

    @property
    def val(self) -> Source_co:
        """Images to measure on."""
        ...

    @property
    def held_out(self) -> bool:
        """Whether we drew `val` ourselves."""
        ...

    def keep_validation(self, kept: NDArray[np.int64]) -> "Splits[Source_co]":
        """The splits with some of the validation images only, by index."""
        ...


class DataTask(Generic[Source]):
    """Base of the tasks: checks the data, draws each step's samples, keeps the best network.

    Args:
        splits: What is trained on and measured on.
        card: How to rebuild and feed the network; a dataclass with "metrics".
        batch_size: Samples per process and forward pass.
        num_workers: Processes that decode and augment; 0 does so in the main process.
        seed: Seed of order and augmentation.
        repeats: How often a sample comes in a row, each time augmented anew.

    Attributes:
        tensor_part: Name of the submodule that takes and returns nothing but tensors; "" is the
            network itself.
        splits: What is trained on and measured on, but for what is left out.
        val_set: Images that evaluations measure on.
        num_samples: Samples of an epoch.
        left_out: Validation samples that cannot be read, and why.
        timeout_s: Longest wait for a worker of an evaluation's loader, seconds.
    """

    tensor_part: ClassVar[str] = ""
    splits: Splits[Source]
    val_set: Source
    num_samples: int
    left_out: dict[str, str]
    timeout_s: float

    def __init__(
        self,
        splits: Splits[Source],
        card: Any,
        *,
        batch_size: int,
        num_workers: int,
        seed: int,
        repeats: int = 1,
    ) -> None:
        self.splits = splits
        self.val_set = splits.val
        self.card = card
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.repeats = repeats
        self.num_samples = len(splits.train)
        self.left_out = {}
        self.timeout_s = 0.0

    @property
    def val_inputs(self) -> SampleSource[Any]:
        """The validation images as evaluations read them."""
        return self.val_set

    def check_validation_set(self, fabric: Fabric, timeout_s: float = 0) -> None:
        """Reads all validation data once, so that a run does not fail at its first evaluation.

        Images of a split that we drew ourselves and that cannot be read are left out of it, and
        stand in `left_out`. Each process reads a share.

        Args:
            fabric: The processes.
            timeout_s: Longest wait for a loader's worker, seconds; 0 waits for ever.

        Raises:
            ValueError: An image of the user's own validation split cannot be read.
            LoaderError: A process that loads images died.
        """
        self.timeout_s = timeout_s
        kept, self.left_out = check_images(
            fabric,
            self.val_inputs,
            may_leave_out=self.splits.held_out,
            num_workers=self.num_workers,
            timeout_s=timeout_s,
        )
        if self.left_out:
            self.splits = self.splits.keep_validation(np.array(kept))
            self.val_set = self.splits.val

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

    def compiled_part(self, model: nn.Module) -> nn.Module:
        """The part of a network that takes and returns nothing but tensors.

        Detectors and segmenters keep it apart, from what comes after and from their losses; a
        classifier is all of it.

        Args:
            model: As `build_model` returned it.
        """
        return model.get_submodule(self.tensor_part)

    def sample_ids(self, indices: Tensor) -> list[str]:
        """Ids of training samples, for messages.

        Args:
            indices: int64 ``(B,)``.
        """
        return [self.splits.train.sample_id(int(index)) for index in indices]

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
