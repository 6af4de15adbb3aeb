"""What every segmenter has in common: the contract of torchvision's segmentation models.

Legend: B images of a batch, H W height and width in pixels, K classes.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from wavevit.models.adapted_loading import adapt_before_loading
from wavevit.models.pyramid_backbone import PyramidBackbone
from wavevit.segmentation.losses import IGNORE_INDEX, check_labels
from wavevit.segmentation.official import adapt

MIN_SIDE = 32


class Segmenter(nn.Module):
    """Base of the segmenters: checks what comes in, and tells training from evaluation.

    Called with normalised images ``(B, 3, H, W)`` of any size from 32 x 32. In evaluation mode it
    returns class logits ``(B, K, H, W)``, float32; it is made of tensors only, to be exported and
    compiled as it is. In training mode it also needs a label map, int64 ``(B, H, W)`` in [0, K) or
    `ignore_index`; it returns a dict of scalar losses, whose sum is to be minimised.

    Weights are loaded with mmsegmentation's names too. Layers of another number of classes are left
    out, with a logged warning.

    Args:
        backbone: Says what colours its weights expect.
        num_classes: Classes K, 1 to 255.

    Attributes:
        network: Set by each segmenter. Class logits at the images' size in evaluation mode.
        ignore_index: Label of pixels that do not count, 255.
        mean: Mean of each channel, of values in [0, 1], that images are to be normalised with.
        std: Standard deviation of each channel.
    """

    network: nn.Module
    ignore_index: int = IGNORE_INDEX
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(self, backbone: PyramidBackbone, num_classes: int) -> None:
        super().__init__()
        if not 1 <= num_classes <= IGNORE_INDEX:
            raise ValueError(
                f"num_classes must be 1 to {IGNORE_INDEX}, the label to ignore, got {num_classes}"
            )
        self.num_classes = num_classes
        self.mean = backbone.mean
        self.std = backbone.std
        self.register_load_state_dict_pre_hook(adapt_before_loading)  # type: ignore[no-untyped-call]

    def adapt_checkpoint(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """A checkpoint's entries under this segmenter's names, and those left out.

        Left out are the layers of another number of classes.

        Args:
            state: mmsegmentation's names or ours.
        """
        return adapt(self, state)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        """Losses in training mode, class logits in evaluation mode: see the class.

        Args:
            images: Normalised images ``(B, 3, H, W)``.
            labels: int64 ``(B, H, W)``; not looked at in evaluation mode.

        Raises:
            ValueError: Images or labels are not as described.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        if images.shape[2] < MIN_SIDE or images.shape[3] < MIN_SIDE:
            raise ValueError(
                f"images must be at least {MIN_SIDE} x {MIN_SIDE} pixels, got "
                f"{images.shape[2]} x {images.shape[3]}; resize or pad them"
            )
        if not self.training:
            return self.network(images)
        return self.compute_losses(images, check_labels(labels, images, self.num_classes))

    def compute_losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Scalar losses by name, fp32.

        Args:
            images: Normalised images ``(B, 3, H, W)``.
            labels: Checked label map, int64 ``(B, H, W)``.
        """
        raise NotImplementedError
