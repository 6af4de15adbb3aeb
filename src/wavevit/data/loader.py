"""From a data set to batches of tensors, with unreadable files accounted for."""

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from wavevit.data.classification import ClassificationDataset
from wavevit.data.images import UnreadableImageError
from wavevit.data.samplers import SampleRequest, TrainSampler
from wavevit.data.transforms import Transform

MAX_REPLACEMENTS = 100


@dataclass
class Sample:
    """One image as the network takes it.

    Attributes:
        image: float32 ``(3, H, W)``, normalised.
        label: Class index.
        index: Index in the data set.
        unreadable: Files that were tried before this one: sample id to reason.
    """

    image: Tensor
    label: int
    index: int
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass
class Batch:
    """Samples side by side.

    Attributes:
        images: float32 ``(B, 3, H, W)``, normalised.
        labels: int64 ``(B,)``.
        indices: Indices in the data set, int64 ``(B,)``.
        unreadable: Files that could not be read on the way here: sample id to reason.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: dict[str, str]

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; called by the DataLoader."""
        return Batch(
            self.images.pin_memory(), self.labels.pin_memory(), self.indices, self.unreadable
        )


def collate(samples: list[Sample]) -> Batch:
    """A batch of samples.

    Args:
        samples: At least one, all of one size.
    """
    unreadable: dict[str, str] = {}
    for sample in samples:
        unreadable.update(sample.unreadable)
    return Batch(
        torch.stack([sample.image for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
        torch.tensor([sample.index for sample in samples]),
        unreadable,
    )


class TrainView(Dataset[Sample]):
    """Augmented samples by request; an unreadable file is replaced by another one and listed.

    Args:
        dataset: The images.
        transform: Augmentation, drawing from the global generators, which are seeded per sample.
    """

    def __init__(self, dataset: ClassificationDataset, transform: Transform) -> None:
        self.dataset = dataset
        self.transform = transform

    def __getitem__(self, request: SampleRequest) -> Sample:
        index, seed = request
        unreadable: dict[str, str] = {}
        with seeded(seed):
            for _ in range(MAX_REPLACEMENTS):
                try:
                    picture = self.dataset.load(index)
                except UnreadableImageError as error:
                    unreadable[self.dataset.sample_id(index)] = str(error)
                    index = random.randrange(len(self.dataset))
                    continue
                image = self.transform(picture)
                return Sample(image, int(self.dataset.labels[index]), index, unreadable)
        example = next(iter(unreadable.values()))
        raise ValueError(
            f"{MAX_REPLACEMENTS} images in a row could not be read, the last ones such as: "
            f"{example}; list them all with `wavevit check-data`"
        )


class EvalView(Dataset["Sample | dict[str, str]"]):
    """Samples in order, without augmentation; an unreadable one comes as ``{id: reason}``.

    Args:
        dataset: The images.
        transform: Preparation of the image.
    """

    def __init__(self, dataset: ClassificationDataset, transform: Transform) -> None:
        self.dataset = dataset
        self.transform = transform

    def __getitem__(self, index: int) -> "Sample | dict[str, str]":
        try:
            picture = self.dataset.load(index)
        except UnreadableImageError as error:
            return {self.dataset.sample_id(index): str(error)}
        return Sample(self.transform(picture), int(self.dataset.labels[index]), index)


def collate_strictly(samples: "list[Sample | dict[str, str]]") -> "Batch | dict[str, str]":
    """A batch, or, if any sample is unreadable, all such ids and reasons.

    Args:
        samples: What `EvalView` gives.
    """
    readable = [sample for sample in samples if isinstance(sample, Sample)]
    if len(readable) == len(samples):
        return collate(readable)
    unreadable: dict[str, str] = {}
    for sample in samples:
        if isinstance(sample, dict):
            unreadable.update(sample)
    return unreadable


def train_loader(
    dataset: ClassificationDataset,
    transform: Transform,
    sampler: TrainSampler,
    *,
    num_workers: int,
    pin_memory: bool = False,
) -> DataLoader[Sample]:
    """Batches for the steps of the sampler.

    Args:
        dataset: The images.
        transform: Augmentation.
        sampler: Which samples make up each batch.
        num_workers: Worker processes; 0 loads in this one.
        pin_memory: Whether batches are copied to page-locked memory, for CUDA.
    """
    return DataLoader(
        TrainView(dataset, transform),
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_worker,
        # Its own generator: building an iterator must not advance the global one, or a resumed run
        # would draw other numbers than an uninterrupted one.
        generator=torch.Generator().manual_seed(0),
        prefetch_factor=4 if num_workers else None,
    )


def eval_loader(
    dataset: ClassificationDataset,
    transform: Transform,
    *,
    batch_size: int,
    num_workers: int,
    rank: int = 0,
    num_processes: int = 1,
    pin_memory: bool = False,
) -> "DataLoader[Sample | dict[str, str]]":
    """Every sample once and in order, nothing padded; each process takes its own share.

    Args:
        dataset: The images.
        transform: Preparation of the image.
        batch_size: Images per batch; the last one may be smaller.
        num_workers: Worker processes; 0 loads in this one.
        rank: Index of this process.
        num_processes: Number of processes.
        pin_memory: Whether batches are copied to page-locked memory, for CUDA.
    """
    return DataLoader(
        EvalView(dataset, transform),
        sampler=range(rank, len(dataset), num_processes),
        batch_size=batch_size,
        collate_fn=collate_strictly,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_worker,
        generator=torch.Generator().manual_seed(0),
    )


def strict(batches: "DataLoader[Sample | dict[str, str]]") -> Iterator[Batch]:
    """The batches of an `eval_loader`; stops at the first unreadable image.

    Args:
        batches: An `eval_loader`.

    Yields:
        The batches in order.

    Raises:
        ValueError: An image cannot be read: evaluation does not skip.
    """
    for batch in batches:
        if not isinstance(batch, Batch):
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
    # Ctrl-C and job managers signal every process of a run at once. The main one decides what
    # happens; it still needs batches while it saves. A worker ends when its parent does.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
