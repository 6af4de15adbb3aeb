"""Batches of detection: images of several sizes side by side, with their objects.

Shape legend: B samples, N objects, H rows, W columns.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wavevit.data.detection.dataset import DetectionSource
from wavevit.data.detection.resize import Size
from wavevit.data.detection.transforms import DetectionTransform
from wavevit.data.loading import (
    batches_of,
    eval_batches_of,
    load_or_explain,
    load_or_replace,
    seeded,
    strict_batches,
)
from wavevit.data.samplers import SampleRequest, TrainSampler


@dataclass
class DetectionItem:
    """One image as it is put into a batch.

    Attributes:
        image: uint8 ``(3, H, W)``, RGB.
        target: As in `DetectionBatch`.
        index: Index in the data set.
        original_size: Rows and columns of the image as stored.
        unreadable: Files that were tried before this one: sample id to reason.
    """

    image: Tensor
    target: dict[str, Tensor]
    index: int
    original_size: Size
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass
class DetectionBatch:
    """Samples side by side.

    Attributes:
        images: B tensors ``(3, H, W)``, RGB, of sizes of their own. uint8 as they come from the
            loader; after `to`, float32 in [0, 1].
        targets: Of each image: "boxes" float32 ``(N, 4)``, xyxy in its pixels, "labels" int64
            ``(N,)``, and perhaps "masks" uint8 ``(N, H, W)``.
        indices: Indices in the data set, int64 ``(B,)``; they stay on the CPU.
        original_sizes: Rows and columns of each image as stored, which predictions go back to.
        unreadable: Files that could not be read on the way here: sample id to reason.
    """

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    indices: Tensor
    original_sizes: list[Size]
    unreadable: dict[str, str]

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> "DetectionBatch":
        """The batch in page-locked memory; called by the DataLoader."""
        return self._each(Tensor.pin_memory, Tensor.pin_memory)

    def to(self, device: torch.device) -> "DetectionBatch":
        """The batch on a device, as a detector takes it; pinned memory is copied without waiting.

        Args:
            device: Where to.
        """

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        # A quarter of the bytes on the way: an image becomes float where it arrives.
        return self._each(lambda image: to_unit_range(moved(image)), moved)

    def _each(
        self, of_image: Callable[[Tensor], Tensor], of_target: Callable[[Tensor], Tensor]
    ) -> "DetectionBatch":
        return DetectionBatch(
            [of_image(image) for image in self.images],
            [
                {name: of_target(tensor) for name, tensor in target.items()}
                for target in self.targets
            ],
            self.indices,
            self.original_sizes,
            self.unreadable,
        )


def to_unit_range(image: Tensor) -> Tensor:
    """An image as detectors take it.

    Args:
        image: uint8 of any shape, or floats in [0, 1], which stay as they are.

    Returns:
        float32 in [0, 1], contiguous; the loader's images are views of (H, W, 3) memory.
    """
    if image.is_floating_point():
        return image
    return image.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def collate_detections(items: list[DetectionItem]) -> DetectionBatch:
    """A batch of samples.

    Args:
        items: At least one; their images may differ in size.
    """
    unreadable: dict[str, str] = {}
    for item in items:
        unreadable.update(item.unreadable)
    return DetectionBatch(
        [item.image for item in items],
        [item.target for item in items],
        torch.tensor([item.index for item in items]),
        [item.original_size for item in items],
        unreadable,
    )


class DetectionTrainView(Dataset[DetectionItem]):
    """Augmented samples by request; an unreadable file is replaced by another one and listed.

    Args:
        dataset: The images.
        transform: Augmentation, drawing from the global generators, which are seeded per sample.
    """

    def __init__(self, dataset: DetectionSource, transform: DetectionTransform) -> None:
        self.dataset = dataset
        self.transform = transform

    def __getitem__(self, request: SampleRequest) -> DetectionItem:
        index, seed = request
        with seeded(seed):
            sample, index, unreadable = load_or_replace(self.dataset, index)
            moved = self.transform(sample)
        return DetectionItem(
            _without_surroundings(moved.image), moved.target(), index, sample.size, unreadable
        )


class DetectionEvalView(Dataset["DetectionItem | dict[str, str]"]):
    """Samples in order; an unreadable one comes as ``{id: reason}``.

    Args:
        dataset: The images; without masks, unless whoever evaluates looks at the targets' masks.
        transform: Preparation of the image.
    """

    def __init__(self, dataset: DetectionSource, transform: DetectionTransform) -> None:
        self.dataset = dataset
        self.transform = transform

    def __getitem__(self, index: int) -> "DetectionItem | dict[str, str]":
        sample = load_or_explain(self.dataset, index)
        if isinstance(sample, dict):
            return sample
        moved = self.transform(sample)
        return DetectionItem(_without_surroundings(moved.image), moved.target(), index, sample.size)


def _without_surroundings(image: Tensor) -> Tensor:
    """An image in memory of its own: a crop would take all of its image to the main process."""
    is_part = image.untyped_storage().nbytes() > image.nbytes
    return image.clone() if is_part else image


def detection_train_loader(
    dataset: DetectionSource,
    transform: DetectionTransform,
    sampler: TrainSampler,
    *,
    num_workers: int,
    pin_memory: bool = False,
    timeout_s: float = 0,
) -> DataLoader[DetectionItem]:
    """Batches for the steps of the sampler.

    Args:
        dataset: The images.
        transform: Augmentation.
        sampler: Which samples make up each batch.
        num_workers: Worker processes; 0 loads in this one.
        pin_memory: Whether batches are copied to page-locked memory, for CUDA.
        timeout_s: Longest wait for a batch of the workers, seconds; 0 waits for ever.
    """
    return batches_of(
        DetectionTrainView(dataset, transform),
        sampler,
        collate_detections,
        num_workers=num_workers,
        pin_memory=pin_memory,
        timeout_s=timeout_s,
    )


def detection_eval_loader(
    dataset: DetectionSource,
    transform: DetectionTransform,
    *,
    batch_size: int,
    num_workers: int,
    rank: int = 0,
    num_processes: int = 1,
    pin_memory: bool = False,
    timeout_s: float = 0,
) -> "DataLoader[DetectionItem | dict[str, str]]":
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
        DetectionEvalView(dataset, transform),
        len(dataset),
        collate_detections,
        batch_size=batch_size,
        num_workers=num_workers,
        rank=rank,
        num_processes=num_processes,
        pin_memory=pin_memory,
        timeout_s=timeout_s,
    )


def strict_detections(
    batches: "DataLoader[DetectionItem | dict[str, str]]",
) -> Iterator[DetectionBatch]:
    """The batches of a `detection_eval_loader`; stops at the first unreadable image.

    Args:
        batches: A `detection_eval_loader`.

    Yields:
        The batches in order.

    Raises:
        ValueError: An image cannot be read: evaluation does not skip.
        LoaderError: A worker process died.
    """
    yield from strict_batches(batches)
