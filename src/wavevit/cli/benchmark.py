"""``wavevit benchmark``: how fast networks of timm run here, side by side with ours."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wavevit.files import check_place

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

# As in `wavevit.profiling.precision` and `wavevit.models.runtimes`, which load torch.
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Runtime = Literal["eager", "compiled", "cuda-graphs", "openvino"]

_CPU_BATCH, _CUDA_BATCH = 8, 256


def benchmark(
    models: Sequence[str] = ("wavevit_nano", "wavevit_s", "pvt_v2_b2"),
    precision: Sequence[Precision] = ("fp32",),
    runtime: Sequence[Runtime] = ("eager",),
    batch_size: Sequence[int] | None = None,
    image_size: Sequence[int] = (224,),
    mode: Literal["inference", "training"] = "inference",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    register: Path | None = None,
    latency: bool = False,
    autocast: bool = False,
    fuse: bool = True,
    channels_last: bool = False,
    grad_checkpointing: bool = False,
    kernels: bool = True,
    rounds: int = 20,
    threads: int | None = None,
    compare_with: str | None = None,
    roofline: bool = False,
    csv: Path | None = None,
    picture: Path | None = None,
    overwrite: bool = False,
) -> int:
    """Measures how fast networks run here: images per second, latency, memory, time to compile.

    Models and runtimes of one precision, batch and image size take turns in every round, so that
    a busy machine disturbs all alike; medians are shown with the 20th and 80th percentile. Weights
    are random, inputs of a fixed seed. A case that finds no memory, or that its network refuses, is
    said and left out. Exit code 0: all cases ran, but for some that found no memory; 1: another
    failure.

    Args:
        models: timm model names.
        precision: fp32, tf32 (CUDA devices), bf16, fp16: of weights and images in inference; of
            autocast in training.
        runtime: eager, compiled (torch.compile), cuda-graphs (compiled and replayed from CUDA
            graphs), openvino (on the CPU, in fp32). Training: eager, compiled.
        batch_size: Images per call; 8 on the CPU and 256 on a CUDA device unless given.
        image_size: Rows and columns, pixels, 32 or more.
        mode: A forward pass, or a training step: forward, soft cross-entropy, backward, AdamW.
        device: "auto" takes CUDA where there is some.
        register: Python file that registers more models with timm; it is run first.
        latency: Measure batches of one image too.
        autocast: Inference in bf16 and fp16 under autocast, with weights and images in fp32.
        fuse: Inference with norms folded (`wavevit.fuse`), in every network that knows how;
            --no-fuse: as they are.
        channels_last: Images and weights of all networks in that memory format. Otherwise each is
            as its users find it: Wave-ViT, which works in it inside, has it, others have PyTorch's
            own. Some networks gain by it and some lose: compare with a peer's better form.
        grad_checkpointing: Training keeps only the borders of blocks and computes the rest again.
        kernels: Wave-ViT's own GPU kernels, on CUDA devices; --no-kernels: PyTorch's.
        rounds: Timed calls of each case.
        threads: CPU threads; null: as many as PyTorch takes.
        compare_with: Model that ratios are of, in each runtime; or MODEL:RUNTIME; null: the first.
        roofline: Count bytes and operations of an image, measure the machine's copies and matrix
            products, and tell the share reached of what they allow.
        csv: File to append a row per case to.
        picture: PNG file to draw: images per second against accuracy and against image size.
        overwrite: Replace the picture if it exists.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No such file to register, or no folder for an output.
        FileExistsError: The picture exists and `overwrite` is not given.
        ValueError: An unknown model, a combination that does not go, or a value out of range.
    """
    from wavevit.cli import benchmark_run
    from wavevit.cli.benchmark_display import Display, show_results
    from wavevit.cli.inference import find_device
    from wavevit.profiling.benchmark import check_plan, plan
    from wavevit.profiling.benchmark_rows import Base
    from wavevit.profiling.registering import register_models
    from wavevit.profiling.workload import Workload

    if rounds < 1 or (threads is not None and threads < 1):
        raise ValueError(f"--rounds and --threads must be 1 or more, got {rounds} and {threads}")
    if mode == "training" and (autocast or not fuse):
        raise ValueError(
            "--autocast and --no-fuse are for inference: training is never fused, and in bf16 and "
            "fp16 always under autocast; leave them out"
        )
    _check_picture(picture, overwrite)
    if register is not None:
        register_models(register)
    workload = Workload(
        mode=mode,
        device=find_device(device).type,
        autocast=autocast,
        fuse=fuse,
        channels_last=channels_last,
        grad_checkpointing=grad_checkpointing,
    )
    is_cuda = workload.device == "cuda"
    batches = [_CUDA_BATCH if is_cuda else _CPU_BATCH] if batch_size is None else [*batch_size]
    groups = plan(models, precision, runtime, [*batches, 1] if latency else batches, image_size)
    check_plan(groups, workload)
    base = Base.parse(compare_with or models[0], [case for group in groups for case in group])
    options = benchmark_run.RunOptions(workload, base, kernels and is_cuda, rounds, roofline, csv)
    display = Display()
    with benchmark_run.threads(threads):
        benchmark_run.check_csv(options, groups[0][0])
        benchmark_run.warn_of_slow(precision, workload.device)
        rows = benchmark_run.measure(groups, options, display)
    show_results(display, rows)
    if csv is not None:
        display.note(f"rows appended: {csv}")
    if picture is not None:
        benchmark_run.draw(rows, picture, display)
    states = [str(row["status"]) for row in rows]
    return 1 if any(s.startswith("failed") for s in states) or "ok" not in states else 0


def add_arguments(parser: "ArgumentParser") -> None:
    """Adds the command's options to its parser.

    Args:
        parser: The command's parser.
    """
    import docstring_parser  # comes with jsonargparse, which makes the other options' help of it

    parser.usage = "%(prog)s [--models NAME ...] [--runtime NAME ...] [options]"
    types: dict[str, Any] = {
        "models": str,
        "precision": Precision,
        "runtime": Runtime,
        "batch_size": int,
        "image_size": int,
    }
    defaults = inspect.signature(benchmark).parameters
    helps = {
        p.arg_name: p.description or ""
        for p in docstring_parser.parse(benchmark.__doc__ or "").params
    }
    for name, kind in types.items():
        default = defaults[name].default
        parser.add_argument(
            f"--{name}",
            nargs="+",
            type=kind,
            default=default if default is None else list(default),
            help=" ".join(helps[name].split()),
        )
    parser.add_function_arguments(benchmark, skip=set(types))


def run(options: "Namespace") -> int:
    """Runs the command; returns the exit code.

    Args:
        options: Parsed options.
    """
    names = inspect.signature(benchmark).parameters
    return benchmark(**{name: getattr(options, name) for name in names})


def _check_picture(path: Path | None, overwrite: bool) -> None:
    if path is None:
        return
    if path.suffix != ".png":
        raise ValueError(f"--picture must end in .png, got {path}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name or pass --overwrite")
    check_place(path)
