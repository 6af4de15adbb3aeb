"""Depthwise 3x3 convolution, bias and exact GELU on NHWC tokens.

Letters: B batch, H W rows and columns, C channels.
"""

from typing import Literal

import torch
from torch import Tensor

from wavevit.ops.depthwise_gelu_reference import reference_depthwise_gelu
from wavevit.ops.triton_support import triton_applies, why_not_triton, works_here

__all__ = ["Backend", "depthwise_gelu"]

Backend = Literal["reference", "triton"]


def depthwise_gelu(
    tokens: Tensor, weight: Tensor, bias: Tensor | None, *, backend: Backend | None = None
) -> Tensor:
    """`gelu(conv(tokens) + bias)`, the heart of the feed-forward network (PVT v2, section 3.2).

    Each channel has a 3x3 filter of its own; the map continues with zeros. The kernel reads and
    writes each value once and keeps only its arguments for the backward pass; the reference is what
    exported programs hold. Under autocast both compute in its dtype, as a convolution does.

    Args:
        tokens: (B, H, W, C), any H, W >= 1, floating point. The kernel copies other than
            contiguous ones.
        weight: (C, 1, 3, 3), of the tokens' dtype, as `nn.Conv2d(C, C, 3, groups=C)` has it.
        bias: (C,) or None.
        backend: "triton" is for float16, bfloat16 and float32 on an NVIDIA GPU; None takes it where
            it works, and the reference elsewhere. Either is differentiable twice.

    Returns:
        (B, H, W, C), of the tokens' dtype or autocast's.

    Raises:
        ValueError: Shapes, dtypes or devices do not belong together, the backend is unknown, or it
            cannot run here.
    """
    _check(tokens, weight, bias)
    if backend == "reference":
        return reference_depthwise_gelu(tokens, weight, bias)
    if backend == "triton":
        reason = why_not_triton(tokens)
        if reason is not None:
            raise ValueError(f"depthwise_gelu's triton backend {reason}")
    elif backend is not None:
        raise ValueError(f"depthwise_gelu has backends reference and triton, got {backend!r}")
    elif not (
        triton_applies(tokens) and works_here("depthwise_gelu", _check_kernels, tokens.device)
    ):
        return reference_depthwise_gelu(tokens, weight, bias)
    return _run_kernel(tokens, weight, bias)


def _run_kernel(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    from wavevit.ops.depthwise_gelu_triton import depthwise_gelu_op

    if torch.is_autocast_enabled(tokens.device.type):
        dtype = torch.get_autocast_dtype(tokens.device.type)
        tokens, weight = tokens.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    result: Tensor = depthwise_gelu_op(tokens, weight, bias)
    return result


def _check_kernels(device: torch.device) -> None:
    from wavevit.ops.depthwise_gelu_triton import check_on

    check_on(device)


def _check(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if tokens.ndim != 4:
        raise ValueError(
            f"depthwise_gelu needs tokens (B, H, W, C), got shape {tuple(tokens.shape)}"
        )
    C = tokens.shape[-1]
    if weight.shape != (C, 1, 3, 3):
        raise ValueError(
            f"depthwise_gelu needs weight ({C}, 1, 3, 3) for tokens of {C} channels, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (C,):
        raise ValueError(
            f"depthwise_gelu needs bias ({C},) for tokens of {C} channels, got {tuple(bias.shape)}"
        )
    for name, x in (("weight", weight), ("bias", bias)):
        if x is None:
            continue
        if x.device != tokens.device:
            raise ValueError(
                f"depthwise_gelu needs {name} on the tokens' device {tokens.device}, got {x.device}"
            )
        # Autocast makes them one.
        if x.dtype != tokens.dtype and not torch.is_autocast_enabled(tokens.device.type):
            raise ValueError(
                f"depthwise_gelu needs {name} of the tokens' dtype {tokens.dtype}, got {x.dtype}"
            )
