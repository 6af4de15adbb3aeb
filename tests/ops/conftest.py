"""Kernels without a GPU: run in Triton's interpreter, or compiled ahead of time for real targets.

A test marked `@pytest.mark.usefixtures("interpreter")` has its body run in a second process, where
TRITON_INTERPRET=1 makes kernels run on CPU tensors. Triton reads that variable while it is imported
and wherever a kernel is decorated, and importing timm imports Triton: here it is too late, and
compiled kernels are wanted, too. The process is started once for each pytest process. The test's
arguments must be picklable: parameters and paths are.

The fixture `compile_ahead` compiles a kernel to machine code and says what became of it.
"""

import importlib.util
import os
import pickle
import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import pytest
import torch

from wavevit.ops.triton_support import MIN_TORCH


def skip_without_triton() -> None:
    """Skips a test where kernels cannot even be compiled."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton: pip install triton")
    if torch.__version__ < MIN_TORCH:
        pytest.skip(f"needs the Triton of PyTorch {MIN_TORCH} or above")


class Interpreter:
    """A process in which Triton's kernels are interpreted; it runs one test after another."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TRITON_INTERPRET": "1"},
        )

    def run(self, path: Path, name: str, arguments: dict[str, Any]) -> tuple[str, str]:
        """The outcome ("passed", "failed" or "skipped") of a test function, and its report."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            pickle.dump((path, name, arguments), self.process.stdin)
            self.process.stdin.flush()
            outcome: tuple[str, str] = pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError):
            return "failed", f"the interpreting process ended with code {self.process.wait()}"
        return outcome

    def close(self) -> None:
        """Ends the process at once: it has nothing to tidy up."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """Runs the test in Triton's interpreter, see above."""
    skip_without_triton()
    process = Interpreter()
    yield process
    process.close()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Sends a test that uses the fixture `interpreter` to it; no other test is called here."""
    process = pyfuncitem.funcargs.get("interpreter")
    names = pyfuncitem._fixtureinfo.argnames
    if process is None or "interpreter" in names:  # as an argument it is only handed over
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    outcome, report = process.run(pyfuncitem.path, pyfuncitem.originalname, arguments)
    if outcome == "skipped":
        pytest.skip(report)
    if outcome == "failed":
        pytest.fail(report, pytrace=False)
    return True


@dataclass(frozen=True)
class Compiled:
    """What became of a kernel: its PTX, and the registers and bytes spilled of a thread."""

    ptx: str
    registers: int
    spill_bytes: int

    def count(self, instruction: str) -> int:
        """How often an instruction stands in the PTX, by the beginning of its name."""
        return len(re.findall(rf"^\s*(?:@%p\d+ )?{re.escape(instruction)}", self.ptx, re.MULTILINE))


CompileAhead = Callable[..., Compiled]


@pytest.fixture
def compile_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompileAhead:
    """`compile_ahead(kernel, arguments, constants, capability=90, num_warps=4)`.

    `arguments` names the type of each argument that is no constant: "*bf16", "i32", "i64"; one that
    the launcher would find divisible by 16 (any aligned pointer) ends in ":16".
    """
    skip_without_triton()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def compile_kernel(
        kernel: Any,
        arguments: dict[str, str],
        constants: dict[str, Any],
        capability: int = 90,
        num_warps: int = 4,
    ) -> Compiled:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        names = kernel.arg_names
        source = ASTSource(
            kernel,
            {name: arguments.get(name, "constexpr").split(":")[0] for name in names},
            {(names.index(name),): value for name, value in constants.items()},
            {
                (names.index(name),): [["tt.divisibility", 16]]
                for name, kind in arguments.items()
                if kind.endswith(":16")
            },
        )
        # Without fusion, as from Triton 3.10 on: a kernel that needs it spells it out.
        options = {"num_warps": num_warps, "enable_fp_fusion": False}
        code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm
        return Compiled(code["ptx"], *read_resources(code["cubin"], tmp_path / "kernel.cubin"))

    return compile_kernel


def read_resources(cubin: bytes, path: Path) -> tuple[int, int]:
    """Registers and bytes of memory of a thread, as the machine code asks for them."""
    from triton import knobs

    path.write_bytes(cubin)
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {name: int(size) for name, size in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    return used["REG"], used["STACK"] + used["LOCAL"]


# ---- The interpreting process.


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Runs the tests that are asked for until the other side closes."""
    warnings.simplefilter("error")  # as in pytest's configuration
    while True:
        try:
            path, name, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            getattr(load_module(path), name)(**arguments)
            outcome = ("passed", "")
        except pytest.skip.Exception as skipped:
            outcome = ("skipped", str(skipped))
        except BaseException:  # noqa: BLE001 - reported by the pytest process
            outcome = ("failed", traceback.format_exc())
        pickle.dump(outcome, replies)
        replies.flush()


@cache
def load_module(path: Path) -> ModuleType:
    """A test file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    torch.set_num_threads(1)  # tests run side by side, and their tensors are tiny
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a test prints must not mix with the replies
    serve(sys.stdin.buffer, channel)
