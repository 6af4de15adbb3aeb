"""What a residual addition with the LayerNorm that follows it is."""

from torch import Tensor

from wavevit.ops.cpu_inference import layer_norm


def reference_add_layer_norm(
    residual: Tensor, branch: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The sum and its LayerNorm over the last dimension.

    Args:
        residual: (..., C), floating point.
        branch: (..., C).
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.
        eps: Added to the variance.

    Returns:
        (sum, normed), both (..., C), in the dtypes that PyTorch's addition and `layer_norm` give.
    """
    summed = residual + branch
    return summed, layer_norm(summed, list(summed.shape[-1:]), weight, bias, eps)
