"""A linear function of one tensor with its adjoint as gradient, to any order."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

Map: TypeAlias = Callable[[Tensor], Tensor]


def is_traced() -> bool:
    """Whether the call is being recorded, so that plain differentiable operations are wanted."""
    return bool(torch.compiler.is_compiling())


def apply_linear(x: Tensor, forward: Map, adjoint: Map) -> Tensor:
    """forward(x), with adjoint as its derivative; neither is seen by autograd itself.

    Args:
        x: The input; dimensions in front of those that the functions name are carried along.
        forward: Linear, free to write into buffers of its own; keeps x's dtype.
        adjoint: Its transpose, under the same rules.

    Returns:
        forward(x).
    """
    result: Tensor = LinearMap.apply(x, forward, adjoint)
    return result


class LinearMap(torch.autograd.Function):
    """See `apply_linear`. Keeps no tensor alive for the backward pass."""

    @staticmethod
    def forward(x: Tensor, forward: Map, adjoint: Map) -> Tensor:
        return forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.map, ctx.adjoint = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return apply_linear(grad, ctx.adjoint, ctx.map), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return apply_linear(tangent, ctx.map, ctx.adjoint)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, forward: Map, adjoint: Map
    ) -> tuple[Tensor, int]:
        # The mapped dimension becomes one more leading dimension, which every map carries along.
        dim = in_dims[0]
        assert dim is not None
        return apply_linear(x.movedim(dim, 0), forward, adjoint), 0
