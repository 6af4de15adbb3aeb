"""Batches of segmentation: for training, samples of one size; for evaluation, images as they are.

Shape legend: B samples, H rows, W columns, H0 and W0 those of an image as stored.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from wavevit.data.loading import (
    batches_of,
    eval_batches_of,
    load_or_explain,
    load_or_replace,
    seeded,
    strict_batches,
)
from wavevit.data.resize import Size
from wavevit.data.samplers import SampleRequest, TrainSampler
from wavevit.data.segmentation.dataset import SegmentationSource
from wavevit.data.segmentation.transforms import ImageTransform, SegmentationTransform


@dataclass
class SegmentationItem:
    """One image as it is put into a batch.

    Attributes:
        image: uint8 ``(3, H, W)``, RGB.
        labels: uint8; in training ``(H, W)``, in an evaluation ``(H0, W0)``.
        index: Index in the data set.
        unreadable: Files that were tried before this one: sample id to reason.
    """

    image: Tensor
    labels: Tensor
    index: int
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass
class SegmentationBatch:
    """Training samples side by side.

    Attributes:
        images: uint8 ``(B, 3, H, W)``, RGB; `transforms.normalise` makes them a network's input.
        labels: ``(B, H, W)``, 255 for pixels to be ignored; uint8 as they come from the loader,
            int64 after `to`.
        indices: Indices in the data set, int64 ``(B,)``; they stay on the CPU.
        unreadable: Files that could not be read on the way here: sample id to reason.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: dict[str, str]

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> "SegmentationBatch":
        """The batch in page-locked memory; called by the DataLoader."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())

    def to(self, device: torch.device) -> "SegmentationBatch":
        """The batch on a device; copies from page-locked memory do not wait.

        Args:
            device: Where to.
        """
        # An eighth of the bytes on the way: labels become long where they arrive.
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True).long(),
        )


@dataclass
class SegmentationEvalBatch:
    """Images of an evaluation, each of a size of its own.

    Attributes:
        images: B tensors uint8 ``(3, H, W)``, RGB, resized.
        labels: B tensors uint8 ``(H0, W0)``, of the images as stored; 255 does not count.
        indices: Indices in the data set, int64 ``(B,)``; they stay on the CPU.
        original_sizes: H0 and W0 of each image, which predictions go back to.
    """

    images: list[Tensor]
    labels: list[Tensor]
    indices: Tensor
    original_sizes: list[Size]

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> "SegmentationEvalBatch":
        """The batch in page-locked memory; called by the DataLoader."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "SegmentationEvalBatch":
        """The batch on a device, still in uint8; copies from page-locked memory do not wait.

        Args:
            device: Where to.
        """
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, function: Callable[[Tensor], Tensor]) -> "SegmentationEvalBatch":
        return replace(
            self,
            images=[function(image) for image in self.images],
            labels=[function(labels) for labels in self.labels],
        )


def collate_segmentation(items: list[SegmentationItem]) -> SegmentationBatch:
    """A batch of training samples.

    Args:
        items: At least one, all of one size.
    """
    unreadable: dict[str, str] = {}
    for item in items:
        unreadable.update(item.unreadable)
    return SegmentationBatch(
        # In a worker it stacks right into the shared memory that the batch is sent in.
        default_collate([item.image for item in items]),
        default_collate([item.labels for item in items]),
        torch.tensor([item.index for item in items]),
        unreadable,
    )


def collate_segmentation_eval(items: list[SegmentationItem]) -> SegmentationEvalBatch:
    """A batch of an evaluation.

    Args:
        items: At least one; they may differ in size.
    """
    sizes: list[Size] = [(item.labels.shape[0], item.labels.shape[1]) for item in items]
    return SegmentationEvalBatch(
        [item.image for item in items],
        [item.labels for item in items],
        torch.tensor([item.index for item in items]),
        sizes,
    )


class SegmentationTrainView(Dataset[SegmentationItem]):
    """Augmented samples by request; an unreadable file is replaced by another one and listed.

    Args:
        dataset: The images.
        transform: Augmentation, drawing from the global generators, which are seeded per sample.
    """

    def __init__(self, dataset: SegmentationSource, transform: SegmentationTransform) -> None:
        self.dataset = dataset
        self.transform = transform

    def __getitem__(self, request: SampleRequest) -> SegmentationItem:
        index, seed = request
        with seeded(seed):
            sample, index, unreadable = load_or_replace(self.dataset, index)
            moved = self.transform(sample)
        return SegmentationItem(moved.image, moved.labels, index, unreadable)


class SegmentationEvalView(Dataset["SegmentationItem | dict[str, str]"]):
    """Samples in order; an unreadable one comes as ``{id: reason}``.

    Args:
        dataset: The images.
        transform: Preparation of the image; labels stay as they are.
    """

    def __init__(self, dataset: SegmentationSource, transform: ImageTransform) -> None:
        self.dataset = dataset
        self.transform = transform

    def __getitem__(self, index: int) -> "SegmentationItem | dict[str, str]":
        sample = load_or_explain(self.dataset, index)
        if isinstance(sample, dict):
            return sample
        return SegmentationItem(self.transform(sample.image), sample.labels, index)


def segmentation_train_loader(
    dataset: SegmentationSource,
    transform: SegmentationTransform,
    sampler: TrainSampler,
    *,
    num_workers: int,
    pin_memory: bool = False,
    timeout_s: float = 0,
) -> DataLoader[SegmentationItem]:
    """Batches for the steps of the sampler.

    Args:
        dataset: The images.
        transform: Augmentation, whose results all have one size.
        sampler: Which samples make up each batch.
        num_workers: Worker processes; 0 loads in this one.
        pin_memory: Whether batches are copied to page-locked memory, for CUDA.
        timeout_s: Longest wait for a batch of the workers, seconds; 0 waits for ever.
    """
    return batches_of(
        SegmentationTrainView(dataset, transform),
        sampler,
        collate_segmentation,
        num_workers=num_workers,
        pin_memory=pin_memory,
        timeout_s=timeout_s,
    )


def segmentation_eval_loader(
    dataset: SegmentationSource,
    transform: ImageTransform,
    *,
    batch_size: int,
    num_workers: int,
    rank: int = 0,
    num_processes: int = 1,
    pin_memory: bool = False,
    timeout_s: float = 0,
) -> "DataLoader[SegmentationItem | dict[str, str]]":
    """Every sample once and in order, nothing padded; each process takes its share of the batches.

    Args:
        dataset: The images.
        transform: Preparation of the image.
        batch_size: Images per batch; the last one may be smaller.
        num_workers: Worker processes; 0 loads in this one.
        rank: Index of this process.
        num_processes: Number of processes.
        pin_memory: Whether batches are copied to page-locked memory, for CUDA.
        timeout_s: Longest wait for a batch of the workers, seconds; 0 waits for ever.
    """
    return eval_batches_of(
        SegmentationEvalView(dataset, transform),
        len(dataset),
        collate_segmentation_eval,
        batch_size=batch_size,
        num_workers=num_workers,
        rank=rank,
        num_processes=num_processes,
        pin_memory=pin_memory,
        timeout_s=timeout_s,
    )


def strict_segmentation(
    batches: "DataLoader[SegmentationItem | dict[str, str]]",
) -> Iterator[SegmentationEvalBatch]:
    """The batches of a `segmentation_eval_loader`; stops at the first unreadable image.

    Args:
        batches: A `segmentation_eval_loader`.

    Yields:
        The batches in order.

    Raises:
        ValueError: An image or its mask cannot be read: evaluation does not skip.
        LoaderError: A worker process died.
    """
    yield from strict_batches(batches)
