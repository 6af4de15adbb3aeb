"""From a data set to batches of tensors, with unreadable files accounted for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from wavevit.data.classification import ClassificationDataset
from wavevit.data.label_maps.reader import LabelMaps
from wavevit.data.loading import (
    batches_of,
    eval_batches_of,
    load_or_explain,
    load_or_replace,
    strict_batches,
)
from wavevit.data.loading import seeded as seeded  # known from here, too
from wavevit.data.samplers import SampleRequest, TrainSampler
from wavevit.data.token_labels import TokenLogits, crop_label_map
from wavevit.data.transforms import TracedTransform, Transform


@dataclass
class Sample:
    """One image as the network takes it.

    Attributes:
        image: float32 ``(3, H, W)``, normalised.
        label: Class index.
        index: Index in the data set.
        unreadable: Files that were tried before this one: sample id to reason.
        tokens: The crop of its label map, if there are label maps.
    """

    image: Tensor
    label: int
    index: int
    unreadable: dict[str, str] = field(default_factory=dict)
    tokens: TokenLogits | None = None


@dataclass
class Batch:
    """Samples side by side.

    Legend: B samples, N patch tokens, U distinct classes of a label map.

    Attributes:
        images: float32 ``(B, 3, H, W)``, normalised.
        labels: int64 ``(B,)``.
        indices: Indices in the data set, int64 ``(B,)``.
        unreadable: Files that could not be read on the way here: sample id to reason.
        token_logits: float32 ``(B, 1 + N, U)``, the teacher's logits of the class token and the
            patch tokens (see `token_labels`), padded with zeros; None without label maps.
        token_classes: int64 ``(B, U)``, the classes those logits are of, padded with zeros.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: dict[str, str]
    token_logits: Tensor | None = None
    token_classes: Tensor | None = None

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; called by the DataLoader."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; copies from page-locked memory do not wait.

        Args:
            device: Where to.
        """
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            function(self.images),
            function(self.labels),
            self.indices,
            self.unreadable,
            None if self.token_logits is None else function(self.token_logits),
            None if self.token_classes is None else function(self.token_classes),
        )


def collate(samples: list[Sample]) -> Batch:
    """A batch of samples.

    Args:
        samples: At least one, all of one size.
    """
    unreadable: dict[str, str] = {}
    for sample in samples:
        unreadable.update(sample.unreadable)
    batch = Batch(
        # In a worker it stacks right into the shared memory that the batch is sent in.
        default_collate([sample.image for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
        torch.tensor([sample.index for sample in samples]),
        unreadable,
    )
    tokens = [sample.tokens for sample in samples if sample.tokens is not None]
    if tokens:
        widest = max(len(item.classes) for item in tokens)
        logits = np.zeros((len(tokens), len(tokens[0].logits), widest), np.float32)
        classes = np.zeros((len(tokens), widest), np.int64)
        for row, item in enumerate(tokens):
            logits[row, :, : len(item.classes)] = item.logits
            classes[row, : len(item.classes)] = item.classes
        batch.token_logits = torch.from_numpy(logits)
        batch.token_classes = torch.from_numpy(classes)
    return batch


@dataclass(frozen=True)
class LabelMapCrops:
    """Where the label maps of the training samples are and how they are cut up.

    Attributes:
        maps: Of the samples, by their index.
        grid: Rows and columns of patch tokens.
    """

    maps: LabelMaps
    grid: tuple[int, int]


class TrainView(Dataset[Sample]):
    """Augmented samples by request; an unreadable file is replaced by another one and listed.

    Args:
        dataset: The images.
        transform: Augmentation, drawing from the global generators, which are seeded per sample;
            a traced one where there are label maps.
        label_maps: Label maps, which are cut as the image was; None for none.
    """

    def __init__(
        self,
        dataset: ClassificationDataset,
        transform: Transform | TracedTransform,
        label_maps: LabelMapCrops | None = None,
    ) -> None:
        assert isinstance(transform, TracedTransform) == (label_maps is not None)
        self.dataset = dataset
        self.transform = transform
        self.label_maps = label_maps

    def __getitem__(self, request: SampleRequest) -> Sample:
        index, seed = request
        with seeded(seed):
            picture, index, unreadable = load_or_replace(self.dataset, index)
            return self._sample(picture, index, unreadable)

    def _sample(self, picture: Image.Image, index: int, unreadable: dict[str, str]) -> Sample:
        label = int(self.dataset.labels[index])
        if not isinstance(self.transform, TracedTransform):
            return Sample(self.transform(picture), label, index, unreadable)
        assert self.label_maps is not None
        image, view = self.transform(picture)
        label_map = self.label_maps.maps.load(index)
        tokens = crop_label_map(label_map, view, self.label_maps.grid)
        return Sample(image, label, index, unreadable, tokens)


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
        picture = load_or_explain(self.dataset, index)
        if isinstance(picture, dict):
            return picture
        return Sample(self.transform(picture), int(self.dataset.labels[index]), index)


def train_loader(
    dataset: ClassificationDataset,
    transform: Transform | TracedTransform,
    sampler: TrainSampler,
    *,
    num_workers: int,
    pin_memory: bool = False,
    label_maps: LabelMapCrops | None = None,
    timeout_s: float = 0,
) -> DataLoader[Sample]:
    """Batches for the steps of the sampler.

    Args:
        dataset: The images.
        transform: Augmentation.
        sampler: Which samples make up each batch.
        num_workers: Worker processes; 0 loads in this one.
        pin_memory: Whether batches are copied to page-locked memory, for CUDA.
        label_maps: Label maps, if there are any; the transform is then a traced one.
        timeout_s: Longest wait for a batch of the workers, seconds; 0 waits for ever.
    """
    return batches_of(
        TrainView(dataset, transform, label_maps),
        sampler,
        collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        timeout_s=timeout_s,
        prefetch_factor=4,
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
    timeout_s: float = 0,
) -> "DataLoader[Sample | dict[str, str]]":
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
        EvalView(dataset, transform),
        len(dataset),
        collate,
        batch_size=batch_size,
        num_workers=num_workers,
        rank=rank,
        num_processes=num_processes,
        pin_memory=pin_memory,
        timeout_s=timeout_s,
    )


def strict(batches: "DataLoader[Sample | dict[str, str]]") -> Iterator[Batch]:
    """The batches of an `eval_loader`; stops at the first unreadable image.

    Args:
        batches: An `eval_loader`.

    Yields:
        The batches in order.

    Raises:
        ValueError: An image cannot be read: evaluation does not skip.
        LoaderError: A worker process died.
    """
    yield from strict_batches(batches)
