"""A signal continued past its two ends, as PyWavelets' extension modes define it.

Letters: N samples along the axis.
"""

import torch
from torch import Tensor


def is_exporting() -> bool:
    """Whether `torch.export` runs, where no Python branch may depend on a dynamic size."""
    probe = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch >= 2.7
    return bool(probe())


def extend(x: Tensor, axis: int, left: int, length: int, mode: str) -> Tensor:
    """The samples at positions -left ... length - left - 1 along one axis.

    Positions outside 0 ... N - 1 follow `mode`; a single sample has no neighbour to reflect or
    extrapolate, there "reflect", "antireflect" and "smooth" repeat it.

    Args:
        x: Any shape, floating point.
        axis: The axis to extend, N samples long.
        left: How many samples to add in front.
        length: Samples in the result, at least left + N.
        mode: One of `wavelets.MODES`.

    Returns:
        A tensor of x's dtype with `length` samples along the axis; x itself if that is all.
    """
    N = x.shape[axis]
    if is_exporting():
        # One gather with an explicit length: cat would need proof that the lengths add up.
        positions = torch.arange(length, device=x.device) - left
        return _sample(x, axis, positions, mode)
    right = length - left - N
    parts = [x]
    if left:
        parts.insert(0, _sample(x, axis, torch.arange(-left, 0, device=x.device), mode))
    if right:
        parts.append(_sample(x, axis, torch.arange(right, device=x.device) + N, mode))
    return x if len(parts) == 1 else torch.cat(parts, axis)


def crop(x: Tensor, axis: int, size: int) -> Tensor:
    """The first `size` samples along one axis.

    Args:
        x: Any shape.
        axis: The axis to shorten.
        size: Samples to keep.

    Returns:
        A view of x, or a copy while exporting.
    """
    if is_exporting():
        # A gather again: a slice would need proof that `size` is no more than there is.
        return x.index_select(axis, torch.arange(size, device=x.device))
    return x if x.shape[axis] == size else x.narrow(axis, 0, size)


def _sample(x: Tensor, axis: int, positions: Tensor, mode: str) -> Tensor:
    N = x.shape[axis]
    last = N - 1

    def at(index: Tensor) -> Tensor:
        return x.index_select(axis, index)

    def along(weights: Tensor) -> Tensor:
        shape = [1] * x.ndim
        shape[axis] = -1
        return weights.to(x.dtype).view(shape)

    inside = positions.clamp(0, last)
    if mode == "constant":
        return at(inside)
    if mode == "zero":
        return torch.where(along(positions == inside).bool(), at(inside), 0.0)
    if mode == "periodic":
        return at(positions.remainder(N))
    if mode == "periodization":  # periodic, an odd signal having its last sample twice
        return at(positions.remainder(N + N % 2).clamp(max=last))
    if mode in ("symmetric", "antisymmetric"):
        phase = positions.remainder(2 * N)
        values = at(torch.minimum(phase, 2 * N - 1 - phase))
        return values if mode == "symmetric" else values * along(1 - 2 * (phase >= N).long())
    if mode == "smooth":
        first = torch.zeros(1, dtype=torch.long, device=x.device)
        end = first + last
        slope_left = at((first + 1).clamp(max=last)) - at(first)
        slope_right = at(end) - at((end - 1).clamp(min=0))
        before, after = positions.clamp(max=0), (positions - last).clamp(min=0)
        return at(inside) + along(before) * slope_left + along(after) * slope_right
    # reflect, antireflect: mirrored about the end samples, period 2(N - 1)
    period = torch.full_like(positions, 2 * last).clamp(min=1)
    phase = positions.remainder(period)
    mirrored = phase > last
    values = at(torch.where(mirrored, period - phase, phase).clamp(max=last))
    if mode == "reflect":
        return values
    # antireflect: odd about each end point, so each period adds twice the rise from first to last
    first = torch.zeros(1, dtype=torch.long, device=x.device)
    x_first, x_last = at(first), at(first + last)
    turns = torch.div(positions - phase, period, rounding_mode="floor")
    odd = along(1 - 2 * mirrored.long()) * values + along(2 * mirrored.long()) * x_last
    return odd + along(2 * turns) * (x_last - x_first)
