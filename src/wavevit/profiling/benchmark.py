"""Cases that are run side by side: which there are, whether they can run, and how fast they do."""

import contextlib
import difflib
import gc
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TypeVar

import timm
import torch

from wavevit.models.runtimes import Runtime
from wavevit.profiling.precision import Precision, float32_products
from wavevit.profiling.timing import Call, peak_memory, synchronize, time_in_turns, time_once
from wavevit.profiling.workload import LOW_PRECISIONS, NOT_RUNNABLE, Case, Workload, one_line

SMALLEST_IMAGE = 32  # pixels: the stride of a pyramid's last map
_T = TypeVar("_T")

OK, OUT_OF_MEMORY = "ok", "out of memory"


@dataclass
class Measurement:
    """What came of a case.

    Attributes:
        case: What was run.
        status: `OK`, `OUT_OF_MEMORY`, or "failed: " and why, in one line.
        seconds: Of every round, per batch; none unless the status is `OK`.
        first_call_s: Seconds of the first call, compiling included.
        peak_bytes: Held at once by a call beyond weights, images and optimizer; None where the
            runtime keeps its memory to itself.
    """

    case: Case
    status: str = OK
    seconds: list[float] = field(default_factory=list)
    first_call_s: float | None = None
    peak_bytes: int | None = None


def plan(
    models: Sequence[str],
    precisions: Sequence[Precision],
    runtimes: Sequence[Runtime],
    batch_sizes: Sequence[int],
    image_sizes: Sequence[int],
) -> list[list[Case]]:
    """All cases, in groups that take turns: those of one precision, batch size and image size.

    Args:
        models: timm model names.
        precisions: Of the cases.
        runtimes: Of the cases.
        batch_sizes: Images.
        image_sizes: Pixels.
    """
    return [
        [
            Case(model, precision, runtime, batch_size, image_size)
            for model, runtime in product(_once(models), _once(runtimes))
        ]
        for precision, image_size, batch_size in product(
            _once(precisions), _once(image_sizes), _once(batch_sizes)
        )
    ]


def _once(values: Iterable[_T]) -> list[_T]:
    return list(dict.fromkeys(values))


def check_plan(groups: Sequence[Sequence[Case]], workload: Workload) -> None:
    """Refuses what cannot run, before anything is measured.

    Args:
        groups: Of `plan`.
        workload: What the cases have in common.

    Raises:
        ValueError: An unknown model, a size that is too small, a combination that does not go, or
            a runtime that is not installed.
    """
    cases = [case for group in groups for case in group]
    if not cases:
        raise ValueError("expected one model, precision, runtime, batch and image size or more")
    for model in _once(case.model for case in cases):
        check_model(model)
    if workload.mode == "inference" and workload.grad_checkpointing:
        raise ValueError("--grad-checkpointing saves memory in training: add --mode training")
    if workload.autocast and not any(case.precision in LOW_PRECISIONS for case in cases):
        raise ValueError("--autocast is about bf16 and fp16: add --precision bf16")
    for case in cases:
        if case.image_size < SMALLEST_IMAGE:
            raise ValueError(
                f"expected an image size of {SMALLEST_IMAGE} pixels or more, got {case.image_size}"
            )
        if case.batch_size < 1:
            raise ValueError(f"expected a batch size of 1 or more, got {case.batch_size}")
        _check_combination(case, workload)


def check_model(name: str) -> None:
    """Refuses a name that timm does not know, with the nearest one that it does.

    Args:
        name: timm model name, perhaps with a tag.

    Raises:
        ValueError: It is unknown.
    """
    if timm.is_model(name):
        return
    if "," in name:
        raise ValueError(f"expected model names separated by spaces, got {name!r}")
    near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"timm has no model named {name!r}{hint}")


