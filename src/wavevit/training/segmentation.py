"""The segmentation task: what the loop needs to train a segmenter.

Legend: B images of a batch, H W rows and columns in pixels.
"""

from typing import ClassVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wavevit.data.samplers import TrainSampler
from wavevit.data.segmentation.dataset import SegmentationSource
from wavevit.data.segmentation.loader import (
    SegmentationBatch,
    SegmentationEvalBatch,
    SegmentationItem,
    segmentation_eval_loader,
    segmentation_train_loader,
    strict_segmentation,
)
from wavevit.data.segmentation.transforms import normalise
from wavevit.metrics.segmentation import SegmentationMetrics, SegmentationResult
from wavevit.segmentation.inference import logits_of_any_size
from wavevit.segmentation.logit_maps import labels_from_logits
from wavevit.training.data_task import DataTask
from wavevit.training.segmentation_settings import (
    SegmentationAugmentation,
    SegmentationData,
    SegmenterSettings,
)
from wavevit.training.segmentation_splits import SegmentationSplits
from wavevit.training.shared_evaluation import measure_shares, merge_shares


class SegmentationTask(DataTask[SegmentationSource]):
    """What the loop needs to train a segmenter.

    Args:
        data: The images.
        augment: What is done to them.
        model: The segmenter.
        seed: Seed of order and augmentation.

    Attributes:
        tensor_part: All but post-processing and losses.

    Raises:
        FileNotFoundError: No such data.
        ValueError: Nothing usable there, or settings that do not go together.
    """

    tensor_part: ClassVar[str] = "network"

    def __init__(
        self,
        data: SegmentationData,
        augment: SegmentationAugmentation,
        model: SegmenterSettings,
        seed: int,
    ) -> None:
        self.data = data
        self.augment = augment
        self.model = model
        self.splits: SegmentationSplits = data.open()
        train_set = self.splits.train
        super().__init__(
            self.splits,
            model.card(train_set.class_names, train_set.palette, data),
            batch_size=data.batch_size,
            num_workers=data.num_workers,
            seed=seed,
        )
        self.train_transform = augment.transform(data, self.card)
        self.eval_transform = data.eval_transform()
        self.metrics: SegmentationMetrics | None = None
        self.result: SegmentationResult | None = None

    def fingerprints(self) -> dict[str, str]:
        """What the run reads, by name: starts of SHA-256s that tell other content."""
        return self.splits.fingerprints()

    def build_model(self) -> nn.Module:
        """The segmenter with its initial or fine-tuned weights."""
        return self.model.build(self.card)

    def set_train_mode(self, model: nn.Module) -> None:
        """Puts the segmenter in training mode; frozen parts of its backbone see to themselves.

        Args:
            model: The segmenter.
        """
        model.train()

    def train_loader(
        self, sampler: TrainSampler, *, pin_memory: bool, timeout_s: float
    ) -> DataLoader[SegmentationItem]:
        """Batches for the steps of the sampler.

        Args:
            sampler: Which samples make up each batch.
            pin_memory: Whether batches are copied to page-locked memory, for CUDA.
            timeout_s: Longest wait for a batch of the workers, seconds; 0 waits for ever.
        """
        return segmentation_train_loader(
            self.splits.train,
            self.train_transform,
            sampler,
            num_workers=self.num_workers,
            pin_memory=pin_memory,
            timeout_s=timeout_s,
        )

    def loss(self, fabric: Fabric, model: nn.Module, batch: SegmentationBatch) -> dict[str, Tensor]:
        """The segmenter's losses by name; their sum is to be minimised.

        Args:
            fabric: Not used: the wrapped segmenter has the run's precision.
            model: The segmenter, in training mode.
            batch: On the segmenter's device.
        """
        losses = model(self._input(batch.images, model), batch.labels)
        return {f"loss_{name}": loss for name, loss in losses.items()}

    def _input(self, images: Tensor, model: nn.Module) -> Tensor:
        pixels = normalise(images, self.card.mean, self.card.std)
        return pixels.to(next(model.parameters()).dtype)

    @torch.no_grad()
    def evaluate(self, fabric: Fabric, model: nn.Module) -> dict[str, float]:
        """IoU on the validation set, at the images' own size; the full result is in ``result``.

        Args:
            fabric: Device, precision and processes.
            model: The segmenter without wrappers; left in evaluation mode.

        Raises:
            ValueError: An image cannot be read, or the segmenter gives NaN.
        """
        model.eval()
        metrics = SegmentationMetrics(self.card.class_names)
        loader = segmentation_eval_loader(
            self.val_set,
            self.eval_transform,
            batch_size=1,  # images differ in size
            num_workers=self.num_workers,
            rank=fabric.global_rank,
            num_processes=fabric.world_size,
            pin_memory=fabric.device.type == "cuda",
            timeout_s=self.timeout_s,
        )

        def measure_share() -> None:
            for batch in strict_segmentation(loader):
                self._measure(fabric, model, batch, metrics)

        nothing = torch.zeros(1, 3, 64, 64, device=fabric.device, dtype=torch.uint8)
        measure_shares(
            fabric,
            model,
            measure_share,
            num_batches=len(loader),
            run_on_nothing=lambda: model(self._input(nothing, model)),
        )
        merge_shares(fabric, metrics)
        self.metrics, self.result = metrics, metrics.compute()
        found = self.result.summary()
        return {"score": found["mean_iou"], **found}

    def _measure(
        self,
        fabric: Fabric,
        model: nn.Module,
        batch: SegmentationEvalBatch,
        metrics: SegmentationMetrics,
    ) -> None:
        """Adds a batch's labels, at the size of the images as stored."""
        batch = batch.to(fabric.device)
        for index, image, labels, size in zip(
            batch.indices.tolist(), batch.images, batch.labels, batch.original_sizes, strict=True
        ):
            sample_id = self.val_set.sample_id(index)
            with fabric.autocast():
                logits = logits_of_any_size(model, self._input(image[None], model))[0]
            if not logits.isfinite().all():
                raise ValueError(f"the network gives NaN or infinity for {sample_id}")
            metrics.update(sample_id, labels_from_logits(logits, size).labels, labels)
