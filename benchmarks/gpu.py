"""Everything about speed that needs a GPU, in at most eight minutes: checks, times, one table last.

    python benchmarks/gpu.py --output benchmarks/results

In this order: the machine's limits, the kernels against their references, the depthwise kernel
against copying, memory at 1024 pixels, `wavevit_s` with and without our kernels against its
paper-literal form and its peers in inference and training, latency, and as far as time allows the
kernels' tests (`pytest -m gpu tests/ops`). The bars are those of an H200.

What takes turns in one step ran in one process, A B A B. What fails, or for which no time is left,
is said below the table, and the rest goes on; so it does where a kernel fails its check, without
what would have timed its reference in its name. OUTPUT/gpu.csv gets the rows of each step as it
ends, and the table is printed even when the script is told to stop. The kernels' tests want pytest
and PyWavelets.
`--rehearse` runs the same steps on tiny networks on the CPU, to try out this script.
"""

import argparse
import gc
import operator
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import timm
import torch
import torch._dynamo

sys.path.insert(0, str(Path(__file__).parent / "models"))
import plain  # noqa: F401 - registers the paper-literal networks

from wavevit.models.runtimes import Runtime
from wavevit.ops.depthwise_gelu import Backend, depthwise_gelu
from wavevit.ops.triton_support import use_kernels
from wavevit.profiling.machine import Machine, measure_machine
from wavevit.profiling.precision import Precision
from wavevit.profiling.timing import (
    Call,
    Summary,
    append_rows,
    check_columns,
    environment,
    figures,
    peak_memory,
    time_in_turns,
    time_once,
)
from wavevit.profiling.workload import NOT_RUNNABLE, Case, Workload, one_line

ROOT = Path(__file__).parents[1]
OURS, PLAIN = "wavevit_s", "plain_wavevit_s"
PEERS = ("pvt_v2_b2", "swin_tiny_patch4_window7_224", "convnext_tiny")
# Maps (H, W) and channels between the linears of wavevit_s at 224 pixels.
HIDDEN = ((56, 512), (28, 1024), (14, 1280), (7, 1792))
COMPILE_S = 70  # seconds that compiling one network may take
GRACE_S = 30  # for what was started in time, after which it is interrupted
# Relative differences of the whole network in bf16, with kernels and without: roundings are several
# times smaller, a wrong kernel is far beyond.
MAX_DIFFERENCE = {"logits": 0.05, "gradients": 0.1}
TESTS_FAILED = "kernel tests that fail or are skipped"
COMPARE = {"<=": operator.le, ">=": operator.ge, ">": operator.gt}
COLUMNS = ("step", "name", "value", "p20", "p80", "unit", "peak_mib", "first_call_s")


@dataclass
class Settings:
    """What the steps run on.

    Attributes:
        device: "cuda", or "cpu" in a rehearsal.
        batch: Images of inference and training.
        size: Of the images, pixels.
        large: Of the image whose memory is measured, pixels.
        rounds: Timed turns.
        deadline: Of `time.monotonic`, after which no case is started.
        tiny: Whether this is a rehearsal.
    """

    device: str
    batch: int
    size: int
    large: int
    rounds: int
    deadline: float
    tiny: bool

    def model(self, name: str) -> str:
        """The network to run, a toy in a rehearsal."""
        if not self.tiny:
            return name
        return {OURS: "wavevit_test", PLAIN: "plain_wavevit_test"}.get(name, "test_resnet")

    @property
    def precision(self) -> Precision:
        """bf16; a CPU may be slow in it."""
        return "fp32" if self.tiny else "bf16"

    def runtime(self, name: Runtime) -> Runtime:
        """Eager in a rehearsal, since compiling takes long."""
        return "eager" if self.tiny else name


