"""The one-level Haar transform in buffers of its own: additions and subtractions on views.

Letters: C channels, H W rows and columns, h w = H / 2, W / 2. Leading dimensions are carried along.

Why buffers: a depthwise convolution reads the input four times and `cat` copies its results once
more. Here the two rows of each pair are added and subtracted into a scratch of half the input's
size, and the scratch's columns go straight into the result.
"""

import sys

import torch
from torch import Tensor

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def math_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are taken in: float16 and bfloat16 are rounded once, at the end.

    Args:
        dtype: The dtype of the data.

    Returns:
        float64 for float64, else float32.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def nchw_analysis(x: Tensor) -> Tensor:
    *lead, C, H, W = x.shape
    out = x.new_empty(*lead, 4, C, H // 2, W // 2)
    x = x.to(math_dtype(x.dtype))
    ll, lh, hl, hh = out.unbind(-4)
    rows = x.new_empty(*lead, C, H // 2, W)
    top, bottom = x[..., 0::2, :], x[..., 1::2, :]
    torch.add(top, bottom, out=rows)
    _split_columns(rows, ll, hl)
    torch.sub(top, bottom, out=rows)
    _split_columns(rows, lh, hh)
    return out


def nchw_synthesis(bands: Tensor) -> Tensor:
    dtype = bands.dtype
    bands = bands.to(math_dtype(dtype))
    ll, lh, hl, hh = bands.unbind(-4)
    *lead, h, w = ll.shape
    out = bands.new_empty(*lead, h, 2, 2 * w)
    low, high = bands.new_empty(*lead, h, 2 * w), out.select(-2, 1)
    _join_columns(ll, hl, low)
    _join_columns(lh, hh, high)
    torch.add(low, high, out=out.select(-2, 0))
    torch.sub(low, high, out=high)
    return out.flatten(-3, -2).to(dtype)


def _split_columns(rows: Tensor, low: Tensor, high: Tensor) -> None:
    """Writes half the sum and half the difference of each column pair; `rows` is used up."""
    if rows.device.type != "cpu":
        rows.mul_(0.5)
        torch.add(rows[..., 0::2], rows[..., 1::2], out=low)
        torch.sub(rows[..., 0::2], rows[..., 1::2], out=high)
        return
    # Strided loops run scalar on a CPU. As complex numbers the pairs fill vector registers:
    # (a + ib)(1 + i)/2 = (a - b)/2 + i(a + b)/2, exact but for one rounding each.
    rows.view(_COMPLEX[rows.dtype]).mul_(0.5 + 0.5j)
    if rows.dtype == high.dtype == torch.float32 and sys.byteorder == "little":
        # Narrowing 64 to 32 bits keeps each pair's first number, again at vector speed; after a
        # shift it is the second one.
        pairs = rows.view(torch.int64)
        high.view(torch.int32).copy_(pairs)
        low.view(torch.int32).copy_(pairs.bitwise_right_shift_(32))
        return
    high.copy_(rows[..., 0::2])
    low.copy_(rows[..., 1::2])


def _join_columns(low: Tensor, high: Tensor, rows: Tensor) -> None:
    """Writes (low + high)/2 and (low - high)/2 into the even and odd columns of `rows`."""
    if rows.device.type != "cpu":
        torch.add(low, high, out=rows[..., 0::2])
        torch.sub(low, high, out=rows[..., 1::2])
        rows.mul_(0.5)
        return
    # The inverse of the rotation above: (high + i low)(1 - i)/2.
    pairs = rows.view(_COMPLEX[rows.dtype])
    torch.complex(high, low, out=pairs)
    pairs.mul_(0.5 - 0.5j)


def nhwc_analysis(x: Tensor) -> Tensor:
    *lead, H, W, C = x.shape
    out = x.new_empty(*lead, H // 2, W // 2, 4, C)
    x = x.to(math_dtype(x.dtype))
    ll, lh, hl, hh = out.unbind(-2)
    columns = x.new_empty(*lead, H, W // 2, C)
    top, bottom = columns[..., 0::2, :, :], columns[..., 1::2, :, :]
    left, right = x[..., 0::2, :], x[..., 1::2, :]
    torch.add(left, right, out=columns).mul_(0.5)
    torch.add(top, bottom, out=ll)
    torch.sub(top, bottom, out=lh)
    torch.sub(left, right, out=columns).mul_(0.5)
    torch.add(top, bottom, out=hl)
    torch.sub(top, bottom, out=hh)
    return out


def nhwc_synthesis(bands: Tensor) -> Tensor:
    dtype = bands.dtype
    bands = bands.to(math_dtype(dtype))
    ll, lh, hl, hh = bands.unbind(-2)
    *lead, h, w, C = ll.shape
    out = bands.new_empty(*lead, h, 2, 2 * w, C)
    low, high = bands.new_empty(*lead, h, 2 * w, C), out.select(-3, 1)
    for rows, first, second in ((low, ll, hl), (high, lh, hh)):
        torch.add(first, second, out=rows[..., 0::2, :])
        torch.sub(first, second, out=rows[..., 1::2, :])
        rows.mul_(0.5)
    torch.add(low, high, out=out.select(-3, 0))
    torch.sub(low, high, out=high)
    return out.flatten(-4, -3).to(dtype)
