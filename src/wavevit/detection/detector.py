"""What every detector has in common: the contract of torchvision's detectors.

Legend: B images of a batch, N objects of an image, H W height and width in pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wavevit.detection.official import adapt
from wavevit.detection.preprocess import ImageBatch, Preprocess
from wavevit.detection.targets import Target, check_targets
from wavevit.models.adapted_loading import adapt_before_loading

Detection = dict[str, Tensor]


class Detector(nn.Module):
    """Base of the detectors: checks what comes in, and tells training from evaluation.

    Called with a list of images ``(3, H, W)``, float in [0, 1], of any sizes. In training mode it
    also needs targets, one dict an image: "boxes" ``(N, 4)`` xyxy in pixels, "labels" ``(N,)``
    int64 in 0..num_classes-1 and, for mask detectors, "masks" ``(N, H, W)`` uint8; it returns a
    dict of scalar losses, whose sum is to be minimised. In evaluation mode it returns one dict an
    image: "boxes" ``(N, 4)`` xyxy in the pixels of the given image, "labels" ``(N,)``, "scores"
    ``(N,)`` in [0, 1], highest first, and for mask detectors "masks" ``(N, H, W)``, probabilities.
    They have no gradient. Boxes lie inside of the image and have an area, but for Sparse R-CNN's,
    which as officially may reach over its border or lie beside it. Images are not resized.

    Weights are loaded with mmdetection's names too. Layers of another number of classes are left
    out, with a logged warning.

    Args:
        num_classes: Classes of objects; background is not one of them.
        preprocess: Normalises and pads the images.
        with_masks: Whether targets and detections have masks.

    Attributes:
        network: Tensors in, tensors out, set by each detector: what is exported and compiled. For
            exported sizes see `PyramidNetwork`.
    """

    network: nn.Module

    def __init__(
        self, num_classes: int, preprocess: Preprocess, *, with_masks: bool = False
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.with_masks = with_masks
        self.preprocess = preprocess
        self.register_load_state_dict_pre_hook(adapt_before_loading)  # type: ignore[no-untyped-call]

    def adapt_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """A checkpoint's entries under this detector's names, and those left out.

        Left out are the layers of another number of classes.

        Args:
            state: mmdetection's names or ours.
        """
        return adapt(self, state)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> Any:
        """Losses in training mode, detections in evaluation mode: see the class.

        Args:
            images: Images ``(3, H, W)``, float in [0, 1].
            targets: One dict an image; not looked at in evaluation mode.

        Raises:
            ValueError: Images or targets are not as described.
        """
        batch = self.preprocess(images)
        if not self.training:
            with torch.no_grad():
                return self.detect(batch)
        checked = check_targets(
            targets, images, num_classes=self.num_classes, with_masks=self.with_masks
        )
        return self.compute_losses(batch, checked)

    def compute_losses(self, batch: ImageBatch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Scalar losses by name, fp32.

        Args:
            batch: Normalised and padded images.
            targets: Checked targets, on the images' device.
        """
        raise NotImplementedError

    def detect(self, batch: ImageBatch) -> list[Detection]:
        """Detections of every image, in its own pixels; called without gradients.

        Args:
            batch: Normalised and padded images.
        """
        raise NotImplementedError
