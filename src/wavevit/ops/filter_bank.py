"""One level of any discrete wavelet transform: shifted views, weighted and summed, axis by axis.

Letters: P everything in front of the filtered axis, N its samples, Q everything behind it, L taps,
n samples of a band.

Not a convolution call: on a CPU the sums are several times faster than one with a single channel,
on a GPU they cannot fall to TF32, and a compiler fuses them. Memory order is kept: for (B, H, W, C)
the filtered axis just has C more samples behind it.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from wavevit.ops.extension import crop, extend
from wavevit.ops.linear_map import apply_linear, is_traced
from wavevit.ops.wavelets import FilterBank

Taps = tuple[tuple[float, ...], tuple[float, ...]]


def analyse(x: Tensor, bank: FilterBank, mode: str) -> Tensor:
    """The bands LL, LH, HL, HH of one level.

    Args:
        x: (P, H, W, Q), float32 or float64.
        bank: The wavelet's filters.
        mode: One of `wavelets.MODES`.

    Returns:
        (4, P, h, w, Q).
    """
    P, H, W, Q = x.shape
    rows = _analyse_axis(x.reshape(P, H, W * Q), bank, mode)  # (2, P, h, W * Q)
    h = rows.shape[2]
    columns = _analyse_axis(rows.reshape(2 * P * h, W, Q), bank, mode)  # (2, 2 * P * h, w, Q)
    # First index: along W, second: along H, as in the bands' names.
    return columns.reshape(4, P, h, columns.shape[2], Q)


def synthesise(bands: Tensor, bank: FilterBank, mode: str) -> Tensor:
    """The inverse of `analyse`, with the one or two more samples an odd size would drop.

    Args:
        bands: (4, P, h, w, Q), float32 or float64.
        bank: The wavelet's filters.
        mode: The mode of the analysis.

    Returns:
        (P, rows, columns, Q); see `longest`.
    """
    _, P, h, w, Q = bands.shape
    columns = _synthesise_axis(bands.reshape(2, 2 * P * h, w, Q), bank, mode)
    W = columns.shape[1]
    rows = _synthesise_axis(columns.reshape(2, P, h, W * Q), bank, mode)
    return rows.reshape(P, rows.shape[1], W, Q)


def longest(n: int, bank: FilterBank, mode: str) -> int:
    """The larger of the two sizes whose bands have n samples; the other is one less.

    Args:
        n: Samples of a band.
        bank: The wavelet's filters.
        mode: One of `wavelets.MODES`.

    Returns:
        An even number; below 1 if no signal has so short bands.
    """
    return 2 * n if mode == "periodization" else 2 * n - len(bank.dec_lo) + 2


def _analyse_axis(x: Tensor, bank: FilterBank, mode: str) -> Tensor:
    """(P, N, Q) -> (2, P, n, Q)."""
    N, L = x.shape[1], len(bank.dec_lo)
    if mode == "periodization":
        n, left = (N + 1) // 2, L // 2 - 1
    else:
        n, left = (N + L - 1) // 2, L - 2
    x = extend(x, 1, left, 2 * n + L - 2, mode)
    taps = (bank.dec_lo[::-1], bank.dec_hi[::-1])
    if is_traced():
        return _correlate(x, taps)
    return apply_linear(x, partial(_correlate, taps=taps), partial(_spread_padded, taps=taps))


def _synthesise_axis(bands: Tensor, bank: FilterBank, mode: str) -> Tensor:
    """(2, P, n, Q) -> (P, N, Q)."""
    n, L = bands.shape[2], len(bank.rec_lo)
    taps = (bank.rec_lo, bank.rec_hi)
    start = 0
    if mode == "periodization":
        # Wrap the bands around, so that every output has its L/2 neighbours; an even L/2 shifts
        # the outputs by one.
        left = L // 4
        start = 2 * left - L // 2 + 1
        bands = extend(bands, 2, left, n + (start + L - 1) // 2, "periodic")
    if is_traced():
        x = _spread(bands, taps)
    else:
        x = apply_linear(bands, partial(_spread, taps=taps), partial(_correlate_padded, taps=taps))
    return crop(x.narrow(1, start, x.shape[1] - start), 1, longest(n, bank, mode))


def _correlate(x: Tensor, taps: Taps) -> Tensor:
    """(P, 2(n + L/2 - 1), Q) -> (2, P, n, Q): band[k] = sum over j of taps[j] x[2k + j]."""
    half = x.shape[-2] // 2
    n = half - len(taps[0]) // 2 + 1
    # Made contiguous once, read L / 2 times by each filter.
    phases = [phase.contiguous() for phase in torch.unflatten(x, -2, (half, 2)).unbind(-2)]
    bands = [
        _weighted_sum([(c, phases[j % 2].narrow(-2, j // 2, n)) for j, c in enumerate(band_taps)])
        for band_taps in taps
    ]
    return torch.stack(bands, -4)


def _spread(bands: Tensor, taps: Taps) -> Tensor:
    """(2, P, n, Q) -> (P, 2(n - L/2 + 1), Q): x[2i + r] = sum over m of taps[2m + r] band[i - m].

    i counts from L/2 - 1, so that every band sample needed is there.
    """
    half_taps = len(taps[0]) // 2
    length = bands.shape[-2] - half_taps + 1
    phases = [
        _weighted_sum(
            [
                (band_taps[2 * m + r], band.narrow(-2, half_taps - 1 - m, length))
                for band, band_taps in zip(bands.unbind(-4), taps, strict=True)
                for m in range(half_taps)
            ]
        )
        for r in (0, 1)
    ]
    return torch.stack(phases, -2).flatten(-3, -2)


def _spread_padded(bands: Tensor, taps: Taps) -> Tensor:
    """The adjoint of `_correlate`."""
    pad = len(taps[0]) // 2 - 1
    return _spread(F.pad(bands, (0, 0, pad, pad)), taps)


def _correlate_padded(x: Tensor, taps: Taps) -> Tensor:
    """The adjoint of `_spread`."""
    pad = len(taps[0]) - 2
    return _correlate(F.pad(x, (0, 0, pad, pad)), taps)


def _weighted_sum(terms: list[tuple[float, Tensor]]) -> Tensor:
    # Biorthogonal filters are padded with zeros to one length.
    (factor, first), *rest = [term for term in terms if term[0] != 0.0]
    total = first * factor
    for factor, view in rest:
        total = total.add_(view, alpha=factor)
    return total
