"""Optimizer groups and the schedule by steps."""

from itertools import pairwise
from typing import Any

import pytest
import timm

from wavevit.training.optimization import Optimization


def rates(optim: Optimization, steps_per_epoch: float, steps: int) -> list[float]:
    optimizer = optim.optimizer(timm.create_model("wavevit_test"), 64)
    scheduler = optim.scheduler(optimizer, steps_per_epoch)
    values = []
    for step in range(steps):
        scheduler.step_update(step)
        values.append(max(group["lr"] for group in optimizer.param_groups))
    return values


def test_schedule_warms_up_by_steps_falls_as_a_cosine_and_cools_down() -> None:
    optim = Optimization(
        lr=1.0, epochs=10, warmup_epochs=2, cooldown_epochs=1, warmup_lr=0.1, min_lr=0.01
    )
    values = rates(optim, 10, 110)
    assert values[0] == pytest.approx(0.1)
    assert values[10] == pytest.approx(0.55)  # half-way through the warm-up
    assert max(values) == pytest.approx(values[20], rel=0.1)
    # Half-way through the cosine, which runs over all epochs and is only covered by the warm-up.
    assert values[50] == pytest.approx((1.0 + 0.01) / 2, abs=0.01)
    assert values[100:] == [pytest.approx(0.01)] * 10
    assert all(a >= b for a, b in pairwise(values[20:]))


def test_learning_rate_scales_linearly_with_the_images_per_step() -> None:
    optim = Optimization(lr=1e-3, lr_reference_batch=1024)
    model = timm.create_model("wavevit_test")
    assert optim.optimizer(model, 256).param_groups[0]["lr"] == pytest.approx(2.5e-4)
    assert optim.optimizer(model, 8192).param_groups[0]["lr"] == pytest.approx(8e-3)


def test_layer_decay_reaches_the_schedule() -> None:
    optim = Optimization(lr=1.0, layer_decay=0.5, epochs=10, warmup_epochs=0)
    optimizer = optim.optimizer(timm.create_model("wavevit_test"), 64)
    optim.scheduler(optimizer, 10).step_update(0)
    values = {group["lr"] for group in optimizer.param_groups}
    assert max(values) == pytest.approx(1.0)
    assert len(values) > 3


@pytest.mark.parametrize("opt", ["sgd", "lamb", "lion", "adamw", "muon"])
def test_any_optimizer_of_timm_takes_its_own_arguments(opt: str) -> None:
    from timm.optim import list_optimizers

    if opt not in list_optimizers():
        pytest.skip(f"this timm has no {opt}")
    Optimization(opt=opt).optimizer(timm.create_model("wavevit_test"), 64)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr": 0.0}, "optim.lr must be above 0"),
        ({"lr": float("nan")}, "optim.lr must be above 0, got nan"),
        ({"weight_decay": -1.0}, "optim.weight_decay must be at least 0"),
        ({"layer_decay": 1.5}, r"optim.layer_decay must be in \(0, 1\]"),
        ({"epochs": 3, "warmup_epochs": 3}, "must be below optim.epochs"),
        ({"opt": "adamm"}, "timm has no optimizer named 'adamm'; near names: "),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Optimization(**arguments)
