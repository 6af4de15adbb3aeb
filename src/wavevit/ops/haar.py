"""The packed one-level Haar transform: additions and subtractions on views.

Letters: B batch, C channels, H W rows and columns, h w = ceil(H / 2), ceil(W / 2).

Why it is written with buffers: a depthwise convolution reads the input four times and `cat` copies
its results once more. Here the two rows of each pair are added and subtracted into a scratch of
half the input's size, and the scratch's columns go straight into the result. The inverse is also
the adjoint, hence the gradient. Under `torch.compile` and `torch.export` the same sums are plain
expressions, which a compiler fuses into one kernel.
"""

import sys

import torch
from torch import Tensor

from wavevit.ops.extension import crop, extend, interleave, is_certain, is_exporting
from wavevit.ops.linear_map import apply_linear, is_traced
from wavevit.ops.wavelets import check_mode

_SUPPORTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def haar_dwt2(x: Tensor, channels_last: bool = False, *, mode: str = "symmetric") -> Tensor:
    """One level of the orthonormal Haar transform, its four bands side by side as channels.

    The bands come in the order LL, LH, HL, HH of `wavevit.dwt2`. Even sizes
    never need `mode`.

    Args:
        x: (B, C, H, W), or (B, H, W, C) with channels_last; float16, bfloat16, float32 or float64.
            Its memory may have either order: no copy is made to change it.
        channels_last: Whether the last dimension of x is its channels.
        mode: How an odd H or W is made even, by PyWavelets' names; "symmetric" repeats the edge
            pixel.

    Returns:
        (B, 4C, h, w) with channels [ll(0..C-1), lh, hl, hh], or (B, h, w, 4C); x's dtype.

    Raises:
        TypeError: x is not a real floating-point tensor.
        ValueError: x does not have four dimensions, H or W is 0, or the mode is unknown.
    """
    _check_packed(x, "haar_dwt2")
    rows, columns = (1, 2) if channels_last else (2, 3)
    check_not_empty(x, rows, columns, "haar_dwt2")
    check_mode(mode)
    x = make_even(make_even(x, rows, mode), columns, mode)
    if _use_nhwc(x, channels_last):
        packed = analyse(x if channels_last else x.permute(0, 2, 3, 1), True).flatten(-2)
        return packed if channels_last else packed.permute(0, 3, 1, 2)
    packed = analyse(x.permute(0, 3, 1, 2) if channels_last else x, False).flatten(1, 2)
    return packed.permute(0, 2, 3, 1) if channels_last else packed


def haar_idwt2(
    y: Tensor, channels_last: bool = False, *, size: tuple[int, int] | None = None
) -> Tensor:
    """The inverse of `haar_dwt2`.

    Args:
        y: (B, 4C, h, w), or (B, h, w, 4C) with channels_last; float16, bfloat16, float32 or
            float64. Its memory may have either order.
        channels_last: Whether the last dimension of y is its channels.
        size: H and W of the original, where one was odd.

    Returns:
        (B, C, H, W), or (B, H, W, C), with H, W = 2h, 2w if no size is given; y's dtype.

    Raises:
        TypeError: y is not a real floating-point tensor.
        ValueError: y does not have four dimensions, its channels are no multiple of 4, or the
            bands cannot have come from an image of this size.
    """
    _check_packed(y, "haar_idwt2")
    channels = y.shape[3 if channels_last else 1]
    if channels % 4:
        raise ValueError(
            f"haar_idwt2 needs a multiple of 4 channels (four bands), got {channels} with "
            f"channels_last={channels_last}; check the layout"
        )
    C = channels // 4
    if _use_nhwc(y, channels_last):
        bands = torch.unflatten(y if channels_last else y.permute(0, 2, 3, 1), -1, (4, C))
        x = synthesise(bands, True)
        x = x if channels_last else x.permute(0, 3, 1, 2)
    else:
        bands = torch.unflatten(y.permute(0, 3, 1, 2) if channels_last else y, 1, (4, C))
        x = synthesise(bands, False)
        x = x.permute(0, 2, 3, 1) if channels_last else x
    return x if size is None else crop_to_size(x, size, 1 if channels_last else 2, "haar_idwt2")


def analyse(x: Tensor, channels_last: bool) -> Tensor:
    """The four bands of x, whose H and W are even.

    Args:
        x: (..., C, H, W), or (..., H, W, C) with channels_last.
        channels_last: Whether the last dimension of x is its channels.

    Returns:
        (..., 4, C, h, w), or (..., h, w, 4, C).
    """
    if is_traced():
        return _plain_analysis(x, channels_last)
    if channels_last:
        return apply_linear(x, _nhwc_analysis, _nhwc_synthesis)
    return apply_linear(x, _nchw_analysis, _nchw_synthesis)


def synthesise(bands: Tensor, channels_last: bool) -> Tensor:
    """The inverse and the adjoint of `analyse`.

    Args:
        bands: (..., 4, C, h, w), or (..., h, w, 4, C) with channels_last.
        channels_last: Whether the last dimension is the channels.

    Returns:
        (..., C, 2h, 2w), or (..., 2h, 2w, C).
    """
    if is_traced():
        return _plain_synthesis(bands, channels_last)
    if channels_last:
        return apply_linear(bands, _nhwc_synthesis, _nhwc_analysis)
    return apply_linear(bands, _nchw_synthesis, _nchw_analysis)


