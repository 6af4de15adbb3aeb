"""What the heads of dense detectors are made of.

Legend: B batch, C channels, H W rows and columns of a map, A anchors of a cell, K classes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Of a class at the start, so that the many negatives do not swamp the first steps (Lin et al. 2017,
# arXiv 1708.02002, section 3.3).
PRIOR_PROBABILITY = 0.01


class ConvLayer(nn.Module):
    """A 3x3 convolution and ReLU, with GroupNorm between if asked for.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        group_norm: Puts a GroupNorm of 32 groups in place of the convolution's bias; of fewer if
            the channels are few or do not divide.
    """

    def __init__(self, in_channels: int, out_channels: int, *, group_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not group_norm)
        self.norm: nn.Module = (
            nn.GroupNorm(_num_groups(out_channels), out_channels) if group_norm else nn.Identity()
        )
        self.act = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(features)))


def _num_groups(channels: int) -> int:
    groups = math.gcd(32, channels)
    # A group of one channel would be all zeros on the coarsest level of a small image.
    return max(groups // 2, 1) if groups == channels else groups


def conv_tower(
    in_channels: int, channels: int, num_convs: int, *, group_norm: bool
) -> nn.Sequential:
    """Convolutions one after another; shared by all levels.

    Args:
        in_channels: Channels of the pyramid.
        channels: Channels of the tower.
        num_convs: Number of convolutions.
        group_norm: As in `ConvLayer`.
    """
    return nn.Sequential(
        *(
            ConvLayer(channels if i else in_channels, channels, group_norm=group_norm)
            for i in range(num_convs)
        )
    )


class Scale(nn.Module):
    """A factor that a level learns for itself, 1 at first (Tian et al. 2019, arXiv 1904.01355)."""

    def __init__(self) -> None:
        super().__init__()
        # Not a single number, which torch could not shard.
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.scale


def init_head(head: nn.Module, cls_logits: nn.Conv2d) -> None:
    """Initialises a head's convolutions: normal with std 0.01, and classes at their prior.

    Args:
        head: The head.
        cls_logits: The layer in it that gives class logits.
    """
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    assert cls_logits.bias is not None
    nn.init.constant_(cls_logits.bias, math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY)))


class PyramidNetwork(nn.Module):
    """Backbone, neck and head as one module: a tensor in, tensors out.

    This is what is exported and compiled. One program of `torch.export` serves all batches and all
    sides above 128 pixels, given an example with such sides: up to 128, the stride of the coarsest
    level, that has one row or column, and torch takes a length of one for a constant.

    Args:
        backbone: Images to maps.
        neck: Maps to levels of one width.
        head: Levels to predictions.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head

    def forward(self, images: Tensor) -> Any:
        """The head's maps, lists with one entry a level.

        Args:
            images: Normalised images ``(B, 3, H, W)``; sides multiples of 32.
        """
        return self.head(self.neck(self.backbone(images)))


def flatten_map(features: Tensor, channels: int) -> Tensor:
    """A map ``(B, A * channels, H, W)`` as ``(B, H * W * A, channels)``, in the anchors' order.

    Args:
        features: The map; anchors vary slower than channels.
        channels: Values of an anchor.
    """
    return features.permute(0, 2, 3, 1).reshape(len(features), -1, channels)


def map_sizes(maps: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Rows and columns of every level.

    Args:
        maps: A map ``(B, C, H, W)`` of every level.
    """
    return [(m.shape[-2], m.shape[-1]) for m in maps]