@dataclass
class Results:
    """What came out.

    Attributes:
        rows: Of the CSV file.
        failures: Name to reason.
        kernels_work: Whether every kernel has passed its check.
        written: Rows that are in the CSV file already.
    """

    rows: list[dict[str, object]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    kernels_work: bool = False
    written: int = 0

    def write(self, csv: Path | None, device: str) -> None:
        """Appends what is new to the file, if there is to be one."""
        if csv is not None and len(self.rows) > self.written:
            rows = self.rows[self.written :]
            append_rows(csv, [environment(device) | row for row in rows])
        self.written = len(self.rows)

    def add(self, step: str, name: str, summary: Summary, unit: str, **more: object) -> None:
        """Keeps a measurement, and says it."""
        values = map(figures, (summary.median, summary.p20, summary.p80))
        row = dict(zip(COLUMNS, (step, name, *values, unit, "", ""), strict=True)) | more
        self.rows.append(row)
        print(f"  {name:44} {row['value']:>12} {unit}  peak {row['peak_mib']} MiB", flush=True)

    def fail(self, name: str, reason: str) -> None:
        """Keeps why something was not measured, and says it."""
        self.failures[name] = reason
        print(f"  {name:44} not measured: {reason}", flush=True)

    def get(self, name: str, column: str = "value") -> float | None:
        """A measured value."""
        found = [row[column] for row in self.rows if row["name"] == name]
        return float(str(found[0])) if found and found[0] != "" else None


@dataclass(frozen=True)
class Contestant:
    """A network in one form.

    Attributes:
        name: As it is reported.
        model: timm model name.
        runtime: How it is run.
        workload: In what way.
        kernels: With our kernels.
    """

    name: str
    model: str
    runtime: Runtime
    workload: Workload
    kernels: bool = True


def check_kernels(settings: Settings, results: Results) -> None:
    """The kernels' own tests, on this device."""
    seconds = min(150.0, settings.deadline + 30 - time.monotonic())
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "tests/ops",
        "-p",
        "no:cacheprovider",
    ]
    if settings.tiny:
        command[-2:] = ["--collect-only"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        results.fail("kernel tests", f"took more than the {seconds:.0f} s that were left")
        return
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]])[-1]
    if done.returncode or (not settings.tiny and ("passed" not in last or "skipped" in last)):
        print(done.stdout[-3000:], done.stderr[-1000:])
        results.fail(TESTS_FAILED, last)
    else:
        results.add("kernels", f"kernel tests: {last}", Summary(0, 0, 0), "failures")


def check_self(settings: Settings, results: Results) -> None:
    """The kernels against their references; and the whole network with and without them.

    Raises:
        ValueError: A kernel does not work here; `Results.kernels_work` stays False.
    """
    if not settings.tiny:
        from wavevit.ops import add_layer_norm_triton, depthwise_gelu_triton, haar_triton

        for module in (depthwise_gelu_triton, haar_triton, add_layer_norm_triton):
            module.check_on(torch.device("cuda", torch.cuda.current_device()))
    torch.manual_seed(0)
    network = timm.create_model(settings.model(OURS)).to(settings.device)
    # As many as it takes for every kernel to be worth its launch.
    images = torch.randn(4 if settings.tiny else 32, 3, *[settings.size] * 2).to(settings.device)
    found = []
    for enabled in (True, False):
        network.zero_grad()
        with use_kernels(enabled), torch.autocast(settings.device, torch.bfloat16):
            logits = network(images)
        logits.float().square().mean().backward()
        gradients = [p.grad.float().flatten() for p in network.parameters() if p.grad is not None]
        found.append((logits.detach().float(), torch.cat(gradients)))
    for name, ours, theirs in zip(("logits", "gradients"), *found, strict=True):
        error = float((ours - theirs).norm() / theirs.norm())
        label = f"{name} in bf16, with kernels against without, relative"
        results.add("kernels", label, Summary.of([error]), "")
        if not error <= MAX_DIFFERENCE[name]:
            raise ValueError(
                f"{name} differ by {error:.2g}, at most {MAX_DIFFERENCE[name]} is right"
            )
    results.kernels_work = True