def make_even(x: Tensor, axis: int, mode: str) -> Tensor:
    """x with one sample more along the axis where its size is odd.

    Args:
        x: Any shape, floating point.
        axis: The axis to extend.
        mode: One of `wavelets.MODES`.

    Returns:
        x itself where the size is even.
    """
    size = x.shape[axis]
    # While exporting, a dynamic size that is not even by construction is extended in any case.
    return x if is_certain(size % 2 == 0) else extend(x, axis, 0, 2 * ((size + 1) // 2), mode)


def crop_to_size(x: Tensor, size: tuple[int, int], rows: int, name: str) -> Tensor:
    """x without the row and the column that an odd size has too many.

    Args:
        x: Any shape.
        size: The H and W wanted.
        rows: The axis of H; W is the next one.
        name: The function that was called.

    Returns:
        A view of x, or a copy while exporting.

    Raises:
        ValueError: x is not of this size or one larger.
    """
    if not (isinstance(size, tuple | list | torch.Size) and len(size) == 2):
        raise ValueError(f"{name} needs size as (H, W), got {size!r}")
    if not is_exporting():  # where sizes may be symbols
        H, W = x.shape[rows : rows + 2]
        if size[0] not in (H - 1, H) or size[1] not in (W - 1, W) or min(size) < 1:
            raise ValueError(
                f"{name} cannot make size {tuple(size)} of these bands, only {H} or {H - 1} rows "
                f"and {W} or {W - 1} columns; check the size, the wavelet and the mode"
            )
    return crop(crop(x, rows, size[0]), rows + 1, size[1])


def math_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are taken in: float16 and bfloat16 are rounded once, at the end.

    Args:
        dtype: The dtype of the data.

    Returns:
        float64 for float64, else float32.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_dtype(x: Tensor, name: str) -> None:
    """Refuses what is not a real floating-point tensor.

    Args:
        x: The tensor to check.
        name: The function that was called.

    Raises:
        TypeError: Wrong type or dtype.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} needs a torch.Tensor, got {type(x).__name__}")
    if x.dtype.is_complex:
        raise TypeError(
            f"{name} needs real numbers, got {x.dtype}; transform x.real and x.imag separately"
        )
    if x.dtype not in _SUPPORTED:
        raise TypeError(
            f"{name} needs float16, bfloat16, float32 or float64, got {x.dtype}; "
            "convert it first, as with x.float()"
        )


def check_not_empty(x: Tensor, rows: int, columns: int, name: str) -> None:
    """Refuses a tensor without rows or columns.

    Args:
        x: The tensor to check.
        rows: The axis of H.
        columns: The axis of W.
        name: The function that was called.

    Raises:
        ValueError: H or W is 0.
    """
    if x.shape[rows] == 0 or x.shape[columns] == 0:
        raise ValueError(
            f"{name} needs at least one row and one column, got {x.shape[rows]} rows and "
            f"{x.shape[columns]} columns; check the input's size"
        )


def channels_innermost(x: Tensor) -> bool:
    """Whether x, shaped (B, C, H, W), lies in memory as (B, H, W, C).

    Args:
        x: A tensor of any rank; only four dimensions can be so.

    Returns:
        Also true for a slice of the channels.
    """
    return x.ndim == 4 and x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def _check_packed(x: Tensor, name: str) -> None:
    check_dtype(x, name)
    if x.ndim != 4:
        raise ValueError(
            f"{name} needs four dimensions, (B, C, H, W) or (B, H, W, C), got shape "
            f"{tuple(x.shape)}; add the missing ones with unsqueeze"
        )


def _use_nhwc(x: Tensor, channels_last: bool) -> bool:
    if is_traced():
        return channels_last  # strides are the compiler's matter
    if channels_last:
        return not x.permute(0, 3, 1, 2).is_contiguous()
    return channels_innermost(x)


# ---- Eager: buffers of our own. Everything below carries leading dimensions along.


def _nchw_analysis(x: Tensor) -> Tensor:
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


def _nchw_synthesis(bands: Tensor) -> Tensor:
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


def _nhwc_analysis(x: Tensor) -> Tensor:
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


def _nhwc_synthesis(bands: Tensor) -> Tensor:
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


# ---- Traced: the same sums as expressions. Sizes are spelled out so that dynamic ones add up.


def _plain_analysis(x: Tensor, channels_last: bool) -> Tensor:
    dtype = x.dtype
    x = x.to(math_dtype(dtype))
    columns = -2 if channels_last else -1
    rows = columns - 1
    h, w = x.shape[rows] // 2, x.shape[columns] // 2
    left, right = torch.unflatten(x, columns, (w, 2)).unbind(columns)
    bands = []
    for half in (left + right, left - right):
        top, bottom = torch.unflatten(half, rows, (h, 2)).unbind(rows)
        bands += [(top + bottom) * 0.5, (top - bottom) * 0.5]
    return torch.stack(bands, -2 if channels_last else -4).to(dtype)


def _plain_synthesis(bands: Tensor, channels_last: bool) -> Tensor:
    dtype = bands.dtype
    ll, lh, hl, hh = bands.to(math_dtype(dtype)).unbind(-2 if channels_last else -4)
    columns = -2 if channels_last else -1
    rows = columns - 1
    low = interleave(ll + hl, ll - hl, columns)
    high = interleave(lh + hh, lh - hh, columns)
    return (interleave(low + high, low - high, rows) * 0.5).to(dtype)
