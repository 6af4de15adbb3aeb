"""`depthwise_gelu` on a GPU: how its Triton kernels are launched, and their gradients.

Letters: B batch, H W rows and columns, C channels, K columns of a strip, P strips of a tile,
N partial sums.

The forward pass reads the tokens and writes the result. The backward pass keeps no pre-activation:
one kernel recomputes it, multiplies GELU's derivative into the incoming gradient and sums the
gradients of weight and bias; a second one is the transposed convolution. Sums are taken in a fixed
order, so gradients are the same in every run. Gradients of gradients come from the reference.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from wavevit.ops.depthwise_gelu_kernels_triton import backward_kernel, depthwise_kernel
from wavevit.ops.depthwise_gelu_reference import reference_depthwise_gelu
from wavevit.ops.triton_support import on_device_of, wrap_triton

NUM_TAPS = 9
NUM_SUMS = NUM_TAPS + 1  # the gradients of nine taps and a bias
STRIP_WIDTHS = (7, 8, 4, 6, 5, 3, 2)


class Launch(NamedTuple):
    """How a kernel is spread over the GPU.

    columns: K, the width of a strip.
    strips: P, strips of a tile, a power of two.
    channels: Channels of a tile, a power of two. A thread has strips * channels / (32 * num_warps).
    rows: Output rows of a program.
    num_warps: Warps of a program.
    """

    columns: int
    strips: int
    channels: int
    rows: int
    num_warps: int


# Below this the rows of a map are split over programs, at the cost of two more rows read by each.
ENOUGH_PROGRAMS = 1024
MIN_ROWS = 4
# For sizes that a compiled graph leaves open: it must not depend on how they divide.
ANY_COLUMNS, ANY_ROWS = 4, 14


def choose_launch(B: int, H: int, W: int, C: int, kernel: str) -> Launch:
    """The launch parameters of a kernel.

    Args:
        B: Batch size.
        H: Rows.
        W: Columns.
        C: Channels.
        kernel: "forward", "backward" (its first kernel) or "transposed" (its second). One choice
            serves all so far; the benchmark's sweep tells them apart.
    """
    # Widths that divide W spare the loads their masks. Wider strips convert fewer columns twice.
    columns = next((k for k in STRIP_WIDTHS if _is_certain(W) and W % k == 0), ANY_COLUMNS)
    # Two channels of a thread: a warp still moves whole lines of 128 bytes, and the registers,
    # most of them filters and sums, let enough warps run to cover the memory's latency.
    channels = min(64, max(16, triton.next_power_of_2(C)))
    strips = 256 // channels
    if not _is_certain(B, H, W):
        return Launch(columns, strips, channels, ANY_ROWS, num_warps=4)
    rows = H
    tiles = _ceil_div(B * _ceil_div(W, columns), strips) * _ceil_div(C, channels)
    while rows > MIN_ROWS and tiles * _ceil_div(H, rows) < ENOUGH_PROGRAMS:
        rows = _ceil_div(rows, 2)
    return Launch(columns, strips, channels, rows, num_warps=4)


def _is_certain(*sizes: int) -> bool:
    return all(isinstance(size, int) for size in sizes)  # a SymInt is none


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class _Plan(NamedTuple):
    """A launch on one shape: the grid, how many partial sums it has, and the last arguments."""

    grid: tuple[int]
    num_partials: int
    sizes: tuple[int, int, int, int, int, int]
    constants: dict[str, Any]


def _plan(x: Tensor, kernel: str, **flags: bool) -> _Plan:
    B, H, W, C = x.shape
    C = int(C)
    launch = choose_launch(B, H, W, C, kernel)
    strips_per_row = _ceil_div(W, launch.columns)
    num_strips = B * strips_per_row
    row_blocks = _ceil_div(H, launch.rows)
    num_partials = _ceil_div(num_strips, launch.strips) * row_blocks
    masked = not _is_certain(W) or W % launch.columns != 0 or C % launch.channels != 0
    if kernel == "backward":  # a strip must not be summed twice
        masked = masked or not _is_certain(num_strips) or num_strips % launch.strips != 0
    return _Plan(
        (num_partials * _ceil_div(C, launch.channels),),
        num_partials,
        (H, W, num_strips, strips_per_row, row_blocks, launch.rows),
        {
            "C": C,
            "K": launch.columns,
            "P": launch.strips,
            "CHANNELS": launch.channels,
            "SHORT": x.element_size() == 2,
            "MASKED": masked,
            "num_warps": launch.num_warps,
            **flags,
        },
    )


@torch.library.triton_op("wavevit::depthwise_gelu", mutates_args=())
def depthwise_gelu_op(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`gelu(conv(tokens) + bias)`, see `wavevit.ops.depthwise_gelu`."""
    tokens, weight = tokens.contiguous(), weight.contiguous()
    result = torch.empty_like(tokens)
    if tokens.numel() > 0:
        has_bias = bias is not None
        plan = _plan(tokens, "forward", BIAS=has_bias, GELU=True, FLIP=False)
        pointers = (tokens, weight, weight if bias is None else bias.contiguous(), result)
        with on_device_of(tokens):
            wrap_triton(depthwise_kernel)[plan.grid](*pointers, *plan.sizes, **plan.constants)
    return result


