"""Pictures made ready for a network that keeps their shape, and the network run on them.

What detectors and segmenters share. Legend: B pictures, H W rows and columns of a picture, h w
those of the resized one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]
Size = tuple[int, int]

_AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_STEP = 16


def input_size(size: Size, short_edge: int, long_edge: int, rule: str) -> Size:
    """The size that a picture is resized to.

    The same rules as `wavevit.data.resize`, where they are explained: the rooms of
    networks and `data` know nothing of each other. A test compares them.

    Args:
        size: H and W of the picture.
        short_edge: Limit of the shorter side, pixels.
        long_edge: Limit of the longer side, pixels.
        rule: "multiple_of_16" or "keep_ratio".

    Returns:
        h and w.

    Raises:
        ValueError: An unknown rule.
    """
    H, W = size
    scale = min(long_edge / max(H, W), short_edge / min(H, W))
    height, width = max(int(H * scale + 0.5), 1), max(int(W * scale + 0.5), 1)
    if rule == "keep_ratio":
        return height, width
    if rule != "multiple_of_16":
        raise ValueError(
            f"the model file asks for the size rule {rule!r}, which is not known; was it written "
            "by a newer version of wavevit?"
        )
    rows, columns = height / _STEP, width / _STEP
    columns += _rounds_up(columns, short_edge if columns < rows else long_edge)
    rows += _rounds_up(rows, short_edge if rows < columns else long_edge)
    return max(int(rows), 1) * _STEP, max(int(columns), 1) * _STEP


def _rounds_up(steps: float, limit: int) -> bool:
    return round(steps) > int(steps) and (int(steps) + 1) * _STEP <= limit


def check_picture(image: Tensor) -> None:
    """Raises unless this is one picture.

    Args:
        image: What a caller gave.

    Raises:
        ValueError: Not ``(3, H, W)`` with pixels, or neither uint8 nor float.
    """
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"expected a picture (3, H, W), got {tuple(image.shape)}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"expected uint8, or float in [0, 1], got {image.dtype}")


def resized(image: Tensor, size: Size) -> Tensor:
    """The picture at another size, bilinear, as evaluation resizes.

    Args:
        image: ``(3, H, W)``, uint8 or float.
        size: h and w.

    Returns:
        ``(3, h, w)`` of the same dtype.
    """
    if image.shape[1:] == size:
        return image
    # (1, H, W, 3) memory is what torch is quickest with.
    pixels = image.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
    return F.interpolate(pixels, size, mode="bilinear")[0]


@contextmanager
def inference(device: torch.device, precision: Precision) -> Iterator[None]:
    """Inside, networks run without gradients, in a precision, and every time with the same kernels.

    No benchmarking, no TF32, no non-deterministic kernels.

    Args:
        device: Of the network.
        precision: Number format inside the network.
    """
    dtype = _AUTOCAST_TYPES.get(precision, torch.bfloat16)
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
        torch.autocast(device.type, dtype, enabled=precision != "fp32"),
    ):
        yield
