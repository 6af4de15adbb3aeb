"""Cases side by side: how they are grouped, what fails alone, and what the rows say."""

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import nn

from wavevit.profiling import benchmark, workload
from wavevit.profiling.benchmark import (
    OK,
    OUT_OF_MEMORY,
    Measurement,
    check_plan,
    measure_group,
    plan,
)
from wavevit.profiling.benchmark_rows import Base, make_rows
from wavevit.profiling.machine import Machine
from wavevit.profiling.roofline import ROOFLINE_COLUMNS, Rooflines
from wavevit.profiling.workload import Case, Workload

SIZE = 32


def case(model: str = "wavevit_test", **changes: Any) -> Case:
    return dataclasses.replace(Case(model, "fp32", "eager", 2, SIZE), **changes)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks "good", "greedy", which finds no memory, "late", which does so later, and "bad"."""

    class Network(nn.Linear):
        def __init__(self, kind: str) -> None:
            super().__init__(SIZE, 4)
            self.kind, self.calls = kind, 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.kind == "greedy" or (self.kind == "late" and self.calls > 3):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            if self.kind == "bad":
                raise AssertionError("expected\nanother size")
            return super().forward(images).mean((1, 2))

    monkeypatch.setattr(workload, "create_model", lambda name, **_: Network(name))


def test_groups_share_precision_batch_and_size() -> None:
    groups = plan(["a", "b", "a"], ["fp32", "bf16"], ["eager", "compiled"], [8, 1, 8], [64, 32])
    assert len(groups) == 2 * 2 * 2
    for group in groups:
        names = [(one.model, one.runtime) for one in group]
        assert names == [("a", "eager"), ("a", "compiled"), ("b", "eager"), ("b", "compiled")]
        assert len({one.setting for one in group}) == 1


@pytest.mark.parametrize(
    ("changes", "device", "mode", "words"),
    [
        ({"model": "wavevit_tst"}, "cpu", "inference", "did you mean wavevit_test?"),
        ({"image_size": 31}, "cpu", "inference", "32 pixels or more, got 31"),
        ({"batch_size": 0}, "cpu", "inference", "batch size of 1 or more, got 0"),
        ({"runtime": "cuda-graphs"}, "cpu", "inference", "needs a CUDA device"),
        ({"precision": "tf32"}, "cpu", "inference", "tf32 is a precision of CUDA devices"),
        ({"runtime": "openvino"}, "cuda", "inference", "runs on the CPU"),
        ({"runtime": "openvino", "precision": "bf16"}, "cpu", "inference", "in fp32, not in bf16"),
        ({"runtime": "openvino"}, "cpu", "training", "openvino cannot train"),
        ({"runtime": "cuda-graphs"}, "cuda", "training", "cuda-graphs cannot train"),
    ],
)
def test_what_cannot_run_is_refused(
    changes: dict[str, Any], device: str, mode: workload.Mode, words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        check_plan([[case(), case(**changes)]], Workload(mode=mode, device=device))


@pytest.mark.parametrize(
    ("mode", "precision", "options"),
    [
        ("inference", "fp32", {}),
        ("inference", "bf16", {}),
        ("inference", "bf16", {"autocast": True, "fuse": False, "channels_last": True}),
        ("training", "fp32", {"grad_checkpointing": True}),
        ("training", "bf16", {}),
    ],
)
def test_every_kind_of_work_is_timed(
    mode: workload.Mode, precision: Any, options: dict[str, bool]
) -> None:
    work = Workload(mode=mode, **options)
    cases = [case(precision=precision), case("test_resnet", precision=precision)]
    prepared: list[Measurement] = []
    found = measure_group(cases, work, rounds=3, on_prepared=prepared.append)
    assert prepared == found
    for measurement in found:
        assert measurement.status == OK
        assert len(measurement.seconds) == 3
        assert measurement.peak_bytes is not None
        assert measurement.peak_bytes > 0


def test_weights_are_converted_in_inference_and_kept_under_autocast() -> None:
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    class Spy(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 4, 1)
            self.num_classes = 4

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            result = super().forward(images)
            seen.append((self.weight.dtype, result.dtype))
            return result.mean((2, 3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workload, "create_model", lambda name, **_: Spy())
        for work in (Workload(), Workload(autocast=True), Workload(mode="training")):
            work.call(case(precision="bf16"))()
    assert seen == [
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.bfloat16),
    ]


def test_a_training_step_changes_the_weights_and_leaves_no_gradients() -> None:
    work = Workload(mode="training")
    made: list[nn.Module] = []
    with pytest.MonkeyPatch.context() as patch:
        original = workload.create_model
        patch.setattr(
            workload, "create_model", lambda *a, **k: made.append(original(*a, **k)) or made[0]
        )
        call = work.call(case())
    before = [parameter.clone() for parameter in made[0].parameters()]
    call()
    assert all(parameter.grad is None for parameter in made[0].parameters())
    pairs = zip(before, made[0].parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in pairs)


def test_a_network_for_one_size_is_built_for_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[dict[str, int]] = []

    def create(name: str, **arguments: int) -> nn.Module:
        built.append(arguments)
        return nn.Identity()

    monkeypatch.setattr(workload, "create_model", create)
    Workload().network("vit_tiny_patch16_224", 64)
    Workload().network("wavevit_test", 64)
    assert built == [{"img_size": 64}, {}]


@pytest.mark.usefixtures("stand_ins")
def test_one_that_fails_leaves_the_others_be() -> None:
    cases = [case(name) for name in ("good", "greedy", "late", "bad")]
    found = measure_group(cases, Workload(fuse=False), rounds=2)
    assert [one.status for one in found] == [
        OK,
        OUT_OF_MEMORY,
        OUT_OF_MEMORY,
        "failed: expected another size",
    ]
    assert [len(one.seconds) for one in found] == [2, 0, 0, 0]
    assert found[0].peak_bytes is not None


def measured(seconds: list[float], model: str = "a", runtime: Any = "eager") -> Measurement:
    return Measurement(case(model, runtime=runtime), OK, seconds, 1.0, 2**20)


def test_rows_tell_rates_and_ratios() -> None:
    group = [
        measured([1.0, 2.0, 4.0]),
        measured([0.5, 1.0, 2.0], "b"),
        Measurement(case("c"), OUT_OF_MEMORY),
    ]
    rows = make_rows(group, Workload(), Base("a"), kernels=False, rooflines={})
    assert [row["ratio"] for row in rows] == [1.0, 2.0, ""]
    assert [row["images_per_s"] for row in rows] == [1.0, 2.0, ""]
    assert [row["peak_mib"] for row in rows] == [1.0, 1.0, ""]
    assert [row["status"] for row in rows] == [OK, OK, OUT_OF_MEMORY]
    assert len({tuple(row) for row in rows}) == 1
    for row in rows[:2]:
        values: Any = [row[f"images_per_s{tail}"] for tail in ("_p20", "", "_p80")]
        assert values == sorted(values)
        assert row["ratio_to"] == "a eager"


def test_the_base_is_of_the_same_runtime_unless_one_is_named() -> None:
    group = [
        measured([4.0]),
        measured([2.0], runtime="compiled"),
        measured([2.0], "b"),
        measured([1.0], "b", "compiled"),
    ]
    cases = [one.case for one in group]

    def ratios(name: str) -> list[object]:
        base = Base.parse(name, cases)
        return [
            row["ratio"] for row in make_rows(group, Workload(), base, kernels=False, rooflines={})
        ]

    assert ratios("a") == [1.0, 1.0, 2.0, 2.0]
    assert ratios("a:eager") == [1.0, 2.0, 2.0, 4.0]
    for wrong in ("c", "a:openvino"):
        with pytest.raises(ValueError, match=f"a, b in eager, compiled; got '{wrong}'"):
            Base.parse(wrong, cases)


def test_the_roofline_is_the_least_time_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from wavevit.profiling import roofline

    machines: list[Machine] = []

    def measure(*_: object) -> Machine:
        machines.append(Machine(1e9, 1e12))
        return machines[-1]

    monkeypatch.setattr(roofline, "measure_machine", measure)
    failures: list[str] = []
    rooflines = Rooflines(Workload(), failures.append)
    found = rooflines.of([case(), case(runtime="compiled")])["wavevit_test"]
    assert rooflines.of([case(batch_size=4)])["wavevit_test"] == found
    assert len(machines) == 1
    columns: Any = found.columns(2, 1.0)
    assert list(columns) == list(ROOFLINE_COLUMNS)
    moved = 2 * found.each_op.activation_bytes + found.each_op.parameter_bytes
    least = max(moved / 1e9, 2 * found.each_op.flops / 1e12)
    assert columns["reached"] == pytest.approx(least, abs=1e-4)
    assert columns["floor_images_per_s"] <= columns["fused_floor_images_per_s"]
    assert not failures


def test_memory_that_the_cpu_lacks_is_recognised() -> None:
    text = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"
    assert benchmark._status(RuntimeError(text)) == OUT_OF_MEMORY
