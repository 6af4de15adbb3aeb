"""BatchNorm whose batch is that of all processes, on any device.

torch's own SyncBatchNorm runs on accelerators only. This one serves runs of several processes on
the CPU, and is the plain statement of what the fused one computes.

Legend: B batch, C channels, P processes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """A drop-in for BatchNorm1d, 2d and 3d: in training, mean and variance over all processes.

    Every process must call it equally often; batches may differ in size. In evaluation, and with
    one process, it is plain BatchNorm. Not differentiable twice.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The normalised tensor, ``(B, C, ...)`` as `x`.

        Args:
            x: Floating point ``(B, C, ...)``.

        Raises:
            ValueError: Fewer than two dimensions.
        """
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return self._with_activation(super().forward(x))
        self._check_input_dim(x)
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None:
            self._track(mean, variance, count)
        return self._with_activation(y)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions (B, C, ...), got {tuple(x.shape)}")

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # a cumulative average
            momentum = 1.0 / float(self.num_batches_tracked)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)

    def _with_activation(self, x: Tensor) -> Tensor:
        # timm's BatchNormAct2d holds these two beside the norm.
        for name in ("drop", "act"):
            module = getattr(self, name, None)
            x = x if module is None else module(x)
        return x


class _Normalise(torch.autograd.Function):
    """Normalisation by statistics over all processes; returns those as well."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = x if x.dtype == torch.float64 else x.float()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        count = exact.new_tensor([x.numel() / x.shape[1]])
        mean = exact.mean(axes)
        squares = (exact - _along_channels(mean, x)).square().sum(axes)
        mean, variance, total = _combine(mean, squares, count)
        scale = torch.rsqrt(variance + eps)
        normal = (exact - _along_channels(mean, x)) * _along_channels(scale, x)
        y = normal
        if weight is not None:
            y = y * _along_channels(weight.to(exact.dtype), x)
        if bias is not None:
            y = y + _along_channels(bias.to(exact.dtype), x)
        ctx.save_for_backward(normal, weight, scale, total)
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, variance, total)
        return y.to(x.dtype), mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, scale, total = ctx.saved_tensors
        axes = [axis for axis in range(normal.dim()) if axis != 1]
        grad = grad_y.to(normal.dtype)
        grad_bias = grad.sum(axes)
        grad_weight = (grad * normal).sum(axes)
        means = torch.stack([grad_bias, grad_weight])
        dist.all_reduce(means)
        means = means / total
        if weight is not None:
            scale = scale * weight.to(scale.dtype)
        centred = grad - _along_channels(means[0], grad) - normal * _along_channels(means[1], grad)
        grad_x = (centred * _along_channels(scale, grad)).to(grad_y.dtype)
        return (
            grad_x,
            None if weight is None else grad_weight.to(weight.dtype),
            grad_bias.to(grad_y.dtype if weight is None else weight.dtype)
            if ctx.has_bias
            else None,
            None,
        )


def _combine(mean: Tensor, squares: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance ``(C,)`` and count of all processes' samples (Chan et al. 1979)."""
    mine = torch.cat([mean, squares, count])
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    rows = torch.stack(gathered)  # (P, 2 C + 1)
    C = len(mean)
    means, counts = rows[:, :C], rows[:, -1:]
    total = counts.sum()
    overall = (means * counts).sum(0) / total
    spread = rows[:, C : 2 * C].sum(0) + (counts * (means - overall).square()).sum(0)
    return overall, spread / total, total


def _along_channels(values: Tensor, like: Tensor) -> Tensor:
    """``(C,)`` shaped to broadcast along axis 1."""
    return values.reshape(1, -1, *([1] * (like.dim() - 2)))


def convert_sync_batch_norm(module: nn.Module) -> nn.Module:
    """The module with every BatchNorm in it, or itself, replaced; parameters are kept, not copied.

    Args:
        module: Any; changed in place.
    """
    if isinstance(module, _BatchNorm):
        converted = SyncBatchNorm(
            module.num_features,
            module.eps,
            module.momentum,
            module.affine,
            module.track_running_stats,
            device="meta",
        )
        for name, value in vars(module).items():
            if not name.endswith("_hooks"):
                converted.__dict__[name] = value
        return converted
    for name, child in module.named_children():
        setattr(module, name, convert_sync_batch_norm(child))
    return module