def time_depthwise(settings: Settings, results: Results, machine: Machine) -> None:
    """The depthwise kernel: its share of the bandwidth that a copy reaches."""
    dtype = torch.float32 if settings.tiny else torch.bfloat16
    # By name, so that nothing else is timed in its place.
    backend: Backend = "reference" if settings.tiny else "triton"
    for side, C in HIDDEN:
        B, C = (2, 16) if settings.tiny else (settings.batch, C)
        x = torch.randn(B, side, side, C, device=settings.device).to(dtype).requires_grad_()
        weight = torch.randn(C, 1, 3, 3, device=settings.device).to(dtype).requires_grad_()
        bias = torch.randn(C, device=settings.device).to(dtype).requires_grad_()
        kept = depthwise_gelu(x, weight, bias, backend=backend)
        gradient = torch.randn_like(kept)

        def forward(x=x, weight=weight, bias=bias) -> object:
            with torch.no_grad():
                return depthwise_gelu(x, weight, bias, backend=backend)

        def backward(kept=kept, inputs=(x, weight, bias), gradient=gradient) -> object:
            return torch.autograd.grad(kept, inputs, gradient, retain_graph=True)

        calls: Mapping[str, Call] = {"forward": forward, "backward": backward}
        times = time_in_turns(calls, 10, settings.device, repeats=2 if settings.tiny else 10)
        for what, tensors in (("forward", 2), ("backward", 3)):  # read and written at least
            floor = tensors * x.numel() * x.element_size() / machine.bytes_per_s
            share = Summary.of([floor / t for t in times[what]])
            name = f"depthwise + GELU {what} {side} x {side} x {C}"
            results.add("kernels", name, share, "of copy bandwidth")


def race(
    step: str, contestants: list[Contestant], settings: Settings, results: Results, step_batch: int
) -> None:
    """Images per second of all, taking turns, with peak memory and the time to compile."""
    calls: dict[str, Call] = {}
    peaks: dict[str, tuple[float, float | str]] = {}
    for who in contestants:
        compiles = who.runtime in ("compiled", "cuda-graphs")
        if time.monotonic() > settings.deadline - (COMPILE_S if compiles else 0):
            results.fail(who.name, "no time left")
            continue
        if who.kernels and who.model == settings.model(OURS) and not results.kernels_work:
            results.fail(who.name, "a kernel failed its check, and its reference would be timed")
            continue
        case = Case(who.model, settings.precision, who.runtime, step_batch, settings.size)
        try:
            with use_kernels(who.kernels):
                call = who.workload.call(case)
                first = time_once(call, settings.device)
                call()
                gc.collect()
                # What a CUDA graph holds it holds all the time.
                peaks[who.name] = (
                    figures(first),
                    ""
                    if who.runtime == "cuda-graphs"
                    else figures(peak_memory(call, settings.device) / 2**20),
                )
        except Exception as error:  # noqa: BLE001 - compilers raise anything; it is reported
            results.fail(who.name, one_line(error))
            continue
        calls[who.name] = guarded(who, call, results)
        print(f"  {who.name:44} ready in {first:.1f} s", flush=True)
    for name, seconds in time_in_turns(calls, settings.rounds, settings.device).items():
        if name in results.failures:
            continue
        first, peak = peaks[name]
        rate = Summary.of(seconds).rate(step_batch)
        results.add(step, name, rate, "images/s", peak_mib=peak, first_call_s=first)


def guarded(who: Contestant, call: Call, results: Results) -> Callable[[], None]:
    """The call, which is none any more once it has failed, so that the others go on."""

    def run() -> None:
        if who.name in results.failures:
            return
        try:
            # The switch as it was compiled: otherwise it would be compiled anew.
            with use_kernels(who.kernels):
                call()
        except Exception as error:  # noqa: BLE001 - compilers raise anything; it is reported
            results.fail(who.name, one_line(error))

    return run


def infer(settings: Settings, results: Results) -> None:
    """Inference: ours, the paper-literal form under autocast, and the peers compiled."""
    ours = Workload(device=settings.device)
    literal = replace(ours, autocast=True, fuse=False)
    model, compiled = settings.model, settings.runtime("compiled")
    contestants = [
        Contestant(f"inference {PLAIN} eager autocast", model(PLAIN), "eager", literal),
        Contestant(f"inference {OURS} compiled, kernels", model(OURS), compiled, ours),
        Contestant(f"inference {OURS} compiled", model(OURS), compiled, ours, kernels=False),
        *(
            Contestant(
                f"inference {peer} compiled",
                model(peer),
                compiled,
                replace(ours, channels_last=peer == "convnext_tiny"),
            )
            for peer in PEERS
        ),
        Contestant(f"inference {OURS} eager, kernels", model(OURS), "eager", ours),
        Contestant(f"inference {OURS} eager", model(OURS), "eager", ours, kernels=False),
    ]
    race("inference", contestants, settings, results, settings.batch)


