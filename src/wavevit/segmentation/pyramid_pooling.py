"""Pyramid pooling (Zhao et al. 2017, "Pyramid scene parsing network", arXiv 1612.01105).

Legend: B batch, C channels, H W rows and columns of a map, S side of a pooled square.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from wavevit.layers.conv_norm import ConvNormReLU
from wavevit.segmentation.resize import resize_bilinear


def pooling_matrix(pool_sizes: Sequence[int], length: int, like: Tensor) -> Tensor:
    """Rows that average ``length`` values down to S, ``(sum of pool_sizes, length)``.

    Bin i of S covers the values from ``floor(i * length / S)`` up to, not including,
    ``ceil((i + 1) * length / S)``, as in `torch.nn.AdaptiveAvgPool2d`: neighbours may share a
    value, and with fewer values than bins some have the same.

    Args:
        pool_sizes: S of every pool, one after another.
        length: Values in a row or column of the map; may be symbolic.
        like: Gives type and device.
    """
    # Filled on the device: it need not be waited for.
    bins = torch.cat([torch.arange(S, device=like.device) for S in pool_sizes])
    sides = torch.cat([torch.full((S,), S, device=like.device) for S in pool_sizes])
    start = bins * length // sides
    end = ((bins + 1) * length + sides - 1) // sides
    cells = torch.arange(length, device=like.device)
    covered = (cells >= start[:, None]) & (cells < end[:, None])
    return covered.to(like.dtype) / (end - start)[:, None].to(like.dtype)


def pool_squares(features: Tensor, pool_sizes: Sequence[int]) -> list[Tensor]:
    """Averages ``(B, C, S, S)`` over S x S parts of the map, for every S.

    Equals adaptive average pooling to rounding. Written as products of matrices, it exports with
    dynamic sizes, which torch's own does not.

    Args:
        features: Maps ``(B, C, H, W)`` of any size.
        pool_sizes: S of every pool.
    """
    over_rows = pooling_matrix(pool_sizes, features.shape[-2], features)
    over_columns = pooling_matrix(pool_sizes, features.shape[-1], features)
    # All pools at once: each is a block on the diagonal. The rest is little beside the first
    # product, which reads the map.
    pooled = over_rows @ (features @ over_columns.T)
    ends = accumulate(pool_sizes)
    return [pooled[..., e - S : e, e - S : e] for S, e in zip(pool_sizes, ends, strict=True)]


class PyramidPooling(nn.Module):
    """The coarsest map with what surrounds each cell, near and far, as one map of ``channels``.

    The map is pooled to squares, each is projected and resized back, and a 3x3 convolution merges
    them with the map itself.

    Args:
        in_channels: Channels C of the map.
        channels: Channels of each projection and of the output.
        pool_sizes: Sides S of the squares.
    """

    def __init__(self, in_channels: int, channels: int, pool_sizes: Sequence[int]) -> None:
        super().__init__()
        self.pool_sizes = tuple(pool_sizes)
        self.projections = nn.ModuleList(
            ConvNormReLU(in_channels, channels, 1) for _ in self.pool_sizes
        )
        self.merge = ConvNormReLU(in_channels + len(self.pool_sizes) * channels, channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(B, channels, H, W)``.

        Args:
            features: Maps ``(B, C, H, W)``.
        """
        parts = [features]
        pooled = pool_squares(features, self.pool_sizes)
        for projection, square in zip(self.projections, pooled, strict=True):
            parts.append(resize_bilinear(projection(square), features.shape[-2:]))
        return self.merge(torch.cat(parts, dim=1))
