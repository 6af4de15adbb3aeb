"""The classification task: what the loop needs to train a classifier."""

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wavevit.data.classification import ClassificationDataset, ClassificationSplits
from wavevit.data.label_maps.reader import open_label_maps
from wavevit.data.loader import (
    Batch,
    LabelMapCrops,
    Sample,
    eval_loader,
    strict,
    train_loader,
)
from wavevit.data.samplers import TrainSampler
from wavevit.data.transforms import TracedTransform, Transform, eval_transform
from wavevit.metrics.classification import ClassificationMetrics, ClassificationResult
from wavevit.training.classification_settings import (
    Augmentation,
    ClassificationData,
    Classifier,
)
from wavevit.training.data_task import DataTask
from wavevit.training.fingerprint import digest, digest_names, file_pieces
from wavevit.training.objectives import LabelObjective, Objective
from wavevit.training.shared_evaluation import measure_shares, merge_shares
from wavevit.training.teaching_settings import Distillation, TokenLabels


class ClassificationTask(DataTask[ClassificationDataset]):
    """What the loop needs to train a classifier.

    Args:
        data: The images.
        augment: What is done to them.
        model: The network.
        seed: Seed of order and augmentation.
        token_label: Training with token labels.
        distill: Training with a teacher.

    Raises:
        FileNotFoundError: No such data or weights.
        ValueError: Nothing usable there, or settings that do not go together.
    """

    def __init__(
        self,
        data: ClassificationData,
        augment: Augmentation,
        model: Classifier,
        seed: int,
        token_label: TokenLabels | None = None,
        distill: Distillation | None = None,
    ) -> None:
        self.data = data
        self.augment = augment
        self.model = model
        token_label = token_label or TokenLabels()
        distill = distill or Distillation()
        self._check(token_label, distill)
        self.splits: ClassificationSplits = data.open()
        class_names = list(self.splits.class_names)
        super().__init__(
            self.splits,
            model.card(class_names, data.image_size, token_label=token_label.enabled),
            batch_size=data.batch_size,
            num_workers=data.num_workers,
            seed=seed,
            repeats=augment.repeats,
        )
        self.train_transform: Transform | TracedTransform = augment.transform(self.card)
        self.eval_transform = eval_transform(
            self.card.image_size,
            crop_pct=self.card.crop_pct,
            interpolation=self.card.interpolation,
            mean=self.card.mean,
            std=self.card.std,
        )
        self.label_maps = self._open_label_maps(token_label)
        self.objective = self._choose_objective(token_label, distill)
        self.teacher_weights = token_label.weights or distill.weights
        self.result: ClassificationResult | None = None

    def _check(self, token_label: TokenLabels, distill: Distillation) -> None:
        mixes = self.augment.mixup > 0 or self.augment.cutmix > 0
        if (mixes or token_label.enabled) and self.data.batch_size % 2:
            what = "mixup and cutmix pair" if mixes else "mix-token pairs"
            raise ValueError(
                f"{what} the images of a batch: data.batch_size must be even, got "
                f"{self.data.batch_size}"
            )
        if token_label.enabled and mixes:
            raise ValueError(
                "token labels mix tokens instead of pixels: set augment.mixup and augment.cutmix "
                f"to 0, got {self.augment.mixup} and {self.augment.cutmix}"
            )
        if token_label.enabled and self.model.freeze != "none":
            raise ValueError(
                "token labels train the whole network: set model.freeze to none, got "
                f"{self.model.freeze}"
            )
        if token_label.enabled and distill.enabled:
            raise ValueError("token labels and distillation do not go together; choose one")

    def _open_label_maps(self, token_label: TokenLabels) -> LabelMapCrops | None:
        if token_label.maps is None:
            return None
        maps = open_label_maps(
            token_label.maps, self.splits.train.sample_ids(), self.splits.class_names
        )
        rows, columns = self.card.image_size
        self.train_transform = TracedTransform(self.augment.transform(self.card))
        return LabelMapCrops(maps, (-(-rows // 32), -(-columns // 32)))

    def _choose_objective(self, token_label: TokenLabels, distill: Distillation) -> Objective:
        smoothing = self.augment.label_smoothing
        if token_label.enabled:
            return token_label.objective(self.card, smoothing)
        mixing = self.augment.mixing(len(self.card.class_names))
        return LabelObjective(mixing, smoothing, distill.loss(self.card))

    def fingerprints(self) -> dict[str, str]:
        """What the run reads, by name: starts of SHA-256s that tell other content.

        Images count by their names, labels and order, not by their pixels; official label maps,
        one small file each, only by the images' names.
        """
        found = {"classes": digest_names(self.splits.class_names)}
        for name, images in (("training", self.splits.train), ("validation", self.val_set)):
            found[f"{name} images"] = digest_names(images.sample_ids())
            found[f"{name} labels"] = digest([np.asarray(images.labels, np.int64).tobytes()])
        if self.label_maps is not None:
            found["label maps"] = digest([self.label_maps.maps.checksums()])
        if self.teacher_weights is not None:
            found["teacher's weights"] = digest(file_pieces(self.teacher_weights))
        return found

    def build_model(self) -> nn.Module:
        """The network with its initial or fine-tuned weights."""
        return self.model.build(self.card)

    def set_train_mode(self, model: nn.Module) -> None:
        """Puts the network in training mode, frozen parts excepted.

        Args:
            model: The network.
        """
        self.model.set_train_mode(model)

    def train_loader(
        self, sampler: TrainSampler, *, pin_memory: bool, timeout_s: float
    ) -> DataLoader[Sample]:
        """Batches for the steps of the sampler.

        Args:
            sampler: Which samples make up each batch.
            pin_memory: Whether batches are copied to page-locked memory, for CUDA.
            timeout_s: Longest wait for a batch of the workers, seconds; 0 waits for ever.
        """
        return train_loader(
            self.splits.train,
            self.train_transform,
            sampler,
            num_workers=self.num_workers,
            pin_memory=pin_memory,
            label_maps=self.label_maps,
            timeout_s=timeout_s,
        )

    def loss(self, fabric: Fabric, model: nn.Module, batch: Batch) -> Tensor:
        """The objective of the run: cross-entropy, with a teacher, or token labels.

        Args:
            fabric: Precision.
            model: The network, in training mode.
            batch: On the network's device.
        """
        return self.objective(model, batch, fabric.autocast())

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
            num_workers=self.num_workers,
            rank=fabric.global_rank,
            num_processes=fabric.world_size,
            pin_memory=fabric.device.type == "cuda",
            timeout_s=self.timeout_s,
        )

        def measure_share() -> None:
            for batch in strict(loader):
                with fabric.autocast():
                    logits = model(batch.images.to(fabric.device, dtype))
                ids = [self.val_set.sample_id(int(index)) for index in batch.indices]
                metrics.update(ids, logits.float().cpu(), batch.labels)

        nothing = torch.zeros(1, 3, *self.card.image_size, device=fabric.device, dtype=dtype)
        measure_shares(
            fabric,
            model,
            measure_share,
            num_batches=len(loader),
            run_on_nothing=lambda: model(nothing),
        )
        merge_shares(fabric, metrics)
        self.result = metrics.compute()
        return {
            "score": self.result.top1,
            "loss": self.result.loss,
            "top1": self.result.top1,
            "top5": self.result.top5,
            "ece": self.result.ece,
        }
