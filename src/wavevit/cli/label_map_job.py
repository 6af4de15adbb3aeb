"""The work of ``wavevit label-maps create``: which maps to make, and making them.

Shape legend: B images of a batch, k classes per cell, H W rows and columns of a map.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wavevit.data.classification import ClassificationDataset
from wavevit.data.images import UnreadableImageError
from wavevit.data.label_maps.index import INDEX_NAME
from wavevit.data.label_maps.keys import KeyLookup, KeyTable
from wavevit.data.label_maps.reader import (
    LabelMapError,
    map_key,
    read_shard_keys,
    shard_path,
    write_shard,
)
from wavevit.data.loader import Batch, EvalView, Sample, collate, eval_loader
from wavevit.data.transforms import Transform
from wavevit.models.teacher import Teacher

Answer = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores and classes of the best classes, (B, k, H, W) each, best first."""


@dataclass(frozen=True)
class Oracle:
    """A teacher and what is kept of its answers.

    Attributes:
        teacher: On `device`.
        image_size: Rows and columns it is given, pixels.
        map_size: Rows and columns of a map; None for the teacher's own.
        top_k: Classes kept per cell, if there are so many.
        precision: Inside the teacher.
        device: Where it runs.

    Raises:
        ValueError: A map larger than the teacher's own.
    """

    teacher: Teacher
    image_size: tuple[int, int]
    map_size: int | None
    top_k: int
    precision: Literal["fp32", "bf16", "fp16"]
    device: torch.device

    def __post_init__(self) -> None:
        assert self.teacher.grid is not None
        rows, columns = self.teacher.grid
        if self.map_size is not None and self.map_size > min(rows, columns):
            raise ValueError(
                f"--map-size is at most the teacher's own {rows} x {columns} at "
                f"{self.image_size[0]} pixels, got {self.map_size}; raise --image-size"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns H, W of a map."""
        assert self.teacher.grid is not None
        return self.teacher.grid if self.map_size is None else (self.map_size, self.map_size)

    @property
    def num_kept(self) -> int:
        """Classes k kept per cell."""
        return min(self.top_k, self.teacher.num_classes)

    def weights_sha256(self) -> str:
        """Tells the teacher's weights from any others, wherever they were read from."""
        digest = hashlib.sha256()
        for name, value in sorted(self.teacher.model.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(content.numpy().data)
        return digest.hexdigest()

    def settings(self) -> dict[str, Any]:
        """All that the numbers in a map depend on, but the image."""
        return {
            "teacher": self.teacher.card.model,
            "weights_sha256": self.weights_sha256(),
            "image_size": list(self.image_size),
            "top_k": self.num_kept,
            "map_size": list(self.grid),
            "precision": self.precision,
            "device": self.device.type,
        }

    def try_out(self) -> None:
        """Finds out before any work whether the teacher runs here in this precision.

        Raises:
            ValueError: It does not.
        """
        try:
            self.ask(torch.zeros(1, 3, *self.image_size))
        except (RuntimeError, TypeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{self.teacher.card.model} cannot run in {self.precision} on {self.device.type}: "
                f"{reason}"
            ) from error

    def ask(self, images: Tensor) -> Answer:
        """What the teacher sees; the kernels are the same at every call.

        Args:
            images: (B, 3, rows, columns) float32, normalised as the teacher was told.

        Raises:
            ValueError: The device has not enough memory.
        """
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        try:
            with (
                torch.inference_mode(),
                torch.backends.cudnn.flags(
                    enabled=True, benchmark=False, deterministic=True, allow_tf32=False
                ),
                torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32"),
            ):
                logits = self.teacher.spatial_logits(images.to(self.device), self.grid)
                best = logits.topk(self.num_kept, dim=1)
                return best.values.cpu().numpy(), best.indices.cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"the device has not enough memory for {len(images)} images at once; use a "
                "smaller --batch-size"
            ) from error


@dataclass
class Job:
    """The images and how they are spread over shards: the same whenever the command is run again.

    Attributes:
        folder: Of the maps.
        dataset: The images.
        batch_size: Images the teacher looks at together.
        maps_per_shard: A multiple of it.
        note: Called with messages for the user.
        unreadable: Why images have no map, by index; filled while working.
        keys: Name of each image's map.

    Raises:
        ValueError: Two images would share a map.
    """

    folder: Path
    dataset: ClassificationDataset
    batch_size: int
    maps_per_shard: int
    note: Callable[[str], None]
    unreadable: dict[int, str] = field(default_factory=dict)
    keys: KeyTable = field(init=False)

    def __post_init__(self) -> None:
        self.keys = KeyTable.of(map(map_key, self.dataset.sample_ids()))
        repeated = KeyLookup(self.keys).first_repeated()
        if repeated is not None:
            first, second = (self.dataset.sample_id(index) for index in repeated)
            raise ValueError(
                f"the images {first!r} and {second!r} would share the label map "
                f"{self.keys[repeated[0]]!r}; rename one of them"
            )

    @property
    def num_shards(self) -> int:
        """Files that the maps are spread over."""
        return -(-len(self.dataset) // self.maps_per_shard)

    @property
    def num_maps(self) -> int:
        """Images that have a map, once all work is done."""
        return len(self.dataset) - len(self.unreadable)

    def indices(self, number: int) -> range:
        """The images of a shard.

        Args:
            number: Of the shard.
        """
        start = number * self.maps_per_shard
        return range(start, min(start + self.maps_per_shard, len(self.dataset)))

    def settings(self) -> dict[str, Any]:
        """Which images there are and how they are grouped: the maps depend on that to the bit."""
        digest = hashlib.sha256()
        for key in self.keys.encoded():
            digest.update(key + b"\0")
        return {
            "batch_size": self.batch_size,
            "maps_per_shard": self.maps_per_shard,
            "num_images": len(self.dataset),
            "images_sha256": digest.hexdigest(),
        }

    def is_done(self, number: int) -> bool:
        """Whether a shard is there, undamaged, with all images of it that can be read.

        Args:
            number: Of the shard.
        """
        path = shard_path(self.folder, number)
        if not path.exists():
            return False
        try:
            there = read_shard_keys(path)
        except LabelMapError as error:
            self.note(f"{error}: making it again")
            return False
        present = set(there)
        unreadable: dict[int, str] = {}
        for index in self.indices(number):
            if self.keys[index] in present:
                continue
            try:
                self.dataset.load(index)
            except UnreadableImageError as error:
                unreadable[index] = str(error)
        if there != [self.keys[i] for i in self.indices(number) if i not in unreadable]:
            self.note(f"{path.name} does not hold all images that can be read: making it again")
            return False
        self.unreadable.update(unreadable)
        return True

    def make(
        self,
        number: int,
        oracle: Oracle,
        next_batch: Callable[[Sequence[int]], tuple[Batch | None, list[int]]],
        advance: Callable[[int], None],
    ) -> None:
        """Makes a shard.

        Args:
            number: Of the shard.
            oracle: The teacher.
            next_batch: Gives the images at the given indices and the indices of those that could
                be read.
            advance: Called with the number of images of each batch.

        Raises:
            ValueError: None of its images can be read, or the teacher gives NaN.
            OSError: The file cannot be written.
        """
        indices = self.indices(number)
        keys: list[str] = []
        parts: list[Answer] = []
        # All shards but the last are whole batches, so a batch never spans two of them and holds
        # the same images whatever was done before: the maps are the same to the bit.
        for start in range(0, len(indices), self.batch_size):
            wanted = indices[start : start + self.batch_size]
            batch, readable = next_batch(wanted)
            if batch is not None:
                keys += [self.keys[index] for index in readable]
                parts.append(oracle.ask(batch.images))
                self._check_finite(parts[-1][0], readable, oracle.precision)
            advance(len(wanted))
        if not keys:
            raise ValueError(
                f"none of the {len(indices):,} images from {self.dataset.sample_id(indices[0])!r} "
                f"on can be read ({self.unreadable[indices[0]]}); check the disk, or remove them"
            )
        scores, classes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        write_shard(self.folder, number, keys=keys, scores=scores, classes=classes)

    def _check_finite(self, scores: NDArray[np.float32], indices: list[int], kind: str) -> None:
        limit = np.finfo(np.float16).max
        usable = (np.abs(scores) <= limit).all(axis=(1, 2, 3))  # False for NaN
        if not usable.all():
            name = self.dataset.sample_id(indices[int(usable.argmin())])
            raise ValueError(
                f"the teacher gives NaN or numbers beyond {limit:.0f} for {name!r} in {kind}; "
                "check its weights, or use another --precision"
            )


def make_maps(
    job: Job,
    oracle: Oracle,
    pending: Sequence[int],
    transform: Transform,
    num_workers: int,
    advance: Callable[[int], None],
) -> None:
    """Makes some shards of a job, one after the other; each is on disk once it is whole.

    Args:
        job: The images.
        oracle: The teacher.
        pending: Numbers of the shards, rising.
        transform: Preparation of an image: RGB picture to float32 (3, rows, columns).
        num_workers: Processes that decode images; 0 decodes in the main process.
        advance: Called with the number of images of each batch.

    Raises:
        ValueError: None of a shard's images can be read, or the teacher gives NaN.
        OSError: A file cannot be written.
    """
    if not pending:
        return
    (job.folder / INDEX_NAME).unlink(missing_ok=True)  # it stands for a complete set
    left = [index for number in pending for index in job.indices(number)]
    arriving = iter(
        eval_loader(
            job.dataset.subset(np.array(left, np.int64)),
            transform,
            batch_size=job.batch_size,
            num_workers=num_workers,
            pin_memory=oracle.device.type == "cuda",
        )
    )
    view = EvalView(job.dataset, transform)

    def next_batch(indices: Sequence[int]) -> tuple[Batch | None, list[int]]:
        batch = next(arriving)
        if isinstance(batch, Batch):
            return batch, list(indices)
        # Where one cannot be read, the loader gives none of a batch. Rare: read again here.
        samples: list[Sample] = []
        for index in indices:
            sample = view[index]
            if isinstance(sample, Sample):
                samples.append(sample)
            else:
                job.unreadable[index] = next(iter(sample.values()))
        readable = [sample.index for sample in samples]
        return (collate(samples) if samples else None), readable

    for number in pending:
        job.make(number, oracle, next_batch, advance)
