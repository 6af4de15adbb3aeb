"""Residual addition and LayerNorm in one pass over memory, forward and backward.

Letters: C channels, M tokens (all leading dimensions), S programs of the backward kernel.

Forward reads residual and branch once and writes sum and normed once; mean and 1 / deviation of
each token are kept in fp32. Backward reads the two gradients and the sum once, and writes the
gradient of the sum, which is residual's and branch's. Each of its programs adds up the gradients of
weight and bias over tokens of its own into a row of a buffer, and PyTorch sums the rows: the same
order in every run, no atomics.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from wavevit.ops.add_layer_norm_reference import reference_add_layer_norm
from wavevit.ops.triton_support import on_device_of, wrap_triton

# Up to WARP_CHANNELS one warp holds whole tokens: sums over channels need neither shared memory nor
# barriers. TILE values of each tensor are 16 per thread.
WARP_CHANNELS, TILE = 512, 512
# S: enough warps to fill a large GPU, but 8 tokens or more for each, so that the buffer's rows,
# which stay in the cache, cost little beside the tokens' own traffic.
MAX_PROGRAMS, TOKENS_PER_PROGRAM = 2048, 8


@triton.jit
def _load(pointer: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Values as fp32, or fp64 where they are."""
    value = tl.load(pointer, mask=inside, other=0.0)
    if pointer.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)
    return value