def train(settings: Settings, results: Results) -> None:
    """Training steps under autocast: ours and the paper-literal form."""
    work = Workload(mode="training", device=settings.device)
    model, compiled = settings.model, settings.runtime("compiled")
    contestants = [
        Contestant(f"training {PLAIN} eager", model(PLAIN), "eager", work),
        Contestant(f"training {OURS} compiled, kernels", model(OURS), compiled, work),
        Contestant(f"training {OURS} compiled", model(OURS), compiled, work, kernels=False),
        Contestant(f"training {OURS} eager, kernels", model(OURS), "eager", work),
    ]
    race("training", contestants, settings, results, settings.batch)


def answer_one(settings: Settings, results: Results) -> None:
    """Latency: one image, compiled and replayed from CUDA graphs."""
    ours, model = Workload(device=settings.device), settings.model
    contestants = [
        Contestant(
            f"one image {name} CUDA graphs", model(name), settings.runtime("cuda-graphs"), ours
        )
        for name in (OURS, "pvt_v2_b2")
    ]
    race("latency", contestants, settings, results, 1)


def measure_memory(settings: Settings, results: Results) -> None:
    """Peak memory of a large image's activations, in MiB."""
    from memory import peak_bytes

    for mode in ("inference", "training"):
        for name in (OURS, PLAIN):
            label = f"memory {mode} {name} {settings.large} px"
            work = Workload(mode=mode, device=settings.device, fuse=name == OURS)
            gc.collect()
            try:
                peak = peak_bytes(settings.model(name), work, "fp32", settings.large) / 2**20
            except NOT_RUNNABLE as error:
                results.fail(label, one_line(error))
                continue
            results.add("memory", label, Summary.of([peak]), "MiB", peak_mib=figures(peak))


