"""A residual addition with the LayerNorm that follows it: the seam of every pre-norm block.

Letters: C channels.
"""

from typing import Literal

import torch
from torch import Tensor

from wavevit.ops.add_layer_norm_reference import reference_add_layer_norm
from wavevit.ops.linear_map import is_traced
from wavevit.ops.triton_support import (
    KERNEL_DTYPES,
    triton_applies,
    why_not_triton,
    works_here,
)

__all__ = ["add_layer_norm"]

Backend = Literal["reference", "triton"]
MAX_CHANNELS = 1024  # a program of the kernels holds a token whole
# Below this a call is bound by its launch, which takes longer than that of PyTorch's operations.
MIN_VALUES = 1 << 22


def add_layer_norm(
    residual: Tensor,
    branch: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum of residual and branch, and its LayerNorm over the channels.

    Args:
        residual: (..., C), floating point.
        branch: (..., C), of residual's shape; its dtype may be another, as under autocast.
        weight: (C,), or None where it is folded away.
        bias: (C,), or None.
        eps: Added to the variance.
        backend: "reference" = PyTorch's own operations; "triton" = one pass over memory on a GPU;
            None = the faster one that applies.

    Returns:
        (sum, normed), both (..., C), with the dtypes and gradients of
        `layer_norm(residual + branch)`.

    Raises:
        ValueError: Shapes that do not belong together, an unknown backend, or one that cannot run.
    """
    _check(residual, branch, weight, bias)
    if backend is None:
        # A compiler makes one kernel of the reference by itself, together with its neighbours.
        fast = not is_traced() and residual.numel() >= MIN_VALUES and triton_applies(residual)
        fast = fast and _why_not(residual, branch, weight, bias) is None
        fast = fast and works_here("add_layer_norm", _check_kernels, residual.device)
    elif backend == "triton":
        reason = why_not_triton(residual) or _why_not(residual, branch, weight, bias)
        if reason is not None:
            raise ValueError(f'add_layer_norm cannot run with backend="triton": {reason}')
        fast = True
    elif backend == "reference":
        fast = False
    else:
        raise ValueError(
            f'add_layer_norm needs backend "reference", "triton" or None, got {backend!r}'
        )
    if not fast:
        return reference_add_layer_norm(residual, branch, weight, bias, eps)
    from wavevit.ops.add_layer_norm_triton import add_layer_norm_forward

    summed, normed, _, _ = add_layer_norm_forward(
        residual, branch, weight, bias, eps, _normed_dtype(residual, branch)
    )
    return summed, normed


def _check(residual: Tensor, branch: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    if residual.ndim == 0 or residual.shape != branch.shape:
        raise ValueError(
            f"add_layer_norm needs residual and branch of one shape (..., C), got "
            f"{tuple(residual.shape)} and {tuple(branch.shape)}; broadcast with expand_as first"
        )
    for name, affine in (("weight", weight), ("bias", bias)):
        if affine is not None and affine.shape != residual.shape[-1:]:
            raise ValueError(
                f"add_layer_norm needs {name} of shape ({residual.shape[-1]},) for inputs "
                f"{tuple(residual.shape)}, got {tuple(affine.shape)}"
            )


def _why_not(
    residual: Tensor, branch: Tensor, weight: Tensor | None, bias: Tensor | None
) -> str | None:
    """What keeps the kernels from these inputs beyond `why_not_triton` of the residual."""
    if not 1 <= residual.shape[-1] <= MAX_CHANNELS:
        return f"needs 1 to {MAX_CHANNELS} channels, got {residual.shape[-1]}"
    for name, tensor in (("branch", branch), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.device != residual.device:
            return f"needs {name} on {residual.device} as residual is, got {tensor.device}"
        if tensor.dtype not in KERNEL_DTYPES:
            return f"needs {name} in float16, bfloat16 or float32, got {tensor.dtype}"
    # PyTorch's layer_norm wants one dtype outside autocast; its own error is the reference's.
    sum_dtype = torch.promote_types(residual.dtype, branch.dtype)
    affine = [tensor.dtype for tensor in (weight, bias) if tensor is not None]
    if not _autocast(residual) and any(dtype != sum_dtype for dtype in affine):
        return f"needs weight and bias in {sum_dtype}, the sum's dtype, outside autocast"
    return None


def _autocast(x: Tensor) -> bool:
    # Autocast on the CPU leaves layer_norm in the dtype of its input.
    return x.is_cuda and torch.is_autocast_enabled("cuda")


def _normed_dtype(residual: Tensor, branch: Tensor) -> torch.dtype:
    """The dtype of `layer_norm`'s result: on CUDA autocast runs it in float32."""
    sum_dtype = torch.promote_types(residual.dtype, branch.dtype)
    return torch.float32 if _autocast(residual) and sum_dtype.itemsize < 4 else sum_dtype


def _check_kernels(device: torch.device) -> None:
    from wavevit.ops.add_layer_norm_triton import check_on

    check_on(device)
