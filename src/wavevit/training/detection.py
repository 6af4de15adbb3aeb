"""The detection task: what the loop needs to train a detector.

Legend: B images of a batch, N objects of an image, H W rows and columns in pixels.
"""

from typing import Any, ClassVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wavevit.data.detection.dataset import DetectionSource
from wavevit.data.detection.loader import (
    DetectionBatch,
    DetectionItem,
    detection_eval_loader,
    detection_train_loader,
    strict_detections,
)
from wavevit.data.detection.resize import restore_boxes, restore_masks
from wavevit.data.samplers import TrainSampler
from wavevit.metrics.detection import DetectionMetrics, DetectionResult
from wavevit.training.data_task import DataTask
from wavevit.training.detection_settings import (
    DetectionAugmentation,
    DetectionData,
    DetectorSettings,
)
from wavevit.training.detection_splits import DetectionSplits
from wavevit.training.shared_evaluation import measure_shares, merge_shares

# Of COCO's twelve numbers, those in the log; the report has all.
_LOGGED = ("ap", "ap50", "ap75")


class Untouched:
    """A detector's arguments on their way through Fabric, which would make them bf16 or fp16.

    A box at pixel 1,300 would move by up to 4 pixels.

    Args:
        images: B images ``(3, H, W)``, float in [0, 1].
        targets: One dict an image, as detectors take it.
    """

    def __init__(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
        self.images = images
        self.targets = targets


def _unpack(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    given = arguments[0]
    return (given.images, given.targets) if isinstance(given, Untouched) else arguments


class DetectionTask(DataTask[DetectionSource]):
    """What the loop needs to train a detector.

    Args:
        data: The images.
        augment: What is done to them.
        model: The detector.
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
        data: DetectionData,
        augment: DetectionAugmentation,
        model: DetectorSettings,
        seed: int,
    ) -> None:
        self.data = data
        self.augment = augment
        self.model = model
        self.train_transform = augment.transform(data)
        self.eval_transform = data.eval_transform()
        self.splits: DetectionSplits = data.open(with_masks=model.with_masks)
        train_set = self.splits.train
        super().__init__(
            self.splits,
            model.card(train_set.class_names, train_set.category_ids, data),
            batch_size=data.batch_size,
            num_workers=data.num_workers,
            seed=seed,
        )
        self.metrics: DetectionMetrics | None = None
        self.result: DetectionResult | None = None
        self._truth: dict[str, Any] | None = None

    @property
    def val_inputs(self) -> DetectionSource:
        """The validation images without masks, which the detector does not need."""
        return self.splits.val_inputs

    def fingerprints(self) -> dict[str, str]:
        """What the run reads, by name: starts of SHA-256s that tell other content."""
        return self.splits.fingerprints()

    def check_validation_set(self, fabric: Fabric, timeout_s: float = 0) -> None:
        """Reads all validation images once; see the base.

        Args:
            fabric: The processes.
            timeout_s: Longest wait for a loader's worker, seconds; 0 waits for ever.

        Raises:
            ValueError: An image of the user's own validation split cannot be read, or the detector
                cannot be trained with the run's precision.
            LoaderError: A process that loads images died.
        """
        self._check_trainer(fabric)
        super().check_validation_set(fabric, timeout_s)
        self._truth = None

    def _check_trainer(self, fabric: Fabric) -> None:
        if fabric.strategy.precision.precision == "64-true":
            raise ValueError(
                "trainer.precision fp64: detectors compute boxes and losses in fp32; choose fp32"
            )

    def build_model(self) -> nn.Module:
        """The detector with its initial or fine-tuned weights."""
        detector = self.model.build(self.card)
        detector.register_forward_pre_hook(_unpack)
        return detector

    def set_train_mode(self, model: nn.Module) -> None:
        """Puts the detector in training mode; frozen parts of its backbone see to themselves.

        Args:
            model: The detector.
        """
        model.train()

    def train_loader(
        self, sampler: TrainSampler, *, pin_memory: bool, timeout_s: float
    ) -> DataLoader[DetectionItem]:
        """Batches for the steps of the sampler.

        Args:
            sampler: Which samples make up each batch.
            pin_memory: Whether batches are copied to page-locked memory, for CUDA.
            timeout_s: Longest wait for a batch of the workers, seconds; 0 waits for ever.
        """
        return detection_train_loader(
            self.splits.train,
            self.train_transform,
            sampler,
            num_workers=self.num_workers,
            pin_memory=pin_memory,
            timeout_s=timeout_s,
        )

    def loss(self, fabric: Fabric, model: nn.Module, batch: DetectionBatch) -> dict[str, Tensor]:
        """The detector's losses by name; their sum is to be minimised.

        Args:
            fabric: Not used: the detector chooses its own precisions inside autocast.
            model: The detector, in training mode.
            batch: On the detector's device.
        """
        dtype = _dtype_of(model)
        images = [image.to(dtype) for image in batch.images]
        losses: dict[str, Tensor] = model(Untouched(images, batch.targets))
        return losses

    @torch.no_grad()
    def evaluate(self, fabric: Fabric, model: nn.Module) -> dict[str, float]:
        """COCO's AP on the validation set; the full result is kept in ``result``.

        The score is the AP of boxes, also where there are masks: it is what the detectors have in
        common, and masks follow their boxes.

        Args:
            fabric: Device, precision and processes.
            model: The detector without wrappers; left in evaluation mode.

        Raises:
            ValueError: An image cannot be read, or the detector gives NaN.
        """
        model.eval()
        if self._truth is None:
            self._truth = self.val_set.to_coco()
        metrics = DetectionMetrics(
            self._truth,
            category_ids=self.val_set.category_ids,
            with_masks=self.model.with_masks,
        )
        loader = detection_eval_loader(
            self.val_inputs,
            self.eval_transform,
            batch_size=self.data.eval_batch_size,
            num_workers=self.num_workers,
            rank=fabric.global_rank,
            num_processes=fabric.world_size,
            pin_memory=fabric.device.type == "cuda",
            timeout_s=self.timeout_s,
        )

        def measure_share() -> None:
            for batch in strict_detections(loader):
                self._measure(fabric, model, batch, metrics)

        nothing = [torch.zeros(3, 64, 64, device=fabric.device, dtype=_dtype_of(model))]
        measure_shares(
            fabric,
            model,
            measure_share,
            num_batches=len(loader),
            run_on_nothing=lambda: model(nothing),
        )
        merge_shares(fabric, metrics)
        self.metrics, self.result = metrics, metrics.compute()
        found = {f"box_{name}": self.result.box.numbers[name] for name in _LOGGED}
        if self.result.mask is not None:
            found |= {f"mask_{name}": self.result.mask.numbers[name] for name in _LOGGED}
        return {"score": found["box_ap"], **found}

    def _measure(
        self, fabric: Fabric, model: nn.Module, batch: DetectionBatch, metrics: DetectionMetrics
    ) -> None:
        """Adds a batch's detections, in the pixels of the images as stored."""
        dtype = _dtype_of(model)
        images = [image.to(dtype) for image in batch.to(fabric.device).images]
        with fabric.autocast():
            detections = model(images)
        for index, image, size, found in zip(
            batch.indices.tolist(), images, batch.original_sizes, detections, strict=True
        ):
            H, W = image.shape[1:]
            metrics.update(
                self.val_set.image_id(index),
                restore_boxes(found["boxes"], (H, W), size),
                found["labels"],
                found["scores"],
                # A few at a time: those of an image may be gigabytes.
                restore_masks(found["masks"], size) if self.model.with_masks else None,
            )


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype
