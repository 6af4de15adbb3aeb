"""One level of any discrete wavelet transform: shifted views, weighted and summed, axis by axis.

Letters: N samples along the filtered axis, n samples of a band, L taps. Shapes name that axis only;
whatever lies in front of it or behind it is carried along in its memory order.

Not a convolution call: with a single channel that is several times slower on a CPU, on a GPU it may
fall to TF32, and a compiler can fuse the sums.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from wavevit.ops.extension import crop, extend, extend_phases, interleave
from wavevit.ops.linear_map import apply_linear, is_traced
from wavevit.ops.wavelets import FilterBank

Taps = tuple[tuple[float, ...], tuple[float, ...]]
Bands = tuple[Tensor, Tensor, Tensor, Tensor]


def analyse(x: Tensor, rows: int, bank: FilterBank, mode: str) -> Bands:
    """The bands of one level.

    Args:
        x: (..., H, W, ...), float32 or float64.
        rows: The axis of H, counted from the end; W is the next one.
        bank: The wavelet's filters.
        mode: One of `wavelets.MODES`.

    Returns:
        ll, lh, hl, hh, each (..., h, w, ...).
    """
    along_h = _analyse_axis(x, rows, bank, mode)
    low_w, high_w = _analyse_axis(along_h, rows + 1, bank, mode).unbind(0)
    ll, lh = low_w.unbind(0)
    hl, hh = high_w.unbind(0)
    return ll, lh, hl, hh


def synthesise(bands: Bands, rows: int, bank: FilterBank, mode: str) -> Tensor:
    """The inverse of `analyse`.

    Args:
        bands: ll, lh, hl, hh, each (..., h, w, ...), float32 or float64.
        rows: The axis of h, counted from the end.
        bank: The wavelet's filters.
        mode: The mode of the analysis.

    Returns:
        (..., H, W, ...), both even: an odd size comes out one larger.
    """
    along_w = torch.unflatten(torch.stack(bands), 0, (2, 2))
    along_h = _synthesise_axis(along_w, rows + 1, bank, mode)
    return _synthesise_axis(along_h, rows, bank, mode)


def shortest(bank: FilterBank, mode: str) -> int:
    """How many samples the bands of a single sample have.

    Args:
        bank: The wavelet's filters.
        mode: One of `wavelets.MODES`.

    Returns:
        The least size of any band.
    """
    return 1 if mode == "periodization" else len(bank.dec_lo) // 2


def _analyse_axis(x: Tensor, axis: int, bank: FilterBank, mode: str) -> Tensor:
    """(..., N, ...) -> (2, ..., n, ...)."""
    N, L = x.shape[axis], len(bank.dec_lo)
    if mode == "periodization":
        n, left = (N + 1) // 2, L // 2 - 1
    else:
        n, left = (N + L - 1) // 2, L - 2
    taps = (bank.dec_lo[::-1], bank.dec_hi[::-1])
    if is_traced():
        phases = extend_phases(x, axis, left, n + L // 2 - 1, mode)
        return _correlate_phases(phases, axis, taps)
    x = extend(x, axis, left, 2 * n + L - 2, mode)
    front = -x.ndim - 1  # from the end, since a mapped dimension may come first
    return apply_linear(
        x,
        partial(_correlate, axis=axis, front=front, taps=taps),
        partial(_spread_padded, axis=axis, front=front, taps=taps),
    )


def _synthesise_axis(bands: Tensor, axis: int, bank: FilterBank, mode: str) -> Tensor:
    """(2, ..., n, ...) -> (..., N, ...)."""
    n, L = bands.shape[axis], len(bank.rec_lo)
    size = 2 * n if mode == "periodization" else 2 * n - L + 2
    taps = (bank.rec_lo, bank.rec_hi)
    start = 0
    if mode == "periodization":
        # Wrapped around, so that every output has its L/2 neighbours; an even L/2 shifts by one.
        left = L // 4
        start = 2 * left - L // 2 + 1
        bands = extend(bands, axis, left, n + (start + L - 1) // 2, "periodic")
    front = -bands.ndim
    if is_traced():
        x = _spread(bands, axis, front, taps)
    else:
        x = apply_linear(
            bands,
            partial(_spread, axis=axis, front=front, taps=taps),
            partial(_correlate_padded, axis=axis, front=front, taps=taps),
        )
    return crop(x, axis, size, start)


def _correlate(x: Tensor, axis: int, front: int, taps: Taps) -> Tensor:
    """(2(n + L/2 - 1)) -> (2, n): band[k] = sum over j of taps[j] x[2k + j]."""
    phases = torch.unflatten(x, axis, (-1, 2)).unbind(axis)
    # Made contiguous once, read L / 2 times by each filter.
    return _correlate_phases([phase.contiguous() for phase in phases], axis, taps, front)


def _correlate_phases(phases: list[Tensor], axis: int, taps: Taps, front: int = 0) -> Tensor:
    n = phases[0].shape[axis] - len(taps[0]) // 2 + 1
    bands = [
        _weighted_sum([(c, phases[j % 2].narrow(axis, j // 2, n)) for j, c in enumerate(band_taps)])
        for band_taps in taps
    ]
    return torch.stack(bands, front)


def _spread(bands: Tensor, axis: int, front: int, taps: Taps) -> Tensor:
    """(2, n) -> (2(n - L/2 + 1)): x[2i + r] = sum over m of taps[2m + r] band[i - m].

    i counts from L/2 - 1, so that every band sample needed is there.
    """
    half_taps = len(taps[0]) // 2
    length = bands.shape[axis] - half_taps + 1
    phases = [
        _weighted_sum(
            [
                (band_taps[2 * m + r], band.narrow(axis, half_taps - 1 - m, length))
                for band, band_taps in zip(bands.unbind(front), taps, strict=True)
                for m in range(half_taps)
            ]
        )
        for r in (0, 1)
    ]
    return interleave(phases[0], phases[1], axis)


def _spread_padded(bands: Tensor, axis: int, front: int, taps: Taps) -> Tensor:
    """The adjoint of `_correlate`."""
    return _spread(_pad(bands, axis, len(taps[0]) // 2 - 1), axis, front, taps)


def _correlate_padded(x: Tensor, axis: int, front: int, taps: Taps) -> Tensor:
    """The adjoint of `_spread`."""
    return _correlate(_pad(x, axis, len(taps[0]) - 2), axis, front, taps)


def _pad(x: Tensor, axis: int, amount: int) -> Tensor:
    return F.pad(x, [0, 0] * (-axis - 1) + [amount, amount])


def _weighted_sum(terms: list[tuple[float, Tensor]]) -> Tensor:
    # Biorthogonal filters are padded with zeros to one length.
    (factor, first), *rest = [term for term in terms if term[0] != 0.0]
    total = first * factor
    for factor, view in rest:
        total = total.add_(view, alpha=factor)
    return total
