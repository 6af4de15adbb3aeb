"""What a machine can do at most, measured: bytes copied and numbers multiplied in a second."""

from dataclasses import dataclass

import torch

from wavevit.profiling.precision import Precision, dtype_of, float32_products
from wavevit.profiling.timing import Call, Device, time_in_turns, time_once

_GIB = 1 << 30
_SMALLEST_PRODUCT, _LARGEST_PRODUCT = 256, 8192  # rows


@dataclass(frozen=True)
class Machine:
    """A device's limits in one precision.

    Attributes:
        bytes_per_s: Read and written together by a copy of memory that no cache holds.
        flops_per_s: Of a large matrix product; a multiplication with its addition counts as two.
    """

    bytes_per_s: float
    flops_per_s: float

    def floor_s(self, num_bytes: float, num_flops: float) -> float:
        """The least seconds for work: moving and multiplying overlap at best.

        Args:
            num_bytes: Read and written.
            num_flops: Floating point operations.
        """
        return max(num_bytes / self.bytes_per_s, num_flops / self.flops_per_s)


def measure_machine(
    device: Device, precision: Precision, *, copied_bytes: int | None = None, rounds: int = 7
) -> Machine:
    """The limits of a device: the best of several rounds.

    Args:
        device: The device, with the threads that PyTorch has there.
        precision: Of the matrix product.
        copied_bytes: Size of the tensor that is copied, far larger than the caches; None: a quarter
            of a GiB on the CPU and two GiB on a GPU.
        rounds: Timed turns of each.
    """
    device = torch.device(device)
    if copied_bytes is None:
        copied_bytes = 2 * _GIB if device.type == "cuda" else _GIB // 4
    return Machine(
        copy_bandwidth(device, copied_bytes, rounds=rounds),
        matmul_rate(device, precision, rounds=rounds),
    )


def copy_bandwidth(device: Device, num_bytes: int, *, rounds: int = 7) -> float:
    """Bytes per second that a copy reads and writes, together: the best round.

    Args:
        device: The device.
        num_bytes: Size of the tensor that is copied, far larger than the caches.
        rounds: Copies that are timed.
    """
    source = torch.zeros(num_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    times = time_in_turns({"copy": lambda: target.copy_(source)}, rounds, device)
    return 2 * 4 * source.numel() / min(times["copy"])


def matmul_rate(
    device: Device, precision: Precision, *, seconds: float = 0.2, rounds: int = 7
) -> float:
    """Floating point operations per second of a large square matrix product: the best round.

    Args:
        device: The device.
        precision: Of the factors.
        seconds: About what one product may take; its size follows from it.
        rounds: Products that are timed.
    """
    size = _SMALLEST_PRODUCT
    with float32_products(precision):
        call, flops = _product(size, device, precision)
        # Twice the rows take eight times as long, or less while the product is small.
        while size < _LARGEST_PRODUCT and 8 * _second_call_s(call, device) < seconds:
            size *= 2
            call, flops = _product(size, device, precision)
        times = time_in_turns({"product": call}, rounds, device)
    return flops / min(times["product"])


def _second_call_s(call: Call, device: Device) -> float:
    call()
    return time_once(call, device)


def _product(size: int, device: Device, precision: Precision) -> tuple[Call, int]:
    generator = torch.Generator().manual_seed(0)
    # Random: a GPU draws less power, and so runs faster, on zeros.
    factor = torch.randn(size, size, generator=generator).to(device, dtype_of(precision))
    out = torch.empty_like(factor)
    return lambda: torch.mm(factor, factor, out=out), 2 * size**3