def table(settings: Settings, results: Results) -> list[tuple[str, str, str, str]]:
    """Bar by bar: what, bar, measured, and whether it is met."""
    get, large = results.get, settings.large
    best = f"inference {OURS} compiled, kernels"
    step = f"training {OURS} compiled, kernels"
    plain_step = f"training {PLAIN} eager"
    first_map = next(
        (str(row["name"]) for row in results.rows if "GELU forward 56" in str(row["name"])), ""
    )

    def over(a: float | None, b: float | None) -> float | None:
        return a / b if a is not None and b else None

    def memory(mode: str) -> float | None:
        return over(
            get(f"memory {mode} {OURS} {large} px"), get(f"memory {mode} {PLAIN} {large} px")
        )

    bars: list[tuple[str, float | None, str, float]] = [
        ("inference, torch.compile alone, images/s", get(f"inference {OURS} compiled"), ">=", 17e3),
        ("inference, our kernels, images/s", get(best), ">=", 25e3),
        (
            "  x plain under autocast",
            over(get(best), get(f"inference {PLAIN} eager autocast")),
            ">=",
            2.5,
        ),
        *(
            (f"  x {peer} compiled", over(get(best), get(f"inference {peer} compiled")), ">", 1.0)
            for peer in PEERS[:2]
        ),
        ("training step, images/s", get(step), ">=", 6e3),
        ("  x plain under autocast", over(get(step), get(plain_step)), ">=", 2.0),
        (
            "  peak memory, x plain",
            over(get(step, "peak_mib"), get(plain_step, "peak_mib")),
            "<=",
            0.6,
        ),
        ("depthwise + GELU forward, of copy bandwidth", get(first_map), ">=", 0.8),
        (f"memory at {large} px, inference, x plain", memory("inference"), "<=", 0.4),
        (f"memory at {large} px, training, x plain", memory("training"), "<=", 0.4),
    ]
    lines = []
    for what, value, sign, bar in bars:
        met = value is not None and COMPARE[sign](value, bar)
        verdict = "not measured" if value is None else "met" if met else "NOT MET"
        shown = "-" if value is None else f"{value:,.0f}" if bar > 1e3 else f"{value:.3f}"
        lines.append((what, f"{sign} {bar:,.0f}" if bar > 1e3 else f"{sign} {bar}", shown, verdict))
    tests = [
        str(row["name"]) for row in results.rows if str(row["name"]).startswith("kernel tests")
    ]
    broken = TESTS_FAILED in results.failures
    verdict = "met" if tests else "NOT MET" if broken else "not measured"
    lines.append(("kernels' tests", "pass", tests[0][14:44] if tests else "-", verdict))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder whose gpu.csv gets the rows")
    parser.add_argument("--seconds", type=float, default=440, help="after which nothing is started")
    parser.add_argument("--rehearse", action="store_true", help="tiny networks on the CPU")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        sys.stderr.write("error: no CUDA device is available here; --rehearse runs on the CPU\n")
        return 2
    deadline = time.monotonic() + options.seconds
    settings = (
        Settings("cpu", 2, 64, 64, 2, deadline, tiny=True)
        if options.rehearse
        else Settings("cuda", 256, 224, 1024, 12, deadline, tiny=False)
    )
    name = "rehearsal.csv" if options.rehearse else "gpu.csv"
    csv = None if options.output is None else options.output / name
    if csv is not None:
        check_columns(csv, [*environment(settings.device), *COLUMNS])
    results = Results()
    torch._dynamo.config.cache_size_limit = 256  # one class in several forms
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(int(options.seconds) + GRACE_S)
    try:
        run_steps(settings, results, csv)
    finally:  # also when it is told to stop
        signal.alarm(0)
        results.write(csv, settings.device)
        print(f"\n{'what':46}{'bar':>12}{'measured':>32}  verdict")
        if settings.tiny:
            print("REHEARSAL: tiny networks, uncompiled, on the CPU; no verdict means anything")
        for what, bar, shown, verdict in table(settings, results):
            print(f"{what:46}{bar:>12}{shown:>32}  {verdict}")
        for name, reason in results.failures.items():
            print(f"not measured: {name}: {reason}")
    return 1 if results.failures else 0


def stop(*_: object) -> None:
    """Ends the script with its table."""
    sys.exit(128 + signal.SIGTERM)


def interrupt(*_: object) -> None:
    """Ends what was started in time and takes too long.

    Raises:
        TimeoutError: Always; it is noted as what failed, and nothing else is started.
    """
    raise TimeoutError(f"no time left: interrupted {GRACE_S} s after the last start")


def run_steps(settings: Settings, results: Results, csv: Path | None) -> None:
    """All steps; one that fails does not stop the next."""
    print("machine", flush=True)
    copied = 1 << 24 if settings.tiny else None
    machine = measure_machine(settings.device, settings.precision, copied_bytes=copied)
    bandwidth, rate = machine.bytes_per_s / 1e9, machine.flops_per_s / 1e12
    results.add("machine", "copy bandwidth", Summary.of([bandwidth]), "GB/s")
    results.add("machine", "matrix products", Summary.of([rate]), "TFLOP/s")
    steps: list[tuple[str, Callable[[], None]]] = [
        ("kernels against references", lambda: check_self(settings, results)),
        ("depthwise kernel", lambda: time_depthwise(settings, results, machine)),
        ("memory", lambda: measure_memory(settings, results)),
        ("inference", lambda: infer(settings, results)),
        ("training", lambda: train(settings, results)),
        ("latency", lambda: answer_one(settings, results)),
        ("kernels' tests", lambda: check_kernels(settings, results)),
    ]
    for name, run in steps:
        if time.monotonic() > settings.deadline:
            results.fail(name, "no time left")
            continue
        started = time.monotonic()
        print(name, flush=True)
        try:
            run()
            gc.collect()
            torch.cuda.empty_cache()
        except Exception as error:  # noqa: BLE001 - compilers raise anything; it is reported
            results.fail(name, one_line(error))
            if "CUDA error" in str(error):
                return  # the device is in no state to go on with
        results.write(csv, settings.device)
        print(f"  ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
