"""What the wavelet transform is: a product with one banded matrix per axis. Slow, plain, exact.

Letters: N samples along an axis, n samples of a band, L taps of a filter.
"""

import torch
from torch import Tensor

from wavevit.ops.wavelets import FilterBank, check_mode, filter_bank


def reference_dwt2(
    x: Tensor, wavelet: str = "haar", *, levels: int = 1, mode: str = "symmetric"
) -> tuple[Tensor | tuple[Tensor, Tensor, Tensor], ...]:
    """The wavelet pyramid of x as `wavevit.dwt2` defines it.

    Args:
        x: (..., H, W), floating point.
        wavelet: A discrete wavelet of PyWavelets.
        levels: How often ll is transformed.
        mode: The extension mode.

    Returns:
        (ll, (lh, hl, hh) of the coarsest level, ..., of the finest level).
    """
    bank = filter_bank(wavelet)
    check_mode(mode)
    details: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(levels):
        low_h, high_h = (matrix.to(x) for matrix in analysis_matrices(x.shape[-2], bank, mode))
        low_w, high_w = (matrix.to(x) for matrix in analysis_matrices(x.shape[-1], bank, mode))
        # First letter along W, second along H.
        lh, hl, hh = high_h @ x @ low_w.mT, low_h @ x @ high_w.mT, high_h @ x @ high_w.mT
        x = low_h @ x @ low_w.mT
        details.insert(0, (lh, hl, hh))
    return (x, *details)


def reference_idwt2(
    ll: Tensor,
    details: tuple[Tensor, Tensor, Tensor],
    wavelet: str = "haar",
    *,
    mode: str = "symmetric",
) -> Tensor:
    """The inverse of one level, of even size.

    Args:
        ll: (..., h, w), floating point.
        details: lh, hl, hh of ll's shape.
        wavelet: The wavelet of the analysis.
        mode: The mode of the analysis.

    Returns:
        (..., H, W).
    """
    bank = filter_bank(wavelet)
    check_mode(mode)
    low_h, high_h = (matrix.to(ll) for matrix in synthesis_matrices(ll.shape[-2], bank, mode))
    low_w, high_w = (matrix.to(ll) for matrix in synthesis_matrices(ll.shape[-1], bank, mode))
    lh, hl, hh = details
    low, high = low_h @ ll + high_h @ lh, low_h @ hl + high_h @ hh
    return low @ low_w.mT + high @ high_w.mT


def analysis_matrices(length: int, bank: FilterBank, mode: str) -> tuple[Tensor, Tensor]:
    """The matrices that take a signal to its low and its high band.

    Args:
        length: Samples of the signal, N.
        bank: The wavelet's filters.
        mode: The extension mode.

    Returns:
        Two (n, N) float64 matrices.
    """
    N, L = length, len(bank.dec_lo)
    n, shift = ((N + 1) // 2, L // 2) if mode == "periodization" else ((N + L - 1) // 2, 1)
    matrices = []
    for taps in (bank.dec_lo, bank.dec_hi):
        matrix = torch.zeros(n, N, dtype=torch.float64)
        for k in range(n):
            for j, tap in enumerate(taps):  # band[k] = sum over j of taps[j] x[2k + shift - j]
                matrix[k] += tap * extension_row(2 * k + shift - j, N, mode)
        matrices.append(matrix)
    return matrices[0], matrices[1]


def synthesis_matrices(n: int, bank: FilterBank, mode: str) -> tuple[Tensor, Tensor]:
    """The matrices that take a low and a high band to their shares of the signal.

    Args:
        n: Samples of a band.
        bank: The wavelet's filters.
        mode: The extension mode of the analysis.

    Returns:
        Two (N, n) float64 matrices, N even.
    """
    L = len(bank.rec_lo)
    wrap = mode == "periodization"
    N, shift = (2 * n, L // 2 - 1) if wrap else (2 * n - L + 2, L - 2)
    matrices = []
    for taps in (bank.rec_lo, bank.rec_hi):
        matrix = torch.zeros(N, n, dtype=torch.float64)
        for k in range(n):
            for j, tap in enumerate(taps):  # x[2k + j - shift] takes taps[j] band[k]
                i = 2 * k + j - shift
                if wrap:
                    matrix[i % N, k] += tap
                elif 0 <= i < N:
                    matrix[i, k] += tap
        matrices.append(matrix)
    return matrices[0], matrices[1]


def extension_row(i: int, length: int, mode: str) -> Tensor:
    """How the sample at position i follows from the N real ones.

    Args:
        i: Any integer; 0 ... N - 1 are the samples themselves.
        length: Samples of the signal, N.
        mode: The extension mode.

    Returns:
        (N,) float64 weights.
    """
    N, last = length, length - 1
    if 0 <= i <= last:
        return torch.eye(N, dtype=torch.float64)[i]
    if mode == "zero":
        return torch.zeros(N, dtype=torch.float64)
    if mode == "constant" or (N == 1 and mode in ("reflect", "antireflect", "smooth")):
        return extension_row(0 if i < 0 else last, N, mode)
    if mode == "periodic":
        return extension_row(i % N, N, mode)
    if mode == "periodization":
        return extension_row(min(i % (N + N % 2), last), N, mode)
    if mode in ("symmetric", "antisymmetric"):
        mirrored = extension_row(-1 - i if i < 0 else 2 * N - 1 - i, N, mode)
        return mirrored if mode == "symmetric" else -mirrored
    edge, inner = (0, 1) if i < 0 else (last, last - 1)
    if mode == "smooth":
        edge_row, inner_row = extension_row(edge, N, mode), extension_row(inner, N, mode)
        return edge_row + abs(i - edge) * (edge_row - inner_row)
    mirrored = extension_row(2 * edge - i, N, mode)
    return mirrored if mode == "reflect" else 2 * extension_row(edge, N, mode) - mirrored
