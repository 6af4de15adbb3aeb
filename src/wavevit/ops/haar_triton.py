"""The packed Haar transform of (..., H, W, C) in one pass over memory, with an optional ReLU.

Letters: B images (all leading dimensions), C channels, H W rows and columns, h w = H / 2, W / 2,
P = B h w pixels of the bands. `wavevit.ops.haar` says what is computed; H and W are even here.

Either kernel reads every value once and writes every result once. A program takes BLOCK_P pixels of
the bands and BLOCK_C channels of each, in the order of memory. With C a multiple of 8 (16 bit) or 4
(32 bit) every access moves 16 bytes a thread.

`gate` masks a result: where the gate is not above 0, the result is 0. That is ReLU's derivative, so
the gradient of either transform with ReLU is the other one with the saved input as its gate.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wavevit.ops.dwt_reference import reference_dwt2
from wavevit.ops.triton_support import on_device_of, wrap_triton

# Values of each band a program holds: 8 per thread, so four loads of 16 bytes are on their way at
# once in 16-bit types.
TILE = 1024
NUM_WARPS = 4
MAX_BLOCK_C = 128


@triton.jit
def _positions(
    num_pixels: tl.tensor,
    width: tl.tensor,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> tl.tuple:
    """Offsets of a program's values in the image (top left of each 2 x 2) and in the bands (LL)."""
    # One division of 64 bits for the program, one of 32 for each pixel.
    first = tl.program_id(0).to(tl.int64) * BLOCK_P
    first_row = first // width
    lane = tl.arange(0, BLOCK_P)
    rows_on = ((first - first_row * width).to(tl.int32) + lane) // width
    pixel = first + lane
    # A pixel of the bands in row r (of all images) has r rows of 2 x 2 blocks above it, and in the
    # image every such row of blocks is followed by as many pixels again: the blocks' lower halves.
    top_left = 2 * (pixel + (first_row + rows_on) * width)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = (top_left * C)[:, None] + channel[None, :]
    bands = (pixel * (4 * C))[:, None] + channel[None, :]
    inside = (pixel < num_pixels)[:, None] & (channel < C)[None, :]
    return image, bands, inside


@triton.jit
def _load(pointer: tl.tensor, inside: tl.tensor, RELU: tl.constexpr) -> tl.tensor:
    """Values as fp32, or fp64 where they are, after ReLU if asked for; NaN stays NaN."""
    value = tl.load(pointer, mask=inside, other=0.0)
    if pointer.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)
    if RELU:
        value = tl.where(value <= 0, 0.0, value)
    return value


