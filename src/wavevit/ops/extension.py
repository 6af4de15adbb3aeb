"""A signal continued past its two ends, as PyWavelets' extension modes define it.

Letters: N samples along the axis.
"""

import torch
from torch import Tensor


def is_exporting() -> bool:
    """Whether `torch.export` runs, where no Python branch may depend on a dynamic size."""
    probe = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch >= 2.7
    return bool(probe())


def is_certain(condition: bool) -> bool:
    """Whether a condition on sizes holds, and for every size that an export allows.

    Args:
        condition: A comparison of sizes.

    Returns:
        The condition itself outside `torch.export`; there False where it depends on the size.
    """
    if is_exporting():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return bool(statically_known_true(condition))
    return condition


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


def extend_phases(x: Tensor, axis: int, left: int, half: int, mode: str) -> list[Tensor]:
    """The even and the odd samples of `extend(x, axis, left, 2 * half, mode)`.

    Args:
        x: Any shape, floating point.
        axis: The axis to extend, counted from the end.
        left: How many samples to add in front.
        half: Samples in each result.
        mode: One of `wavelets.MODES`.

    Returns:
        Two tensors with `half` samples along the axis.
    """
    if is_exporting():
        positions = 2 * torch.arange(half, device=x.device) - left
        return [_sample(x, axis, positions + r, mode) for r in (0, 1)]
    x = extend(x, axis, left, 2 * half, mode)
    return list(torch.unflatten(x, axis, (half, 2)).unbind(axis))


def crop(x: Tensor, axis: int, size: int, start: int = 0) -> Tensor:
    """`size` samples along one axis.

    Args:
        x: Any shape.
        axis: The axis to shorten.
        size: Samples to keep.
        start: The first one to keep.

    Returns:
        A view of x, or a copy while exporting.
    """
    if is_certain(x.shape[axis] == size):
        return x
    if is_exporting():
        # A gather again: a slice would need proof that it lies inside.
        return x.index_select(axis, torch.arange(size, device=x.device) + start)
    return x.narrow(axis, start, size)


def interleave(even: Tensor, odd: Tensor, axis: int) -> Tensor:
    """The samples of two tensors in turn.

    Args:
        even: Any shape.
        odd: Of the same shape.
        axis: The axis along which they take turns, counted from the end.

    Returns:
        A tensor twice as long along the axis.
    """
    half = even.shape[axis]
    if is_exporting() and not is_certain(half % (2 * half) != 0):
        # A gather: this is what flatten would ask of a dynamic size.
        turns = torch.arange(2 * half, device=even.device)
        return torch.cat((even, odd), axis).index_select(axis, turns % 2 * half + turns // 2)
    return torch.stack((even, odd), axis).flatten(axis - 1, axis)


def _sample(x: Tensor, axis: int, positions: Tensor, mode: str) -> Tensor:
    N = x.shape[axis]
    last = N - 1

    def at(index: Tensor) -> Tensor:
        return x.index_select(axis, index)

    def along(weights: Tensor) -> Tensor:
        shape = [1] * x.ndim
        shape[axis] = -1
        return weights.to(x.dtype).view(shape)

    def modulo(period: int) -> Tensor:
        # A tensor, since ONNX has no remainder by a dynamic number.
        return positions.remainder(torch.full_like(positions, period))

    inside = positions.clamp(0, last)
    if mode == "constant":
        return at(inside)
    if mode == "zero":
        return torch.where(along(positions == inside).bool(), at(inside), 0.0)
    if mode == "periodic":
        return at(modulo(N))
    if mode == "periodization":  # periodic, an odd signal having its last sample twice
        return at(modulo(N + N % 2).clamp(max=last))
    if mode in ("symmetric", "antisymmetric"):
        phase = modulo(2 * N)
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
