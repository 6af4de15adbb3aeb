"""Images of any size to one normalised, padded batch.

Legend: B images, H W height and width in pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn


class ImageBatch(NamedTuple):
    """Images of several sizes on one canvas, their upper left corners together.

    Attributes:
        tensor: Normalised images ``(B, 3, H, W)``; zero where there is no image.
        sizes: Height and width of each image, in pixels.
        padded_sizes: Each image's own height and width, rounded up to the divisor.
    """

    tensor: Tensor
    sizes: list[tuple[int, int]]
    padded_sizes: list[tuple[int, int]]


class Preprocess(nn.Module):
    """Normalises images and pads them with zeros to one canvas (spec section 0).

    Args:
        mean: Mean of each channel, for values in [0, 1].
        std: Standard deviation of each channel.
        size_divisor: Sides of the canvas are multiples of this many pixels.
    """

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        size_divisor: int = 32,
    ) -> None:
        super().__init__()
        self.size_divisor = size_divisor
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Sequence[Tensor]) -> ImageBatch:
        """The batch.

        Args:
            images: Images ``(3, H, W)`` of any sizes, float in [0, 1].

        Raises:
            ValueError: No images, or not such tensors.
        """
        check_images(images)
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        divisor = self.size_divisor
        padded_sizes = [(-(-h // divisor) * divisor, -(-w // divisor) * divisor) for h, w in sizes]
        height, width = (max(side) for side in zip(*padded_sizes, strict=True))
        canvas = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        for slot, image in zip(canvas, images, strict=True):
            # Zeros are added after normalising: the padding is grey, as in the published models.
            slot[:, : image.shape[-2], : image.shape[-1]] = (image - self.mean) / self.std
        return ImageBatch(canvas, sizes, padded_sizes)


def check_images(images: object) -> None:
    """Raises unless these are images that a detector takes.

    Args:
        images: What a caller gave.

    Raises:
        ValueError: Not a list of ``(3, H, W)`` float tensors, or images on different devices.
    """
    if isinstance(images, Tensor) or not isinstance(images, Sequence) or not images:
        got = f"a tensor {tuple(images.shape)}" if isinstance(images, Tensor) else repr(images)[:80]
        raise ValueError(f"expected a list of at least one image (3, H, W), got {got}")
    for i, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise ValueError(f"image {i}: expected a tensor (3, H, W), got {type(image).__name__}")
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"image {i}: expected (3, H, W), got {tuple(image.shape)}")
        if not image.is_floating_point():
            raise ValueError(
                f"image {i}: expected float values in [0, 1], got {image.dtype}; divide by 255"
            )
        if image.device != images[0].device or image.dtype != images[0].dtype:
            raise ValueError(
                f"image {i} is {image.dtype} on {image.device}, the first {images[0].dtype} on "
                f"{images[0].device}: give all in one dtype on one device"
            )
