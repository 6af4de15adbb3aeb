"""Convolution, BatchNorm, ReLU: what heads are made of.

Legend: B batch, C channels, H W rows and columns of a map.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wavevit.layers.folding import fold_batch_norm


class ConvNormReLU(nn.Module):
    """Convolution without bias that keeps the size, BatchNorm and ReLU.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Odd side of the kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(B, out_channels, H, W)``.

        Args:
            features: Maps ``(B, in_channels, H, W)``.
        """
        return F.relu(self.norm(self.conv(features)), inplace=True)

    def reparameterize(self) -> None:
        """Folds the BatchNorm into the convolution (inference only)."""
        if isinstance(self.norm, _BatchNorm):
            self.conv = fold_batch_norm(self.conv, self.norm)
            self.norm = nn.Identity()
