"""The packed one-level Haar transform: additions and subtractions on views.

Letters: B batch, C channels, H W rows and columns, h w = ceil(H / 2), ceil(W / 2).

Three ways compute the same sums, and the inverse is also the adjoint, hence the gradient. In eager
mode `haar_buffers` spares memory traffic, and on a GPU, for channels-last memory, `haar_triton` is
one pass. Under `torch.compile` and `torch.export` they are plain expressions, which a compiler
fuses into one kernel.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from wavevit.ops.extension import crop, extend, interleave, is_certain, is_exporting
from wavevit.ops.haar_buffers import (
    math_dtype as math_dtype,
)
from wavevit.ops.haar_buffers import (
    nchw_analysis,
    nchw_synthesis,
    nhwc_analysis,
    nhwc_synthesis,
)
from wavevit.ops.linear_map import apply_linear, is_traced
from wavevit.ops.triton_support import triton_applies, works_here
from wavevit.ops.wavelets import check_mode

_SUPPORTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def haar_dwt2(
    x: Tensor, channels_last: bool = False, *, mode: str = "symmetric", relu: bool = False
) -> Tensor:
    """One level of the orthonormal Haar transform, its four bands side by side as channels.

    The bands come in the order LL, LH, HL, HH of `wavevit.dwt2`. Even sizes
    never need `mode`.

    Args:
        x: (B, C, H, W), or (B, H, W, C) with channels_last; float16, bfloat16, float32 or float64.
            Its memory may have either order: no copy is made to change it.
        channels_last: Whether the last dimension of x is its channels.
        mode: How an odd H or W is made even, by PyWavelets' names; "symmetric" repeats the edge
            pixel.
        relu: Whether to transform relu(x) instead of x; x itself is left as it is.

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
    if relu and not (is_certain(x.shape[rows] % 2 == 0) and is_certain(x.shape[columns] % 2 == 0)):
        x, relu = F.relu(x), False  # first: some modes extrapolate below 0
    x = make_even(make_even(x, rows, mode), columns, mode)
    if _use_nhwc(x, channels_last):
        packed = analyse(x if channels_last else x.permute(0, 2, 3, 1), True, relu).flatten(-2)
        return packed if channels_last else packed.permute(0, 3, 1, 2)
    packed = analyse(x.permute(0, 3, 1, 2) if channels_last else x, False, relu).flatten(1, 2)
    return packed.permute(0, 2, 3, 1) if channels_last else packed


def haar_idwt2(
    y: Tensor,
    channels_last: bool = False,
    *,
    size: tuple[int, int] | None = None,
    relu: bool = False,
) -> Tensor:
    """The inverse of `haar_dwt2`.

    Args:
        y: (B, 4C, h, w), or (B, h, w, 4C) with channels_last; float16, bfloat16, float32 or
            float64. Its memory may have either order.
        channels_last: Whether the last dimension of y is its channels.
        size: H and W of the original, where one was odd.
        relu: Whether to transform relu(y) instead of y; y itself is left as it is.

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
        x = synthesise(bands, True, relu)
        x = x if channels_last else x.permute(0, 3, 1, 2)
    else:
        bands = torch.unflatten(y.permute(0, 3, 1, 2) if channels_last else y, 1, (4, C))
        x = synthesise(bands, False, relu)
        x = x.permute(0, 2, 3, 1) if channels_last else x
    return x if size is None else crop_to_size(x, size, 1 if channels_last else 2, "haar_idwt2")


def analyse(x: Tensor, channels_last: bool, relu: bool = False) -> Tensor:
    """The four bands of x, whose H and W are even.

    Args:
        x: (..., C, H, W), or (..., H, W, C) with channels_last.
        channels_last: Whether the last dimension of x is its channels.
        relu: Whether to transform relu(x).

    Returns:
        (..., 4, C, h, w), or (..., h, w, 4, C).
    """
    if channels_last and _kernels_apply(x):
        from wavevit.ops.haar_triton import haar_dwt

        return torch.unflatten(haar_dwt(x, relu, None), -1, (4, x.shape[-1]))
    x = F.relu(x) if relu else x
    if is_traced():
        return _plain_analysis(x, channels_last)
    if channels_last:
        return apply_linear(x, nhwc_analysis, nhwc_synthesis)
    return apply_linear(x, nchw_analysis, nchw_synthesis)


def synthesise(bands: Tensor, channels_last: bool, relu: bool = False) -> Tensor:
    """The inverse and the adjoint of `analyse`.

    Args:
        bands: (..., 4, C, h, w), or (..., h, w, 4, C) with channels_last.
        channels_last: Whether the last dimension is the channels.
        relu: Whether to transform relu(bands).

    Returns:
        (..., C, 2h, 2w), or (..., 2h, 2w, C).
    """
    if channels_last and _kernels_apply(bands):
        from wavevit.ops.haar_triton import haar_idwt

        return haar_idwt(bands.flatten(-2), relu, None)
    bands = F.relu(bands) if relu else bands
    if is_traced():
        return _plain_synthesis(bands, channels_last)
    if channels_last:
        return apply_linear(bands, nhwc_synthesis, nhwc_analysis)
    return apply_linear(bands, nchw_synthesis, nchw_analysis)


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


def _kernels_apply(x: Tensor) -> bool:
    # A compiler fuses the plain expressions with what stands before and after them (BatchNorm,
    # ReLU, the copy into a concatenation), which saves more than our kernels would.
    if is_traced() or not triton_applies(x):
        return False
    return works_here("haar", _check_kernels, x.device)


def _check_kernels(device: torch.device) -> None:
    from wavevit.ops.haar_triton import check_on

    check_on(device)


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
