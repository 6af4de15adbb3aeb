"""When a Triton kernel may stand in for its reference: the switch, the device, the self check.

Nothing here imports Triton. A compiled graph asks these questions while it is traced, so it holds
either the kernel or the reference, and is traced anew when `use_kernels` has changed its mind.
"""

import importlib.util
import logging
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from wavevit.ops.extension import is_exporting

__all__ = [
    "kernels_enabled",
    "on_device_of",
    "triton_applies",
    "use_kernels",
    "why_not_triton",
    "works_here",
    "wrap_triton",
]

logger = logging.getLogger(__name__)

KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MIN_CAPABILITY = (8, 0)  # Ampere: the first with bfloat16 arithmetic
MIN_TORCH = "2.7"  # comes with Triton 3.3, the first whose loops carry tuples

_enabled = True
_verdicts: dict[tuple[str, torch.device], bool] = {}
_verdicts_lock = threading.Lock()


class use_kernels:  # noqa: N801 - reads as a statement, as torch.set_grad_enabled does
    """Switches the Triton kernels of the whole process on (as they are at first) or off.

    A call sets the switch for good; as a context manager it is restored at the end::

        use_kernels(False)
        with use_kernels(True):
            ...

    A compiled model follows: it is compiled once for each setting that it meets.

    Args:
        enabled: Whether an operation may take its kernel where that applies.
    """

    def __init__(self, enabled: bool) -> None:
        global _enabled
        self.previous = _enabled
        _enabled = bool(enabled)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _enabled
        _enabled = self.previous


def triton_applies(x: Tensor) -> bool:
    """Whether a kernel may run on x: on, not exporting, and a dtype and device that it is for.

    Args:
        x: The tensor that the kernel would read.

    Returns:
        True for float16, bfloat16 and float32 on an NVIDIA GPU of compute capability 8.0 or above
        where Triton is installed. The self check, `works_here`, is a second question.
    """
    return (
        _enabled
        and x.is_cuda
        and x.dtype in KERNEL_DTYPES
        and not is_exporting()
        and (torch.compiler.is_compiling() or not is_transformed())
        and _why_device_cannot(x.device) is None
    )


def why_not_triton(x: Tensor) -> str | None:
    """What keeps a kernel from running on x, for the error that a user sees.

    Args:
        x: The tensor that the kernel would read.

    Returns:
        What is needed and what came, or None where `triton_applies`.
    """
    if not _enabled:
        return "kernels are switched off; switch them on with use_kernels(True)"
    if not x.is_cuda:
        return f"needs a tensor on a CUDA device, got one on {x.device}"
    if x.dtype not in KERNEL_DTYPES:
        return f"needs float16, bfloat16 or float32, got {x.dtype}"
    if is_exporting():
        return "an exported program holds the reference, which runs everywhere"
    if not torch.compiler.is_compiling() and is_transformed():
        return (
            "transforms of torch.func, forward-mode differentiation and tracing take the reference"
        )
    return _why_device_cannot(x.device)


@torch.compiler.assume_constant_result
def works_here(name: str, check: Callable[[torch.device], None], device: torch.device) -> bool:
    """Whether a kernel passes its self check on a device; it runs once for each in a process.

    A kernel that does not compile or computes something else is reported once, as a warning with
    the reason, and its reference serves from then on.

    Args:
        name: The kernel's name, for the report.
        check: Runs the kernel on a tiny input on the device given and raises where that differs
            from the reference. A function of a module, so that it can be named in a traced call; it
            takes the kernel without asking here.
        device: A CUDA device with its index.

    Returns:
        Whether the kernel may be used on this device.
    """
    key = (name, device)
    with _verdicts_lock:
        if key not in _verdicts:
            if torch._C._current_graph_task_id() != -1:
                return False  # in a backward pass the check would wait for its own thread
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                logger.warning(
                    "%s was first called while a CUDA graph was being captured, where it cannot be "
                    "checked: the graph holds the slower reference; run once before capturing",
                    name,
                )
                return False
            failure = _run_apart(check, device)
            if failure is not None:
                logger.warning(
                    "the Triton kernel %s does not work on %s and is replaced by its reference: "
                    "%s: %s",
                    name,
                    device,
                    type(failure).__name__,
                    _first_lines(str(failure)),
                )
            _verdicts[key] = failure is None
        return _verdicts[key]


def wrap_triton(kernel: Any) -> Any:
    """`torch.library.wrap_triton`, which before torch 2.10 refuses an interpreted kernel.

    Args:
        kernel: What `triton.jit` returned.
    """
    if type(kernel).__name__ == "InterpretedFunction":  # TRITON_INTERPRET=1
        return kernel
    return torch.library.wrap_triton(kernel)


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which x's GPU is the current one: Triton launches there.

    Args:
        x: A tensor that the kernel reads; on the CPU where kernels are interpreted. While a graph
            is traced nothing is launched, and no device is touched.
    """
    if not x.is_cuda or isinstance(x, FakeTensor) or torch.compiler.is_compiling():
        return nullcontext()
    return torch.cuda.device(x.device)


def is_transformed() -> bool:
    """Whether `torch.func`, forward-mode differentiation or TorchScript's tracer is under way.

    Kernels know gradients of the ordinary kind only, and a traced program should hold operations
    that exist without this package.
    """
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    transformed: bool = forward_mode or torch._C._are_functorch_transforms_active()
    return transformed or torch._C._is_tracing()


def kernels_enabled() -> bool:
    """What `use_kernels` was last told."""
    return _enabled


@torch.compiler.assume_constant_result
def _why_device_cannot(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "needs Triton; install it with: pip install triton"
    if torch.__version__ < MIN_TORCH:
        return f"needs PyTorch {MIN_TORCH} or above, found {torch.__version__}"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "needs PyTorch built for CUDA and an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        needed, found = _dotted(MIN_CAPABILITY), _dotted(capability)
        return f"needs a GPU of compute capability {needed} or above, {device} has {found}"
    return None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _run_apart(check: Callable[[torch.device], None], device: torch.device) -> Exception | None:
    # A thread of its own has none of the caller's modes: no tracing, fake tensors, autocast,
    # inference mode or function transform.
    failures: list[Exception] = []

    def run() -> None:
        try:
            if device.type == "cuda":
                # A compiler's warning is no failure, whatever the caller makes of warnings.
                with warnings.catch_warnings(), torch.cuda.device(device):
                    warnings.simplefilter("ignore")
                    check(device)
                    torch.cuda.synchronize(device)
            else:
                check(device)
        except Exception as error:  # noqa: BLE001 - compilers and drivers raise anything; reported
            failures.append(error)

    thread = threading.Thread(target=run, name="kernel-self-check")
    thread.start()
    thread.join()
    return failures[0] if failures else None


def _first_lines(text: str, most: int = 400) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= most else f"{joined[:most]} ..."