def _check_combination(case: Case, workload: Workload) -> None:
    runtime, is_cuda = case.runtime, workload.device == "cuda"
    if workload.mode == "training" and runtime not in ("eager", "compiled"):
        raise ValueError(f"the runtime {runtime} cannot train; use eager or compiled")
    if runtime == "cuda-graphs" and not is_cuda:
        raise ValueError("the runtime cuda-graphs needs a CUDA device; use compiled on the CPU")
    if case.precision == "tf32" and not is_cuda:
        raise ValueError("tf32 is a precision of CUDA devices; use fp32 on the CPU")
    if runtime == "openvino":
        if is_cuda:
            raise ValueError("the runtime openvino runs on the CPU; use compiled on a CUDA device")
        if case.precision in LOW_PRECISIONS:
            raise ValueError(
                f"the runtime openvino takes networks in fp32, not in {case.precision}; "
                "measure it in a run of its own"
            )
        if importlib.util.find_spec("openvino") is None:
            raise ValueError('OpenVINO is not installed: pip install "wavevit[export]"')


def measure_group(
    cases: Sequence[Case],
    workload: Workload,
    *,
    rounds: int,
    warm_up: int = 2,
    on_prepared: Callable[[Measurement], None] = lambda measurement: None,
) -> list[Measurement]:
    """Runs cases of one precision in turns; one that fails or finds no memory leaves the others be.

    All their networks are on the device at the same time.

    Args:
        cases: Of one group of `plan`.
        workload: What they have in common.
        rounds: Timed turns of each.
        warm_up: Untimed calls of each before the first round, beside those that find out the
            memory.
        on_prepared: Called with each case once it has run the first time or failed to.
    """
    measurements = [Measurement(case) for case in cases]
    runners: dict[str, _Runner] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(_free, workload.device)
        stack.enter_context(float32_products(cases[0].precision))
        if any(case.runtime in ("compiled", "cuda-graphs") for case in cases):
            stack.enter_context(_fresh_compiler())
        for measurement in measurements:
            runner = _Runner(measurement, workload)
            runner.prepare()
            on_prepared(measurement)
            if measurement.status == OK:
                runners[measurement.case.name] = runner
        times = time_in_turns(runners, rounds, workload.device, warm_up)
        for name, runner in runners.items():
            if runner.measurement.status == OK:
                runner.measurement.seconds = times[name]
    return measurements


class _Runner:
    """A case's call, which becomes a call of nothing once it has failed."""

    def __init__(self, measurement: Measurement, workload: Workload) -> None:
        self.measurement = measurement
        self.workload = workload
        self._call: Call | None = None

    def prepare(self) -> None:
        with self._recorded():
            self._call = self.workload.call(self.measurement.case)
            device = self.workload.device
            _free(device)
            if self.measurement.case.runtime == "cuda-graphs":
                self._record_graphs(self._call)
                return
            self.measurement.first_call_s = time_once(self._call, device)
            if self.measurement.case.runtime != "openvino":
                self.measurement.peak_bytes = peak_memory(self._call, device)

    def __call__(self) -> None:
        if self._call is not None:
            with self._recorded():
                self._call()

    def _record_graphs(self, call: Call) -> None:
        # A graph keeps its memory for good and takes none in a call: what it has reserved counts.
        before = torch.cuda.memory_reserved()
        self.measurement.first_call_s = time_once(call, "cuda")
        for _ in range(2):  # the second call records the graph, the third replays it
            call()
        _free("cuda")
        self.measurement.peak_bytes = torch.cuda.memory_reserved() - before

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[None]:
        try:
            yield
        except NOT_RUNNABLE as error:
            if "CUDA error" in str(error) and not isinstance(error, torch.OutOfMemoryError):
                raise  # the device is in no state to go on with
            self.measurement.status = _status(error)
            self._call = None
        if self._call is None:  # here the error is gone, and with it what its traceback held
            _free(self.workload.device)


def _status(error: Exception) -> str:
    text = one_line(error)
    # On the CPU memory has no error of its own; compare `wavevit.cli.memory`.
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in text:
        return OUT_OF_MEMORY
    return f"failed: {text}"


@contextlib.contextmanager
def _fresh_compiler() -> Iterator[None]:
    """Nothing is compiled yet inside; and no network runs uncompiled because others came before."""
    import torch._dynamo  # here, as it takes a second to import

    torch.compiler.reset()
    # Networks of one class share their code, of which torch compiles 8 variants and then no more.
    with warnings.catch_warnings(), torch._dynamo.config.patch(cache_size_limit=256):
        # It recommends tf32, which is a precision of its own here.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        yield
    torch.compiler.reset()


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        synchronize(device)
        torch.cuda.empty_cache()
