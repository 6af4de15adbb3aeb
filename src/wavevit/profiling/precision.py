"""Number formats that a network can be run in, and what has to be switched for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

_DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def dtype_of(precision: Precision) -> torch.dtype:
    """The dtype of tensors in a precision: tf32 is a way of multiplying float32.

    Args:
        precision: One of `PRECISIONS`.
    """
    return _DTYPES[precision]


@contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """Inside, GPUs multiply float32 in tf32 where that is the precision, and exactly elsewhere.

    PyTorch's own default is neither: convolutions in tf32, matrix products exactly.

    Args:
        precision: One of `PRECISIONS`.
    """
    convolutions = torch.backends.cudnn.allow_tf32
    products = torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def is_slow_on_cpu(precision: Precision) -> bool:
    """Whether this processor lacks the instructions for it, and so is up to a hundred times slower.

    Args:
        precision: One of `PRECISIONS`.
    """
    if not torch.backends.mkldnn.is_available():  # nobody to ask
        return False
    if precision == "bf16":
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if precision == "fp16":
        return not torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return False
