"""Norms folded into the linear maps beside them, and linears merged, exactly."""

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Affine = TypeVar("Affine", nn.Linear, nn.Conv2d)


@torch.no_grad()
def fold_batch_norm(layer: Affine, norm: _BatchNorm) -> Affine:
    """A copy of the layer, with a bias, that equals layer then BatchNorm in evaluation mode.

    Args:
        layer: Linear or convolution whose output channels the norm acts on.
        norm: BatchNorm with running statistics, synchronised or not.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # In float64: the folded form should differ from the plain one by its own rounding only.
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    weight = layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    bias = norm.bias.double() - norm.running_mean.double() * scale
    if layer.bias is not None:
        bias = bias + layer.bias.double() * scale
    folded = copy.deepcopy(layer)
    folded.weight = nn.Parameter(weight.to(layer.weight.dtype))
    folded.bias = nn.Parameter(bias.to(layer.weight.dtype))
    return folded


@torch.no_grad()
def fold_layer_norm(norm: nn.LayerNorm, linears: list[nn.Linear]) -> nn.LayerNorm:
    """A LayerNorm without affine part; the part moves into the linears that read its output.

    Exact because a linear is applied to each token alone: nothing is padded between them.

    Args:
        norm: The norm to strip; returned as it is when it has no affine part.
        linears: Every reader of the norm's output, changed in place.
    """
    if not norm.elementwise_affine:
        return norm
    gamma, beta = norm.weight.double(), norm.bias.double()
    for linear in linears:
        weight = linear.weight.double()
        linear.bias.copy_(linear.bias.double() + weight @ beta)
        linear.weight.copy_(weight * gamma)
    return nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)


@torch.no_grad()
def merge_linears(linears: list[nn.Linear]) -> nn.Linear:
    """One linear whose outputs are those of all, side by side.

    Args:
        linears: Readers of the same input, all with a bias.
    """
    first = linears[0]
    merged = nn.Linear(
        first.in_features,
        sum(linear.out_features for linear in linears),
        device=first.weight.device,
        dtype=first.weight.dtype,
    )
    merged.weight.copy_(torch.cat([linear.weight for linear in linears]))
    merged.bias.copy_(torch.cat([linear.bias for linear in linears]))
    return merged