@torch.library.triton_op("wavevit::depthwise_gelu_backward", mutates_args=())
def depthwise_gelu_backward_op(
    grad: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor | None, with_sums: bool
) -> tuple[Tensor, Tensor]:
    """The gradient of the pre-activation, and those of weight and bias.

    Args:
        grad: (B, H, W, C), of the result.
        tokens: (B, H, W, C).
        weight: (C, 1, 3, 3).
        bias: (C,) or None.
        with_sums: Whether the second result is wanted.

    Returns:
        (B, H, W, C) of the tokens' dtype, and (10, C): nine taps and the bias, in the precision of
        the arithmetic; zeros if it is not wanted.
    """
    tokens, weight = tokens.contiguous(), weight.contiguous()
    C = tokens.shape[-1]
    d = torch.empty_like(tokens)
    precise = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    if tokens.numel() == 0:
        return d, tokens.new_zeros((NUM_SUMS, C), dtype=precise)
    plan = _plan(tokens, "backward", BIAS=bias is not None, SUMS=with_sums)
    num_partials = plan.num_partials if with_sums else 0
    partial = tokens.new_empty((num_partials, NUM_SUMS, C), dtype=precise)
    filters = (weight, weight if bias is None else bias.contiguous())
    pointers = (tokens, *filters, grad.contiguous(), d, partial)
    with on_device_of(tokens):
        wrap_triton(backward_kernel)[plan.grid](*pointers, *plan.sizes, **plan.constants)
    return d, partial.sum(0)


@torch.library.triton_op("wavevit::depthwise_transposed", mutates_args=())
def depthwise_transposed_op(d: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the tokens (B, H, W, C): the convolution's transpose of d, of that shape.

    Args:
        d: (B, H, W, C), the gradient of the pre-activation.
        weight: (C, 1, 3, 3).
    """
    d, weight = d.contiguous(), weight.contiguous()
    result = torch.empty_like(d)
    if d.numel() > 0:
        plan = _plan(d, "transposed", BIAS=False, GELU=False, FLIP=True)
        pointers = (d, weight, weight, result)
        with on_device_of(d):
            wrap_triton(depthwise_kernel)[plan.grid](*pointers, *plan.sizes, **plan.constants)
    return result


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tokens, weight, bias = ctx.saved_tensors
    needed = ctx.needs_input_grad
    if torch.is_grad_enabled():  # create_graph=True; the kernels have no derivative of their own
        wanted = [x for x, need in zip((tokens, weight, bias), needed, strict=True) if need]
        result = reference_depthwise_gelu(tokens, weight, bias)
        found = iter(torch.autograd.grad(result, wanted, grad, create_graph=True))
        return tuple(next(found) if need else None for need in needed)
    d, sums = depthwise_gelu_backward_op(grad, tokens, weight, bias, needed[1] or needed[2])
    sums = sums.to(weight.dtype)
    return (
        depthwise_transposed_op(d, weight) if needed[0] else None,
        sums[:NUM_TAPS].t().contiguous().view(weight.shape) if needed[1] else None,
        sums[NUM_TAPS] if needed[2] else None,
    )


depthwise_gelu_op.register_autograd(_backward, setup_context=_setup_context)


def check_on(device: torch.device) -> None:
    """Raises where a kernel does not run on this device or differs from the reference.

    Args:
        device: A CUDA device.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 6, 40), (40, 1, 3, 3), (40,), (2, 5, 6, 40))
    precise = [torch.randn(shape, generator=generator) for shape in shapes]
    inputs = [x.to(device, torch.bfloat16).requires_grad_() for x in precise[:3]]
    exact = [x.detach().cpu().double().requires_grad_() for x in inputs]
    grad = precise[3].to(device, torch.bfloat16)
    with torch.enable_grad():
        result = depthwise_gelu_op(*inputs)
        truth = reference_depthwise_gelu(*exact)
    found = (result, *torch.autograd.grad(result, inputs, grad))
    wanted = (truth, *torch.autograd.grad(truth, exact, grad.cpu().double()))
    for ours, right in zip(found, wanted, strict=True):
        # bfloat16 rounds to 1 part in 256; the sums have up to 60 terms near 1.
        torch.testing.assert_close(ours.cpu().double(), right, rtol=0.02, atol=0.1)
