"""Layers of the inference form: those of PyTorch, by the operations that a CPU runs fastest."""

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from wavevit.ops.cpu_inference import layer_norm, linear


class InferenceLinear(nn.Linear):
    """A linear layer whose product a CPU takes from oneDNN (`wavevit.ops.cpu_inference.linear`).

    Args:
        source: The layer to take the parameters of; they are shared.
    """

    def __init__(self, source: nn.Linear) -> None:
        with torch.device("meta"):
            super().__init__(source.in_features, source.out_features, source.bias is not None)
        self.weight, self.bias = source.weight, source.bias
        self.train(source.training)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class InferenceLayerNorm(nn.LayerNorm):
    """A LayerNorm that a compiler for the CPU leaves to PyTorch's kernel.

    Args:
        source: The norm to take the parameters of, if it has any; they are shared.
    """

    def __init__(self, source: nn.LayerNorm) -> None:
        super().__init__(source.normalized_shape, eps=source.eps, elementwise_affine=False)
        self.elementwise_affine = source.elementwise_affine
        self.weight, self.bias = source.weight, source.bias
        self.train(source.training)

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, list(self.normalized_shape), self.weight, self.bias, self.eps)


class InferenceLayerNorm2d(InferenceLayerNorm):
    """timm's `LayerNorm2d`, over the channels of (B, C, H, W), in the same way."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def use_inference_layers(module: nn.Module) -> None:
    """Replaces the module's direct children by their inference form, where they have one.

    Args:
        module: In evaluation mode; its children may be any.
    """
    for name, child in module.named_children():
        # No subclasses, which may do something else; nor timm's norm in low precision.
        kind = type(child)
        if isinstance(child, nn.Linear) and kind is nn.Linear:
            setattr(module, name, InferenceLinear(child))
        elif isinstance(child, LayerNorm2d) and kind is LayerNorm2d and not child._fast_norm:
            setattr(module, name, InferenceLayerNorm2d(child))
        elif isinstance(child, nn.LayerNorm) and kind is nn.LayerNorm:
            setattr(module, name, InferenceLayerNorm(child))
