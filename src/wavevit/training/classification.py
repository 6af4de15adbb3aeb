"""The classification task: what the loop needs to train a classifier."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from wavevit.data.image_files import ImageFileDataset
from wavevit.data.loader import Batch, eval_loader, strict, train_loader
from wavevit.data.samplers import TrainSampler
from wavevit.data.transforms import eval_transform
from wavevit.metrics.classification import ClassificationMetrics, ClassificationResult
from wavevit.models.card import save_model
from wavevit.models.weights import load_weights
from wavevit.training.classification_settings import (
    Augmentation,
    ClassificationData,
    Classifier,
)
from wavevit.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)


class ClassificationTask:
    """What the loop needs to train a classifier.

    Args:
        data: The images.
        augment: What is done to them.
        model: The network.
        seed: Seed of order and augmentation.

    Raises:
        FileNotFoundError: No such data or weights.
        ValueError: Nothing usable there, or settings that do not go together.
    """

    def __init__(
        self, data: ClassificationData, augment: Augmentation, model: Classifier, seed: int
    ) -> None:
        self.data = data
        self.augment = augment
        self.model = model
        self.seed = seed
        self.splits = data.open()
        self.train_set = self.splits.train
        self.val_set = self.splits.val
        self.left_out: dict[str, str] = {}
        self.batch_size = data.batch_size
        self.num_samples = len(self.train_set)
        self.card = model.card(list(self.splits.class_names), data.image_size)
        self.train_transform = augment.transform(self.card)
        self.eval_transform = eval_transform(
            self.card.image_size,
            crop_pct=self.card.crop_pct,
            interpolation=self.card.interpolation,
            mean=self.card.mean,
            std=self.card.std,
        )
        self.mixing = augment.mixing(len(self.card.class_names))
        if self.mixing is not None and data.batch_size % 2:
            raise ValueError(
                f"mixup and cutmix pair the images of a batch: data.batch_size must be even, got "
                f"{data.batch_size}"
            )
        self.soft_loss = SoftTargetCrossEntropy()
        self.result: ClassificationResult | None = None

    def fingerprint(self) -> str:
        """Start of a SHA-256 of the training set's sample ids: other files, another order."""
        digest = hashlib.sha256()
        for index in range(self.num_samples):
            digest.update(self.train_set.sample_id(index).encode("utf-8", "surrogateescape"))
            digest.update(b"\0")
        return digest.hexdigest()[:16]

    def check_validation_set(self) -> None:
        """Reads every validation image once, so that a run does not fail at its first evaluation.

        Images of a split that we drew ourselves and that cannot be read are left out of it, and
        stand in `left_out`.

        Raises:
            ValueError: An image of the user's own validation split cannot be read.
        """
        unreadable: dict[str, str] = {}
        kept: list[int] = []
        loader = eval_loader(
            self.val_set, self.eval_transform, batch_size=1, num_workers=self.data.num_workers
        )
        for index, batch in enumerate(loader):
            if isinstance(batch, Batch):
                kept.append(index)
            else:
                unreadable.update(batch)
        if not unreadable:
            return
        example = next(iter(unreadable.values()))
        held_out = self.splits.held_out and isinstance(self.val_set, ImageFileDataset)
        if not held_out or not kept:
            raise ValueError(
                f"{len(unreadable)} of {len(self.val_set)} validation images cannot be read, and "
                f"evaluation does not skip: {example}; list them with `wavevit check-data`"
            )
        self.left_out = unreadable
        assert isinstance(self.val_set, ImageFileDataset)
        self.val_set = self.val_set.subset(np.array(kept))
        logger.warning(
            "%d of the images held out for validation cannot be read and are left out: %s",
            len(unreadable),
            example,
        )

    def build_model(self) -> nn.Module:
        """The network with its initial or fine-tuned weights."""
        return self.model.build(self.card)

    def set_train_mode(self, model: nn.Module) -> None:
        """Puts the network in training mode, frozen parts excepted.

        Args:
            model: The network.
        """
        self.model.set_train_mode(model)

    def train_batches(self, fabric: Fabric, start: int, stop: int) -> Iterator[Batch]:
        """Batches start..stop of the run, on the device.

        Args:
            fabric: Device and processes.
            start: First batch.
            stop: Batch to stop before.

        Yields:
            The batches in order.
        """
        sampler = TrainSampler(
            self.num_samples,
            self.batch_size,
            seed=self.seed,
            start=start,
            stop=stop,
            repeats=self.augment.repeats,
            rank=fabric.global_rank,
            num_processes=fabric.world_size,
        )
        on_gpu = fabric.device.type == "cuda"
        for batch in train_loader(
            self.train_set,
            self.train_transform,
            sampler,
            num_workers=self.data.num_workers,
            pin_memory=on_gpu,
        ):
            batch.images = batch.images.to(fabric.device, non_blocking=on_gpu)
            batch.labels = batch.labels.to(fabric.device, non_blocking=on_gpu)
            yield batch

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy with label smoothing, against mixed labels when images are mixed.

        Args:
            model: The network, in training mode.
            batch: On the network's device.
        """
        if self.mixing is not None:
            images, targets = self.mixing(batch.images, batch.labels)
            loss: Tensor = self.soft_loss(model(images), targets)
            return loss
        return F.cross_entropy(
            model(batch.images), batch.labels, label_smoothing=self.augment.label_smoothing
        )

    def sample_ids(self, batch: Batch) -> list[str]:
        """Ids of a batch's samples, for messages.

        Args:
            batch: Any batch.
        """
        return [self.train_set.sample_id(int(index)) for index in batch.indices]

    @torch.no_grad()
    def evaluate(self, fabric: Fabric, model: nn.Module) -> dict[str, float]:
        """Accuracy and loss on the validation set; the full result is kept in ``result``.

        Args:
            fabric: Device, precision and processes.
            model: The network without wrappers; left in evaluation mode.

        Raises:
            ValueError: An image cannot be read.
        """
        model.eval()
        dtype = next(model.parameters()).dtype
        metrics = ClassificationMetrics(len(self.card.class_names))
        loader = eval_loader(
            self.val_set,
            self.eval_transform,
            batch_size=self.data.batch_size,
            num_workers=self.data.num_workers,
            pin_memory=fabric.device.type == "cuda",
        )
        for batch in strict(loader):
            with fabric.autocast():
                logits = model(batch.images.to(fabric.device, dtype))
            ids = [self.val_set.sample_id(int(index)) for index in batch.indices]
            metrics.update(ids, logits.float().cpu(), batch.labels)
        self.result = metrics.compute()
        return {
            "score": self.result.top1,
            "loss": self.result.loss,
            "top1": self.result.top1,
            "top5": self.result.top5,
            "ece": self.result.ece,
        }

    def save_best(self, run: RunDirectory, model: nn.Module, metrics: dict[str, float]) -> None:
        """Writes ``best.safetensors``.

        Args:
            run: Where.
            model: The network without wrappers.
            metrics: Its results.
        """
        kept = {key: value for key, value in metrics.items() if key != "score"}
        card = replace(self.card, metrics=kept)
        save_model(run.path / "best.safetensors", model.state_dict(), card)

    def load_best(self, run: RunDirectory, model: nn.Module) -> None:
        """Loads ``best.safetensors``.

        Args:
            run: Where.
            model: The network without wrappers.
        """
        load_weights(model, run.path / "best.safetensors")
