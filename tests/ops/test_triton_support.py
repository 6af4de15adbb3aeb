"""When kernels are taken: the switch, the device, the self check, also in a compiled graph."""

import logging
import os

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from wavevit.ops import triton_support
from wavevit.ops.triton_support import (
    on_device_of,
    triton_applies,
    use_kernels,
    why_not_triton,
    works_here,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No verdict of an earlier test, and a new tracing of functions that were compiled in one."""
    monkeypatch.setattr(triton_support, "_verdicts", {})
    torch._dynamo.reset()


@pytest.fixture
def gpu_tensor(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """A tensor that says it lies on an Ampere GPU with Triton; it has no memory."""
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with FakeTensorMode():
        return torch.empty(2, device="cuda:0")


# ---- Where kernels apply


def test_a_gpu_of_capability_8_takes_kernels_in_three_dtypes(gpu_tensor: Tensor):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert triton_applies(gpu_tensor.to(dtype))
        assert why_not_triton(gpu_tensor.to(dtype)) is None
    assert not triton_applies(gpu_tensor.double())
    assert why_not_triton(gpu_tensor.double()) == (
        "needs float16, bfloat16 or float32, got torch.float64"
    )


def test_an_older_gpu_or_none_takes_none(gpu_tensor: Tensor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not triton_applies(gpu_tensor)
    assert why_not_triton(gpu_tensor) == (
        "needs a GPU of compute capability 8.0 or above, cuda:0 has 7.5"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "needs PyTorch built for CUDA" in str(why_not_triton(gpu_tensor))
    monkeypatch.setattr(triton_support.importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in str(why_not_triton(gpu_tensor))


def test_the_cpu_takes_none():
    x = torch.zeros(2)
    assert not triton_applies(x)
    assert why_not_triton(x) == "needs a tensor on a CUDA device, got one on cpu"


def test_an_exported_program_holds_no_kernel(gpu_tensor: Tensor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_support, "is_exporting", lambda: True)
    assert not triton_applies(gpu_tensor)
    assert "exported program" in str(why_not_triton(gpu_tensor))


def test_nothing_is_switched_to_for_a_tensor_on_the_cpu_or_one_without_memory(gpu_tensor: Tensor):
    for x in (torch.zeros(2), gpu_tensor):
        with on_device_of(x):
            assert not torch.cuda.is_initialized() or torch.cuda.current_device() == 0


# ---- The switch


def test_switch_holds_for_good_as_a_call_and_for_a_block_as_a_context(gpu_tensor: Tensor):
    with use_kernels(True):  # whatever is called inside, the end restores what was before
        use_kernels(False)
        assert not triton_applies(gpu_tensor)
        assert "use_kernels(True)" in str(why_not_triton(gpu_tensor))
        with use_kernels(True):
            assert triton_applies(gpu_tensor)
            with pytest.raises(RuntimeError), use_kernels(False):
                raise RuntimeError
            assert triton_applies(gpu_tensor)
        assert not triton_applies(gpu_tensor)
    assert triton_applies(gpu_tensor)


def test_a_compiled_function_follows_the_switch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_support, "_why_device_cannot", constant_none)

    def answer(x: Tensor) -> Tensor:
        return x + (1 if triton_support._enabled and not triton_applies(x) else 0)

    compiled = torch.compile(answer, fullgraph=True, backend="eager")
    x = torch.zeros(1)
    assert compiled(x) == 1
    with use_kernels(False):
        assert compiled(x) == 0
    assert compiled(x) == 1


@torch.compiler.assume_constant_result
def constant_none(device: torch.device) -> None:
    return None


# ---- The self check

calls: list[tuple[bool, bool, bool]] = []


def note(device: torch.device) -> None:
    """A check that passes and notes which of its caller's modes it sees."""
    made = torch.ones(2, device=device)
    calls.append((torch.is_grad_enabled(), made.is_inference(), type(made) is not Tensor))


def differ(device: torch.device) -> None:
    torch.testing.assert_close(torch.ones(1, device=device), torch.zeros(1, device=device))


def test_check_runs_once_for_each_kernel_and_sees_no_mode_of_its_caller():
    calls.clear()
    with torch.inference_mode(), FakeTensorMode():
        assert works_here("first", note, CPU)
    assert works_here("first", note, CPU)
    assert calls == [(True, False, False)]
    assert works_here("second", note, CPU)
    assert len(calls) == 2


def test_a_kernel_that_differs_is_reported_once_and_not_used(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert not works_here("broken", differ, CPU)
        assert not works_here("broken", differ, CPU)
        assert works_here("sound", note, CPU)
    (record,) = caplog.records
    assert record.name == "wavevit.ops.triton_support"
    message = record.getMessage()
    assert message.startswith("the Triton kernel broken does not work on cpu and is replaced by")
    assert "AssertionError" in message
    assert "not close" in message
    assert "\n" not in message


def test_a_compiled_graph_holds_what_the_check_decided(caplog: pytest.LogCaptureFixture):
    def answer(x: Tensor) -> Tensor:
        if works_here("sound", note, x.device):
            x = x + 1
        return x + 10 if works_here("broken", differ, x.device) else x

    calls.clear()
    with caplog.at_level(logging.WARNING):
        assert torch.compile(answer, fullgraph=True, backend="eager")(torch.zeros(1)) == 1
    assert calls == [(True, False, False)]
    assert len(caplog.records) == 1


# ---- The interpreter of conftest.py


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("number", [3])
def test_a_test_can_run_where_kernels_are_interpreted(number: int):
    import triton

    assert os.environ["TRITON_INTERPRET"] == "1"
    assert type(triton.jit(differ)).__name__ == "InterpretedFunction"
    assert number == 3


def test_other_tests_compile_kernels():
    triton = pytest.importorskip("triton")
    assert type(triton.jit(differ)).__name__ == "JITFunction"


def test_interpreter_reports_failures_and_skips(interpreter, tmp_path):
    file = tmp_path / "some_test.py"
    file.write_text(
        "import pytest\n"
        "def fails(x):\n    assert x == 1, 'x is wrong'\n"
        "def skips():\n    pytest.skip('no reason')\n"
        "def warns():\n    import warnings; warnings.warn('careful')\n"
    )
    assert interpreter.run(file, "fails", {"x": 1}) == ("passed", "")
    outcome, report = interpreter.run(file, "fails", {"x": 2})
    assert outcome == "failed"
    assert "AssertionError: x is wrong" in report
    assert interpreter.run(file, "skips", {}) == ("skipped", "no reason")
    assert interpreter.run(file, "warns", {})[0] == "failed"
