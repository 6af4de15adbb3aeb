"""A 3x3 convolution of maps of several sizes, without bringing them to one size first.

UPerNet resizes all levels of its pyramid to the finest one and merges them by a 3x3 convolution,
which is two thirds of the whole network's arithmetic. Resizing mixes positions and a kernel's tap
mixes channels, so they commute: here the nine taps are applied to the coarse map, where there are
4, 16 or 64 times fewer cells, and resizing and shifting them into place is a product with a small
matrix along each axis. The result is the same to rounding; of the arithmetic little more than a
third is left, and neither the resized maps nor their concatenation are ever stored.

Legend: B batch, C channels in, D channels out, H W rows and columns of the finest map, h w of
another one.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wavevit.layers.folding import fold_batch_norm


def shifted_resizing(size: int, source_size: int, like: Tensor) -> Tensor:
    """Bilinear weights of every source cell for every target cell's three taps, ``(H, 3, h)``.

    Tap k of target i reads the resized map at i + k - 1, and zero outside of it, as the padding of
    a convolution does.

    Args:
        size: Cells to make, H; may be symbolic.
        source_size: Cells there are, h; may be symbolic.
        like: Gives type and device.
    """
    targets = torch.arange(size, device=like.device)
    positions = targets[:, None] + torch.arange(-1, 2, device=like.device)
    inside = (positions >= 0) & (positions < size)
    precise = torch.promote_types(like.dtype, torch.float32)
    centres = (positions.to(precise) + 0.5) * source_size / size - 0.5
    centres = centres.clamp(min=0).clamp(max=source_size - 1)
    cells = torch.arange(source_size, device=like.device)
    weights = (1 - (centres[..., None] - cells).abs()).clamp(min=0)
    return (weights * inside[..., None]).to(like.dtype)


def conv_of_resized(finest: Tensor, others: Sequence[Tensor], weight: Tensor) -> Tensor:
    """The 3x3 convolution of all maps, resized to the finest one and concatenated.

    Args:
        finest: Map ``(B, C, H, W)``.
        others: Maps ``(B, C, h, w)`` of any sizes.
        weight: ``(D, C * maps, 3, 3)``; the finest map comes first.

    Returns:
        Maps ``(B, D, H, W)``, channels last in memory.
    """
    B, _, H, W = finest.shape
    D = len(weight)
    widths = [finest.shape[1], *(other.shape[1] for other in others)]
    own, *weights = weight.split(widths, dim=1)
    merged = F.conv2d(finest, own, padding=1).permute(0, 2, 3, 1)
    if not others:
        return merged.permute(0, 3, 1, 2)
    strips, rows = [], []
    for other, part in zip(others, weights, strict=True):
        C, h, w = other.shape[1:]
        cells = other.permute(0, 2, 3, 1).reshape(-1, C)
        to_columns = shifted_resizing(W, w, other).permute(0, 2, 1).reshape(W, w * 3)
        to_columns = to_columns.expand(B * h, W, w * 3)
        for taps in part.permute(2, 1, 3, 0).unbind():  # of one row of the kernel: (C, 3, D)
            tapped = (cells @ taps.reshape(C, 3 * D)).view(B * h, w * 3, D)
            strips.append(torch.bmm(to_columns, tapped).view(B, h, W * D))
        rows.append(shifted_resizing(H, h, other).reshape(H, 3 * h))
    # One product for all rows of all maps: sums of any length are rounded once.
    to_rows = torch.cat(rows, dim=1).expand(B, -1, -1)
    merged = torch.baddbmm(merged.reshape(B, H, W * D), to_rows, torch.cat(strips, dim=1))
    return merged.view(B, H, W, D).permute(0, 3, 1, 2)


class FusionConv(nn.Module):
    """3x3 convolution of maps at the finest one's size, BatchNorm and ReLU.

    Args:
        channels: Channels C of every map, and of the output.
        num_maps: Number of maps.
    """

    def __init__(self, channels: int, num_maps: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels * num_maps, channels, 3, padding=1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``(B, C, H, W)``.

        Args:
            maps: Maps ``(B, C, h, w)``; the first gives the size.
        """
        merged = conv_of_resized(maps[0], maps[1:], self.conv.weight)
        if self.conv.bias is not None:  # of a folded BatchNorm
            merged = merged + self.conv.bias[:, None, None]
        return F.relu(self.norm(merged), inplace=True)

    def reparameterize(self) -> None:
        """Folds the BatchNorm into the convolution (inference only)."""
        if isinstance(self.norm, _BatchNorm):
            self.conv = fold_batch_norm(self.conv, self.norm)
            self.norm = nn.Identity()
