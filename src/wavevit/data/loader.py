"""From a data set to batches of tensors, with unreadable files accounted for."""

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from wavevit.data.classification import ClassificationDataset
from wavevit.data.images import UnreadableImageError, ignore_pillow_warnings
from wavevit.data.label_maps import LabelMaps
from wavevit.data.samplers import EvalSampler, SampleRequest, TrainSampler
from wavevit.data.token_labels import TokenLogits, crop_label_map
from wavevit.data.transforms import TracedTransform, Transform
from wavevit.data.worker_failures import received

MAX_REPLACEMENTS = 100


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
        unreadable: dict[str, str] = {}
        with seeded(seed):
            for _ in range(MAX_REPLACEMENTS):
                try:
                    picture = self.dataset.load(index)
                except UnreadableImageError as error:
                    unreadable[self.dataset.sample_id(index)] = str(error)
                    index = random.randrange(len(self.dataset))
                    continue
                return self._sample(picture, index, unreadable)
        example = next(iter(unreadable.values()))
        raise ValueError(
            f"{MAX_REPLACEMENTS} images in a row could not be read, the last ones such as: "
            f"{example}; list them all with `wavevit check-data`"
        )

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
    return DataLoader(
        TrainView(dataset, transform, label_maps),
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_worker,
        # Its own generator: building an iterator must not advance the global one, or a resumed run
        # would draw other numbers than an uninterrupted one.
        generator=torch.Generator().manual_seed(0),
        prefetch_factor=4 if num_workers else None,
        timeout=timeout_s if num_workers else 0,
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
    return DataLoader(
        EvalView(dataset, transform),
        batch_sampler=EvalSampler(len(dataset), batch_size, rank=rank, num_processes=num_processes),
        collate_fn=collate_strictly,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_worker,
        generator=torch.Generator().manual_seed(0),
        timeout=timeout_s if num_workers else 0,
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
    for batch in received(batches):
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
    ignore_pillow_warnings()
    # Ctrl-C and job managers signal every process of a run at once. The main one decides what
    # happens; it still needs batches while it saves. A worker ends when its parent does.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