@triton.jit
def forward_kernel(
    residual_ptr: tl.tensor,  # (M, C)
    branch_ptr: tl.tensor,  # (M, C)
    weight_ptr: tl.tensor,  # (C,) or None
    bias_ptr: tl.tensor,  # (C,) or None
    sum_ptr: tl.tensor,  # (M, C)
    normed_ptr: tl.tensor,  # (M, C)
    mean_ptr: tl.tensor,  # (M,)
    rstd_ptr: tl.tensor,  # (M,)
    num_tokens: tl.tensor,  # M
    eps: tl.tensor,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """BLOCK_M tokens."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, BLOCK_C)
    inside = (token < num_tokens)[:, None] & (channel < C)[None, :]
    offset = (token * C)[:, None] + channel[None, :]
    summed = _load(residual_ptr + offset, inside) + _load(branch_ptr + offset, inside)
    # Rounded as it is stored, so that the norm is that of the sum which the caller gets.
    stored = summed.to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + offset, stored, mask=inside)
    summed = stored.to(summed.dtype)

    mean = tl.sum(summed, axis=1) / C
    centred = tl.where(inside, summed - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)
    tl.store(mean_ptr + token, mean, mask=token < num_tokens)
    tl.store(rstd_ptr + token, rstd, mask=token < num_tokens)
    normed = centred * rstd[:, None]
    if weight_ptr is not None:
        normed *= _load(weight_ptr + channel, channel < C)[None, :]
    if bias_ptr is not None:
        normed += _load(bias_ptr + channel, channel < C)[None, :]
    tl.store(normed_ptr + offset, normed.to(normed_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    grad_sum_ptr: tl.tensor,  # (M, C) or None
    grad_normed_ptr: tl.tensor,  # (M, C)
    sum_ptr: tl.tensor,  # (M, C)
    mean_ptr: tl.tensor,  # (M,)
    rstd_ptr: tl.tensor,  # (M,)
    weight_ptr: tl.tensor,  # (C,) or None
    grad_residual_ptr: tl.tensor,  # (M, C)
    grad_branch_ptr: tl.tensor,  # (M, C), or None where it would equal the residual's
    partial_ptr: tl.tensor,  # (S, 2, C): of weight, of bias; or None
    num_tokens: tl.tensor,  # M
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Blocks of BLOCK_M tokens, each S blocks after the one before."""
    channel = tl.arange(0, BLOCK_C)
    if weight_ptr is not None:
        weight = _load(weight_ptr + channel, channel < C)
    if partial_ptr is not None:
        grad_weight = tl.zeros((BLOCK_M, BLOCK_C), partial_ptr.dtype.element_ty)
        grad_bias = tl.zeros((BLOCK_M, BLOCK_C), partial_ptr.dtype.element_ty)
    for block in range(tl.program_id(0), tl.cdiv(num_tokens, BLOCK_M), tl.num_programs(0)):
        token = tl.cast(block, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = (token < num_tokens)[:, None] & (channel < C)[None, :]
        offset = (token * C)[:, None] + channel[None, :]
        mean = tl.load(mean_ptr + token, mask=token < num_tokens, other=0.0)
        rstd = tl.load(rstd_ptr + token, mask=token < num_tokens, other=0.0)
        grad = _load(grad_normed_ptr + offset, inside)
        unit = (_load(sum_ptr + offset, inside) - mean[:, None]) * rstd[:, None]
        if partial_ptr is not None:
            grad_weight += grad * unit  # grad is 0 outside
            grad_bias += grad
        if weight_ptr is not None:
            grad *= weight[None, :]
        along_mean = tl.sum(grad, axis=1) / C
        along_unit = tl.sum(grad * unit, axis=1) / C
        grad = (grad - along_mean[:, None] - unit * along_unit[:, None]) * rstd[:, None]
        if grad_sum_ptr is not None:
            grad += _load(grad_sum_ptr + offset, inside)
        tl.store(
            grad_residual_ptr + offset, grad.to(grad_residual_ptr.dtype.element_ty), mask=inside
        )
        if grad_branch_ptr is not None:
            tl.store(
                grad_branch_ptr + offset, grad.to(grad_branch_ptr.dtype.element_ty), mask=inside
            )
    if partial_ptr is not None:
        row = partial_ptr + tl.program_id(0).to(tl.int64) * (2 * C) + channel
        tl.store(row, tl.sum(grad_weight, axis=0), mask=channel < C)
        tl.store(row + C, tl.sum(grad_bias, axis=0), mask=channel < C)


def launch_sizes(channels: int) -> dict[str, int]:
    """The arguments of both kernels that follow from C alone.

    Args:
        channels: C.
    """
    block_c = triton.next_power_of_2(channels)
    block_m = max(1, TILE // block_c)
    warps = 1 if block_c <= WARP_CHANNELS else 4
    return {"C": channels, "BLOCK_M": block_m, "BLOCK_C": block_c, "num_warps": warps}


def num_programs(num_tokens: int, block_m: int) -> int:
    """S, the programs of the backward kernel; by the sizes alone, so that every GPU adds alike.

    Args:
        num_tokens: M.
        block_m: Tokens a program takes at a time.
    """
    return min(triton.cdiv(num_tokens, max(block_m, TOKENS_PER_PROGRAM)), MAX_PROGRAMS)


def _new_outputs(
    residual: Tensor, branch: Tensor, normed_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sum_dtype = torch.promote_types(residual.dtype, branch.dtype)
    math_dtype = torch.promote_types(sum_dtype, torch.float32)
    summed = residual.new_empty(residual.shape, dtype=sum_dtype)
    normed = residual.new_empty(residual.shape, dtype=normed_dtype)
    mean = residual.new_empty(residual.shape[:-1], dtype=math_dtype)
    return summed, normed, mean, torch.empty_like(mean)


@torch.library.triton_op("wavevit::add_layer_norm", mutates_args=())
def add_layer_norm_forward(
    residual: Tensor,
    branch: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    normed_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, normed, and what the backward pass needs to know of each token.

    Args:
        residual: (..., C), C >= 1.
        branch: (..., C).
        weight: (C,) or None.
        bias: (C,) or None.
        eps: Added to the variance.
        normed_dtype: The dtype of the second result.

    Returns:
        (sum (..., C), normed (..., C), mean (...), 1 / deviation (...)); the last two are fp32, or
        fp64 with the sum, and have no gradient.
    """
    summed, normed, mean, rstd = _new_outputs(residual, branch, normed_dtype)
    if summed.numel() == 0:
        return summed, normed, mean, rstd
    sizes = launch_sizes(residual.shape[-1])
    residual, branch = residual.contiguous(), branch.contiguous()
    weight = None if weight is None else weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    M = mean.numel()
    with on_device_of(residual):
        wrap_triton(forward_kernel)[(triton.cdiv(M, sizes["BLOCK_M"]),)](
            residual, branch, weight, bias, summed, normed, mean, rstd, M, eps, **sizes
        )
    return summed, normed, mean, rstd


def _new_gradients(
    summed: Tensor, residual_dtype: torch.dtype, branch_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    grad_residual = torch.empty_like(summed, dtype=residual_dtype)
    shape = (0,) if residual_dtype == branch_dtype else summed.shape
    return grad_residual, summed.new_empty(shape, dtype=branch_dtype)


@torch.library.triton_op("wavevit::add_layer_norm_backward", mutates_args=())
def add_layer_norm_backward(
    grad_sum: Tensor | None,
    grad_normed: Tensor,
    summed: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual_dtype: torch.dtype,
    branch_dtype: torch.dtype,
    affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of residual, branch, and weight and bias.

    Args:
        grad_sum: (..., C), or None for zeros.
        grad_normed: (..., C).
        summed: (..., C), as the forward pass returned it, contiguous.
        mean: (...), likewise.
        rstd: (...), likewise.
        weight: (C,) or None.
        residual_dtype: The dtype of the first result.
        branch_dtype: The dtype of the second result.
        affine: Whether the gradients of weight and bias are wanted.

    Returns:
        ((..., C), (..., C) or (0,) where it would equal the first, (2, C) of weight and bias or
        (0, C) where not wanted; the last one in mean's dtype).
    """
    C = summed.shape[-1]
    grad_residual, grad_branch = _new_gradients(summed, residual_dtype, branch_dtype)
    if not summed.numel():
        return grad_residual, grad_branch, mean.new_zeros(2 if affine else 0, C)
    sizes = launch_sizes(C)
    grad_sum = None if grad_sum is None else grad_sum.contiguous()
    grad_normed = grad_normed.contiguous()
    weight = None if weight is None else weight.contiguous()
    M = mean.numel()
    S = num_programs(M, sizes["BLOCK_M"])
    partial = mean.new_empty(S, 2, C) if affine else None
    with on_device_of(summed):
        wrap_triton(backward_kernel)[(S,)](
            grad_sum, grad_normed, summed, mean, rstd, weight,
            grad_residual, grad_branch if grad_branch.numel() else None, partial, M, **sizes,
        )  # fmt: skip
    grad_affine = mean.new_empty(0, C) if partial is None else partial.sum(0)
    return grad_residual, grad_branch, grad_affine


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    residual, branch, weight, bias, ctx.eps, ctx.normed_dtype = inputs
    summed, _, mean, rstd = output
    ctx.dtypes = residual.dtype, branch.dtype
    ctx.affine_dtypes = [None if affine is None else affine.dtype for affine in (weight, bias)]
    ctx.save_for_backward(summed, mean, rstd, weight)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # an absent gradient is not read


def _backward(
    ctx: Any, grad_sum: Tensor | None, grad_normed: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    if grad_normed is None:
        grads = (None if grad_sum is None else grad_sum.to(dtype) for dtype in ctx.dtypes)
        return *grads, None, None, None, None
    summed, mean, rstd, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad[2:4]
    if torch.is_grad_enabled():  # second derivatives are to follow
        grad, grad_affine = _differentiable(summed, weight, grad_normed, wanted, ctx)
        grad = grad if grad_sum is None else grad + grad_sum
        grad_residual, grad_branch = (grad.to(dtype) for dtype in ctx.dtypes)
    else:
        grad_residual, grad_branch, grad_affine = add_layer_norm_backward(
            grad_sum, grad_normed, summed, mean, rstd, weight, *ctx.dtypes, any(wanted)
        )
        if ctx.dtypes[0] == ctx.dtypes[1]:
            grad_branch = grad_residual
    affine = (
        rows.to(dtype) if needed else None
        for rows, dtype, needed in zip(grad_affine, ctx.affine_dtypes, wanted, strict=False)
    )
    grad_weight, grad_bias = affine if any(wanted) else (None, None)
    return grad_residual, grad_branch, grad_weight, grad_bias, None, None


def _differentiable(
    summed: Tensor, weight: Tensor | None, grad: Tensor, wanted: tuple[bool, bool], ctx: Any
) -> tuple[Tensor, list[Tensor]]:
    """The reference's gradients of the sum, and of weight and bias, in operations of PyTorch."""
    dtype, shape = ctx.normed_dtype, summed.shape[-1:]
    unit = F.layer_norm(summed.to(dtype), shape, None, None, ctx.eps)
    weighted = grad if weight is None else grad * weight.to(dtype)
    (grad_summed,) = torch.autograd.grad(unit, summed, weighted, create_graph=True)
    tokens = tuple(range(grad.ndim - 1))
    if not any(wanted):
        return grad_summed, []
    return grad_summed, [(grad * unit).sum(tokens), grad.sum(tokens)]


# An interpreted kernel cannot run on fake tensors, so the shapes are told apart from the launches.
add_layer_norm_forward.register_fake(
    lambda residual, branch, weight, bias, eps, dtype: _new_outputs(residual, branch, dtype)
)
add_layer_norm_backward.register_fake(
    lambda grad_sum, grad_normed, summed, mean, rstd, weight, first, second, affine: (
        *_new_gradients(summed, first, second),
        mean.new_empty(2 if affine else 0, summed.shape[-1]),
    )
)
add_layer_norm_forward.register_autograd(_backward, setup_context=_save)


def check_on(device: torch.device) -> None:
    """Raises where the kernels differ from the reference on a tiny input.

    Args:
        device: Where to run them.
    """
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        # Waves that look like noise: the same on every device, and no generator is disturbed.
        waves = [(torch.arange(15.0 * 64) * step).sin().view(5, 3, 64) for step in (7, 11, 13, 17)]
        tensors = [*waves, waves[0][0, 0], waves[1][0, 0]]
        *grads, residual, branch, weight, bias = (x.to(device, dtype) for x in tensors)
        leaves = [x.requires_grad_() for x in (residual, branch, weight, bias)]
        exact = [x.detach().double().requires_grad_() for x in leaves]
        with torch.enable_grad():
            found = add_layer_norm_forward(residual, branch, weight, bias, 1e-6, dtype)[:2]
            expected = reference_add_layer_norm(exact[0], exact[1], exact[2], exact[3], 1e-6)
        pairs = [
            *zip(found, expected, strict=True),
            *zip(
                torch.autograd.grad(found, leaves, grads),
                torch.autograd.grad(expected, exact, [grad.double() for grad in grads]),
                strict=True,
            ),
        ]
        for ours, truth in pairs:
            torch.testing.assert_close(ours.double(), truth, rtol=tolerance, atol=tolerance)
