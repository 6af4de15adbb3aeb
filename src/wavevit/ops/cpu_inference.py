"""Operations whose usual form is slow in inference on a CPU: float32, without gradients.

On an AMD processor MKL, which PyTorch's linear layers call, reaches two thirds of what oneDNN does
with many tokens of few channels. A compiler, for its part, makes of LayerNorm and GELU loops that
take three times as long as they need to. Elsewhere each is what its name says in PyTorch.

Letters: K channels in, N channels out.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula
from torch.utils.weak import WeakTensorKeyDictionary

from wavevit.ops.extension import is_exporting
from wavevit.ops.triton_support import is_transformed

__all__ = ["gelu", "layer_norm", "linear"]

MIN_PRODUCTS = 1 << 22  # 0.1 ms; a call of oneDNN takes 0.04 ms before it multiplies anything


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`, for inference on a CPU by oneDNN.

    There the weight is packed at its first use, and again after it has changed; the copy goes when
    the weight goes. A change that autograd does not see, by `weight.data.mul_(2)` or through memory
    shared with NumPy, is not noticed.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,) or None.

    Returns:
        (..., N), the same numbers up to rounding.
    """
    fits = x.ndim > 0 and x.shape[-1] == weight.shape[-1] and x.dtype == weight.dtype
    pays = x.numel() * weight.shape[0] >= MIN_PRODUCTS
    if fits and pays and _applies(x) and _onednn_is_here():
        result: Tensor = torch.ops.wavevit.packed_linear(x, weight, bias)
        return result
    return F.linear(x, weight, bias)


def layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """`torch.nn.functional.layer_norm`, which a compiler for the CPU leaves as it is.

    Args:
        x: (..., *shape).
        shape: Of what is normed.
        weight: Of that shape, or None.
        bias: Of that shape, or None.
        eps: Added to the variance.
    """
    if torch.compiler.is_compiling() and _applies(x):
        result: Tensor = torch.ops.wavevit.layer_norm(x, shape, weight, bias, eps)
        return result
    return F.layer_norm(x, shape, weight, bias, eps)


def gelu(x: Tensor) -> Tensor:
    """Exact GELU, which a compiler for the CPU gets as a quotient of polynomials.

    Args:
        x: Of any shape.
    """
    if torch.compiler.is_compiling() and _applies(x):
        return rational_gelu(x)
    return F.gelu(x)


BOUND = 5.2  # where the normal distribution function is 1 to half a unit of float32's last place
# Of x^2, lowest power first: fitted to (Phi(x) - 1/2) / x on [-5.2, 5.2] for the smallest largest
# error of x Phi(x), which is 3e-8 before rounding.
NUMERATOR = (
    0.3989419,
    0.034970183,
    0.0044495678,
    0.00016237603,
    3.2378287e-06,
    -2.3171191e-08,
    1.2247271e-10,
)
DENOMINATOR = (1.0, 0.25431985, 0.028546154, 0.0017783291, 6.0444901e-05)


def rational_gelu(x: Tensor) -> Tensor:
    """`x Phi(x)`, Phi the distribution function of the normal distribution (arXiv 1606.08415).

    Within 1e-6 and two roundings of the exact value, everywhere.

    Args:
        x: float32, of any shape.
    """
    bounded = x.clamp(-BOUND, BOUND)
    square = bounded * bounded
    excess = bounded * _polynomial(NUMERATOR, square) / _polynomial(DENOMINATOR, square)
    return x.clamp(min=-BOUND) * (0.5 + excess)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def _applies(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not is_exporting()
        and (torch.compiler.is_compiling() or not _is_recorded(x))
    )


def _is_recorded(x: Tensor) -> bool:
    # Who traces or counts what a network does expects PyTorch's own operations.
    return is_transformed() or isinstance(x, FakeTensor)


@torch.compiler.assume_constant_result
def _onednn_is_here() -> bool:
    # Builds without MKL multiply by other means, which were not compared.
    return bool(
        torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and torch.backends.mkl.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


_packed: Any = WeakTensorKeyDictionary()  # weight -> (its state, its copy in oneDNN's order)


def _packed_form(weight: Tensor) -> Tensor:
    if weight.is_inference():
        return weight  # it has no version to tell a change by
    state = (weight._version, weight.data_ptr())
    known = _packed.get(weight)
    if known is None or known[0] != state:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        known = _packed[weight] = (state, packed)
    form: Tensor = known[1]
    return form


# By a library of its own, since an operation of `torch.library.custom_op` takes 80 us a call.
_library = torch.library.Library("wavevit", "FRAGMENT")
_library.define("packed_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.define(
    "layer_norm(Tensor x, int[] shape, Tensor? weight, Tensor? bias, float eps) -> Tensor"
)


@torch.library.impl(_library, "packed_linear", "CPU")
def _packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.numel() == 0:
        return F.linear(x, weight, bias)
    if bias is not None:
        bias = bias.contiguous()  # it is read as if it were (torch 2.15)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(
        x, _packed_form(weight), bias, "none", [], ""
    )
    return result


@torch.library.register_fake("wavevit::packed_linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@register_flop_formula(torch.ops.wavevit.packed_linear)
def _linear_flops(x_shape: list[int], weight_shape: list[int], *_: Any, **__: Any) -> int:
    """Of the product alone, as for PyTorch's own."""
    return 2 * math.prod(x_shape) * weight_shape[0]


@torch.library.impl(_library, "layer_norm", "CPU")
def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    return torch.native_layer_norm(x, shape, weight, bias, eps)[0]


@torch.library.register_fake("wavevit::layer_norm")
def _(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
