"""The 2-D discrete wavelet transform, forward and inverse.

Letters: B batch, C channels, H W rows and columns, h w rows and columns of a band.

Band names: the first letter is the filter along W (columns), the second along H (rows), L low and H
high. In this order they are PyWavelets' cA, cH, cV, cD:

    LL = cA   low along W, low along H: the average
    LH = cH   low along W, high along H: horizontal edges
    HL = cV   high along W, low along H: vertical edges
    HH = cD   high along both: diagonals
"""

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from wavevit.ops import filter_bank as general
from wavevit.ops import haar
from wavevit.ops.extension import crop, is_exporting
from wavevit.ops.haar import haar_dwt2, haar_idwt2
from wavevit.ops.linear_map import is_traced
from wavevit.ops.wavelets import check_mode, check_wavelet, filter_bank, is_haar

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Details", "Pyramid", "dwt2", "haar_dwt2", "haar_idwt2", "idwt2"]

Details: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""(lh, hl, hh) of one level."""
Pyramid: TypeAlias = "tuple[Tensor, Unpack[tuple[Details, ...]]]"
"""(ll, details of the coarsest level, ..., details of the finest level)."""


def dwt2(
    x: Tensor,
    wavelet: str = "haar",
    *,
    levels: int = 1,
    mode: str = "symmetric",
    channels_last: bool = False,
) -> Pyramid:
    """The wavelet pyramid of x, nested as by `pywt.wavedec2`.

    One level gives `(ll, (lh, hl, hh))`. Every further level transforms ll again.

    Args:
        x: (..., H, W): images of any rank, such as (B, C, H, W) or (H, W); with channels_last
            (..., H, W, C). float16, bfloat16, float32 or float64, any H, W >= 1.
        wavelet: A discrete wavelet's name in PyWavelets, orthogonal or biorthogonal. Other than
            "haar" needs `pip install "wavevit[wavelets]"`.
        levels: How often to halve the size.
        mode: How x continues past its edges, by PyWavelets' names. "periodization" gives the
            smallest bands, ceil(H / 2); the others floor((H + L - 1) / 2) with L filter taps.
        channels_last: Whether the last dimension of x is its channels.

    Returns:
        A tuple (ll, (lh, hl, hh) of the coarsest level, ..., (lh, hl, hh) of the finest level) of
        x's dtype and layout. Bands of one level may share memory.

    Raises:
        TypeError: x is not a real floating-point tensor.
        ValueError: Unknown wavelet or mode, too few dimensions, levels < 1, or no pixels.
        ImportError: PyWavelets is missing and the wavelet is not Haar.
    """
    check_wavelet(wavelet)
    check_mode(mode)
    if not isinstance(levels, int) or levels < 1:
        raise ValueError(f"dwt2 needs levels of at least 1, got {levels!r}; 1 halves the size once")
    haar.check_dtype(x, "dwt2")
    _check_rank(x, channels_last, "dwt2", "an input")
    rows = -3 if channels_last else -2
    haar.check_not_empty(x, rows, rows + 1, "dwt2")
    if not channels_last and not is_traced() and haar.channels_innermost(x):
        found = dwt2(x.permute(0, 2, 3, 1), wavelet, levels=levels, mode=mode, channels_last=True)
        return _map_bands(found, lambda band: band.permute(0, 3, 1, 2))
    dtype = x.dtype
    if levels > 1 or not is_haar(wavelet):
        x = x.to(haar.math_dtype(dtype))  # rounded once, not on every level
    details: list[Details] = []
    for _ in range(levels):
        x, lh, hl, hh = _one_level(x, wavelet, mode, channels_last)
        details.insert(0, (lh, hl, hh))
    return _map_bands((x, *details), lambda band: band.to(dtype))


def idwt2(
    bands: Pyramid,
    wavelet: str = "haar",
    *,
    size: tuple[int, int] | None = None,
    mode: str = "symmetric",
    channels_last: bool = False,
) -> Tensor:
    """The image whose `dwt2` the bands are, exactly as `pywt.waverec2` gives it.

    Args:
        bands: The result of `dwt2` or of the same form.
        wavelet: The wavelet of the analysis.
        size: H and W of the original. An odd one cannot be told from the bands: without size the
            result has the next even one.
        mode: The mode of the analysis; it matters only whether it is "periodization".
        channels_last: Whether the last dimension of each band is its channels.

    Returns:
        (..., H, W), or (..., H, W, C), of the bands' dtype.

    Raises:
        TypeError: A band is not a real floating-point tensor, or bands are not nested as above.
        ValueError: Unknown wavelet or mode, shapes or dtypes of bands that do not belong together,
            or a size that the bands cannot have come from.
        ImportError: PyWavelets is missing and the wavelet is not Haar.
    """
    check_wavelet(wavelet)
    check_mode(mode)
    _check_bands(bands, channels_last)
    ll, *levels = bands
    finest = levels[-1][0]
    if not channels_last and not is_traced() and haar.channels_innermost(finest):
        last = _map_bands(bands, lambda band: band.permute(0, 2, 3, 1))
        x = idwt2(last, wavelet, size=size, mode=mode, channels_last=True)
        return x.permute(0, 3, 1, 2)
    dtype = ll.dtype
    if len(levels) > 1 or not is_haar(wavelet):
        ll, *levels = _map_bands(bands, lambda band: band.to(haar.math_dtype(dtype)))
    rows = ll.ndim - (3 if channels_last else 2)
    x = ll
    for index, details in enumerate(levels):
        if not is_exporting():
            _check_level(x, details, rows, index, len(levels))
            _check_long_enough(details[0].shape[rows : rows + 2], wavelet, mode)
        x = crop(crop(x, rows, details[0].shape[rows]), rows + 1, details[0].shape[rows + 1])
        x = _one_level_back((x, *details), wavelet, mode, channels_last)
    if size is not None:
        x = haar.crop_to_size(x, size, rows, "idwt2")
    return x.to(dtype)


def _one_level(
    x: Tensor, wavelet: str, mode: str, channels_last: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = -3 if channels_last else -2
    if not is_haar(wavelet):
        return general.analyse(x, rows, filter_bank(wavelet), mode)
    x = haar.make_even(haar.make_even(x, rows, mode), rows + 1, mode)
    if channels_last:
        ll, lh, hl, hh = haar.analyse(x, True).unbind(-2)
    else:
        # The dimension in front of H stands in for the channels; a lone image gets one.
        images = x if x.ndim > 2 else x[None]
        ll, lh, hl, hh = (
            band.view(*x.shape[:-2], *band.shape[-2:])
            for band in haar.analyse(images, False).unbind(-4)
        )
    return ll, lh, hl, hh


def _one_level_back(
    bands: tuple[Tensor, Tensor, Tensor, Tensor], wavelet: str, mode: str, channels_last: bool
) -> Tensor:
    if not is_haar(wavelet):
        rows = -3 if channels_last else -2
        return general.synthesise(bands, rows, filter_bank(wavelet), mode)
    if channels_last:
        return haar.synthesise(torch.stack(bands, -2), True)
    if bands[0].ndim > 2:
        return haar.synthesise(torch.stack(bands, -4), False)
    return haar.synthesise(torch.stack(bands)[:, None], False)[0]


def _map_bands(bands: Pyramid, change: Any) -> Pyramid:
    ll, *levels = bands
    return (change(ll), *((change(lh), change(hl), change(hh)) for lh, hl, hh in levels))


# ---- What a user can get wrong.


def _check_rank(x: Tensor, channels_last: bool, name: str, what: str) -> None:
    least = 3 if channels_last else 2
    if x.ndim < least:
        layout = "(..., H, W, C)" if channels_last else "(..., H, W)"
        raise ValueError(
            f"{name} needs {what} of at least {least} dimensions {layout} with "
            f"channels_last={channels_last}, got shape {tuple(x.shape)}; add one with unsqueeze"
        )


def _check_bands(bands: Pyramid, channels_last: bool) -> None:
    form = "(ll, (lh, hl, hh), ...) as dwt2 returns"
    if not isinstance(bands, (tuple, list)) or len(bands) < 2:
        raise TypeError(f"idwt2 needs bands nested {form}, got {type(bands).__name__}")
    ll, *levels = bands
    haar.check_dtype(ll, "idwt2")
    _check_rank(ll, channels_last, "idwt2", "bands")
    for details in levels:
        if not isinstance(details, (tuple, list)) or len(details) != 3:
            raise TypeError(f"idwt2 needs bands nested {form}; every level has three detail bands")
        for band in details:
            haar.check_dtype(band, "idwt2")
            if band.dtype != ll.dtype:
                raise ValueError(
                    f"idwt2 needs bands of one dtype, got {ll.dtype} and {band.dtype}; "
                    "convert them with .to()"
                )


def _check_level(ll: Tensor, details: Details, rows: int, index: int, count: int) -> None:
    shape = details[0].shape
    if any(band.shape != shape for band in details):
        shapes = ", ".join(str(tuple(band.shape)) for band in details)
        raise ValueError(
            f"idwt2 needs lh, hl, hh of one level of one shape, got {shapes}; "
            "take all three from one dwt2"
        )
    # What is reconstructed from the coarser level may be one sample longer: an odd size's trace.
    spare = 1 if index > 0 else 0
    fits = ll.ndim == len(shape) and all(
        0 <= a - b <= (spare if axis in (rows, rows + 1) else 0)
        for axis, (a, b) in enumerate(zip(ll.shape, shape, strict=True))
    )
    if not fits:
        raise ValueError(
            f"idwt2 needs ll and details of one shape, got {tuple(ll.shape)} and {tuple(shape)} "
            f"at level {count - index} of {count}; check levels, wavelet, mode and channels_last"
        )


def _check_long_enough(size: tuple[int, ...], wavelet: str, mode: str) -> None:
    least = 1 if is_haar(wavelet) else general.shortest(filter_bank(wavelet), mode)
    if min(size) < least:
        raise ValueError(
            f"idwt2 needs bands of at least {least} rows and {least} columns for {wavelet!r} with "
            f"mode={mode!r}, got {size[0]} and {size[1]}; check the wavelet and the mode"
        )