@triton.jit
def _store(
    out_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    offset: tl.tensor,
    value: tl.tensor,
    inside: tl.tensor,
) -> None:
    """Writes values, masked by the gate where there is one."""
    if gate_ptr is not None:
        gate = tl.load(gate_ptr + offset, mask=inside, other=0.0)
        value = tl.where(gate.to(value.dtype) <= 0, 0.0, value)
    tl.store(out_ptr + offset, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def analysis_kernel(
    x_ptr: tl.tensor,  # (B, 2h, 2w, C)
    gate_ptr: tl.tensor,  # (B, h, w, 4C) or None
    out_ptr: tl.tensor,  # (B, h, w, 4C)
    num_pixels: tl.tensor,  # P
    width: tl.tensor,  # w
    C: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """The four bands of each 2 x 2 block."""
    image, bands, inside = _positions(num_pixels, width, C, BLOCK_P, BLOCK_C)
    below = tl.cast(width, tl.int64) * (2 * C)
    a = _load(x_ptr + image, inside, RELU)
    b = _load(x_ptr + image + C, inside, RELU)
    c = _load(x_ptr + image + below, inside, RELU)
    d = _load(x_ptr + image + below + C, inside, RELU)
    # Columns first, halved, then rows: the order of the sums in `wavevit.ops.haar`.
    left_right, top = (c + d) * 0.5, (a + b) * 0.5
    _store(out_ptr, gate_ptr, bands, top + left_right, inside)
    _store(out_ptr, gate_ptr, bands + C, top - left_right, inside)
    difference, top = (c - d) * 0.5, (a - b) * 0.5
    _store(out_ptr, gate_ptr, bands + 2 * C, top + difference, inside)
    _store(out_ptr, gate_ptr, bands + 3 * C, top - difference, inside)


@triton.jit
def synthesis_kernel(
    y_ptr: tl.tensor,  # (B, h, w, 4C)
    gate_ptr: tl.tensor,  # (B, 2h, 2w, C) or None
    out_ptr: tl.tensor,  # (B, 2h, 2w, C)
    num_pixels: tl.tensor,  # P
    width: tl.tensor,  # w
    C: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Each 2 x 2 block of its four bands."""
    image, bands, inside = _positions(num_pixels, width, C, BLOCK_P, BLOCK_C)
    below = tl.cast(width, tl.int64) * (2 * C)
    ll = _load(y_ptr + bands, inside, RELU)
    lh = _load(y_ptr + bands + C, inside, RELU)
    hl = _load(y_ptr + bands + 2 * C, inside, RELU)
    hh = _load(y_ptr + bands + 3 * C, inside, RELU)
    low, high = (ll + hl) * 0.5, (lh + hh) * 0.5
    _store(out_ptr, gate_ptr, image, low + high, inside)
    _store(out_ptr, gate_ptr, image + below, low - high, inside)
    low, high = (ll - hl) * 0.5, (lh - hh) * 0.5
    _store(out_ptr, gate_ptr, image + C, low + high, inside)
    _store(out_ptr, gate_ptr, image + below + C, low - high, inside)


def launch_sizes(num_pixels: int, channels: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid of both kernels, and their arguments that follow from the sizes alone.

    Args:
        num_pixels: P.
        channels: C.
    """
    block_c = min(triton.next_power_of_2(channels), MAX_BLOCK_C)
    block_p = TILE // block_c
    grid = (triton.cdiv(num_pixels, block_p), triton.cdiv(channels, block_c))
    return grid, {"C": channels, "BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": NUM_WARPS}


def _new_bands(x: Tensor) -> Tensor:
    *lead, H, W, C = x.shape
    return x.new_empty(*lead, H // 2, W // 2, 4 * C)


def _new_image(y: Tensor) -> Tensor:
    *lead, h, w, channels = y.shape
    return y.new_empty(*lead, 2 * h, 2 * w, channels // 4)


@torch.library.triton_op("wavevit::haar_dwt", mutates_args=())
def haar_dwt(x: Tensor, relu: bool, gate: Tensor | None) -> Tensor:
    """The bands of x, or of relu(x), masked by the gate.

    Args:
        x: (..., H, W, C), H and W even.
        relu: Whether negative values of x count as 0.
        gate: (..., h, w, 4C) or None.

    Returns:
        (..., h, w, 4C), x's dtype.
    """
    out = _new_bands(x)
    if out.numel() == 0:
        return out
    w, channels = out.shape[-2:]
    grid, sizes = launch_sizes(out.numel() // channels, x.shape[-1])
    x, gate = x.contiguous(), None if gate is None else gate.contiguous()
    with on_device_of(x):
        wrap_triton(analysis_kernel)[grid](
            x, gate, out, out.numel() // channels, w, RELU=relu, **sizes
        )
    return out


@torch.library.triton_op("wavevit::haar_idwt", mutates_args=())
def haar_idwt(y: Tensor, relu: bool, gate: Tensor | None) -> Tensor:
    """The image whose bands y, or relu(y), are, masked by the gate.

    Args:
        y: (..., h, w, 4C).
        relu: Whether negative values of y count as 0.
        gate: (..., 2h, 2w, C) or None.

    Returns:
        (..., 2h, 2w, C), y's dtype.
    """
    out = _new_image(y)
    if out.numel() == 0:
        return out
    w, channels = y.shape[-2:]
    grid, sizes = launch_sizes(y.numel() // channels, out.shape[-1])
    y, gate = y.contiguous(), None if gate is None else gate.contiguous()
    with on_device_of(y):
        wrap_triton(synthesis_kernel)[grid](
            y, gate, out, y.numel() // channels, w, RELU=relu, **sizes
        )
    return out


def _save(ctx: Any, inputs: tuple[Tensor, bool, Tensor | None], output: Tensor) -> None:
    x, relu, gate = inputs
    ctx.save_for_backward(x if relu else None, gate)


def _dwt_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    x, gate = ctx.saved_tensors
    return haar_idwt(_masked(grad, gate), False, x), None, None


def _idwt_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    y, gate = ctx.saved_tensors
    return haar_dwt(_masked(grad, gate), False, y), None, None


def _masked(grad: Tensor, gate: Tensor | None) -> Tensor:
    # Only second derivatives come here with a gate.
    return grad if gate is None else grad.masked_fill(gate <= 0, 0.0)


# An interpreted kernel cannot run on fake tensors, so the shapes are told apart from the launches.
haar_dwt.register_fake(lambda x, relu, gate: _new_bands(x))
haar_idwt.register_fake(lambda y, relu, gate: _new_image(y))
haar_dwt.register_autograd(_dwt_backward, setup_context=_save)
haar_idwt.register_autograd(_idwt_backward, setup_context=_save)


def check_on(device: torch.device) -> None:
    """Raises where the kernels differ from the definition on a tiny input.

    Args:
        device: Where to run them.
    """
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        x = torch.linspace(-1, 1, 2 * 4 * 6 * 16).sin().view(2, 4, 6, 16).to(device, dtype)
        ll, details = reference_dwt2(x.double().relu().permute(0, 3, 1, 2))
        expected = torch.cat((ll, *details), 1).permute(0, 2, 3, 1)  # type: ignore[arg-type]
        bands = haar_dwt(x, True, None)
        torch.testing.assert_close(bands.double(), expected, rtol=tolerance, atol=tolerance)
        back = haar_idwt(bands, False, x)
        torch.testing.assert_close(back, x.relu(), rtol=tolerance, atol=tolerance)
