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


def test_steps_come_after_their_epochs_and_the_warm_up_has_a_factor() -> None:
    """The published detectors: 500 iterations from a thousandth, a tenth after epochs 8 and 11."""
    optim = Optimization(
        lr=2.0, schedule="step", epochs=12, warmup_steps=500, warmup_factor=0.001, warmup_epochs=99
    )
    values = rates(optim, 100, 1200)
    assert values[0] == pytest.approx(0.002)
    assert values[250] == pytest.approx(2 * (1 - (1 - 250 / 500) * (1 - 0.001)))
    assert values[500:800] == [2.0] * 300
    assert values[800:1100] == [pytest.approx(0.2)] * 300
    assert values[1100:] == [pytest.approx(0.02)] * 100


def test_steps_of_epochs_that_are_no_whole_number_of_steps() -> None:
    optim = Optimization(lr=1.0, schedule="step", epochs=2, step_epochs=(0.5, 1), warmup_epochs=0)
    assert rates(optim, 7, 8) == [pytest.approx(v) for v in [1.0] * 4 + [0.1] * 3 + [0.01]]


def test_a_polynomial_is_multiplied_with_its_warm_up() -> None:
    """The published segmenters: power 1, 1,500 iterations from a millionth."""
    optim = Optimization(
        lr=6e-5, schedule="poly", epochs=16, min_lr=0, warmup_steps=15, warmup_factor=1e-6
    )
    values = rates(optim, 100, 1602)
    for step in (0, 7, 15, 800, 1599):
        warm_up = 1 - (1 - min(step / 15, 1)) * (1 - 1e-6)
        assert values[step] == pytest.approx(6e-5 * (1 - step / 1600) * warm_up)
    assert values[1600:] == [0.0, 0.0]
    curved = Optimization(
        lr=1.0, schedule="poly", poly_power=0.9, epochs=1, min_lr=0.1, warmup_epochs=0
    )
    assert rates(curved, 100, 51)[50] == pytest.approx(0.1 + 0.9 * 0.5**0.9)


def test_a_cosine_takes_a_warm_up_in_steps_from_a_factor() -> None:
    optim = Optimization(lr=1.0, epochs=10, warmup_steps=10, warmup_factor=0.5)
    values = rates(optim, 10, 20)
    assert values[:11:5] == [pytest.approx(v, abs=0.03) for v in (0.5, 0.75, 1.0)]


def test_the_warm_up_goes_with_the_epochs_unless_it_is_given() -> None:
    assert Optimization().warmup_epochs == 5
    assert Optimization(epochs=300).warmup_epochs == 5
    assert Optimization(epochs=3).warmup_epochs == pytest.approx(0.3)
    assert Optimization(epochs=3, warmup_epochs=0).warmup_epochs == 0
    values = rates(Optimization(lr=1.0, epochs=3, warmup_lr=0.0), 20, 7)
    assert values[3] == pytest.approx(0.5)
    assert values[6] == pytest.approx(max(values))


def decayed(no_decay: list[str] | None) -> set[str]:
    """Names of the parameters with weight decay."""
    model = timm.create_model("wavevit_test")
    optimizer = Optimization(weight_decay=0.5, no_decay=no_decay).optimizer(model, 64)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert sum(map(len, groups.values())) == len(names)
    return {names[id(parameter)] for parameter in groups[0.5]}


def test_what_is_not_decayed_goes_by_names() -> None:
    everything = {name for name, _ in timm.create_model("wavevit_test").named_parameters()}
    assert decayed([]) == everything
    norms = {name for name in everything if ".norm" in name or name.startswith("norm.")}
    assert decayed(["*.norm*", "norm.*"]) == everything - norms
    assert "stages.0.blocks.0.attn.kv_norm.weight" in decayed(["*.norm*"])
    assert not any(name.endswith("bias") for name in decayed(None))


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter has a name like 'gn'"):
        decayed(["gn"])


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
        ({"warmup_factor": 2.0}, r"optim.warmup_factor must be in \[0, 1\]"),
        ({"warmup_steps": -1}, "optim.warmup_steps must be at least 0"),
        ({"schedule": "step", "epochs": 10}, "optim.step_epochs must rise from above 0 to below"),
        ({"schedule": "step", "step_epochs": (9, 8)}, "optim.step_epochs must rise"),
        ({"step_gamma": 0.0}, "optim.step_gamma must be above 0"),
        ({"layer_decay": 0.5, "no_decay": []}, "leave optim.no_decay at null"),
        ({"opt": "adamm"}, "timm has no optimizer named 'adamm'; near names: "),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Optimization(**arguments)
