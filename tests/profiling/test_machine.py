"""The machine's limits and the floors that follow from them."""

import pytest
import torch

from wavevit.profiling import precision
from wavevit.profiling.machine import Machine, copy_bandwidth, matmul_rate
from wavevit.profiling.precision import float32_products, is_slow_on_cpu


def test_the_floor_is_the_longer_of_moving_and_multiplying() -> None:
    machine = Machine(bytes_per_s=100.0, flops_per_s=1000.0)
    assert machine.floor_s(200.0, 1000.0) == 2.0
    assert machine.floor_s(200.0, 5000.0) == 5.0


def test_rates_are_measured() -> None:
    assert copy_bandwidth("cpu", 1 << 16, rounds=2) > 0
    assert matmul_rate("cpu", "fp32", seconds=0.0, rounds=2) > 0


@pytest.mark.parametrize(
    ("name", "convolutions", "products"), [("tf32", True, "high"), ("fp32", False, "highest")]
)
def test_float32_is_multiplied_as_asked_and_afterwards_as_before(
    name: precision.Precision, convolutions: bool, products: str
) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with float32_products(name):
        now = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    assert now == (convolutions, products)
    assert before == (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())


def test_float32_is_fast_on_every_processor() -> None:
    assert not is_slow_on_cpu("fp32")
    assert isinstance(is_slow_on_cpu("bf16"), bool)
    assert isinstance(is_slow_on_cpu("fp16"), bool)
