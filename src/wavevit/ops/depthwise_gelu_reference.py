"""Depthwise 3x3 convolution and GELU, as plain PyTorch: the definition of `depthwise_gelu`.

Letters: B batch, H W rows and columns, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wavevit.ops.cpu_inference import gelu


def reference_depthwise_gelu(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`gelu(conv(tokens) + bias)`; differentiable to any order, any dtype and device.

    Args:
        tokens: (B, H, W, C).
        weight: (C, 1, 3, 3), one filter for each channel.
        bias: (C,) or None.

    Returns:
        (B, H, W, C), the memory of a channels_last map.
    """
    channels = tokens.shape[-1]
    conv = F.conv2d(tokens.permute(0, 3, 1, 2), weight, bias, padding=1, groups=channels)
    hidden = conv.permute(0, 2, 3, 1)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return gelu(hidden)
    # In place, the same numbers: the caller still holds the tokens, and three such tensors at once
    # would be the peak of the whole network.
    return torch.ops.aten.gelu_(hidden)
