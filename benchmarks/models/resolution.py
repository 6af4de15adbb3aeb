"""Time per image from 224 to 1536 pixels: measured, fitted, and where attention takes over.

    python benchmarks/models/resolution.py --csv benchmarks/results/resolution.csv \
        --picture resolution.png

Batch 1, as for a large photo, with the allocator that the command line sets. The networks take
turns at each size, A B A B. One whose turns at a
size would take longer than its share of ``--limit-s`` is left out from there on, which is said.
Times are fitted by a + b p + c p^2 of the number of pixels p; attention between all pairs of pixels
is the last part, and the size from which on it takes half of the time is printed beside the size
from which on it takes half of the FLOPs, which are counted and not timed.
"""

import argparse
import math
from pathlib import Path

import plain  # noqa: F401 - registers the paper-literal networks
import timm
import torch
from torch import nn

from wavevit.cli.main import keep_freed_memory
from wavevit.files import check_place
from wavevit.models.runtimes import RUNTIMES
from wavevit.pictures.speed import Cost, draw_scaling, draw_speed
from wavevit.profiling.precision import PRECISIONS, float32_products
from wavevit.profiling.scaling import counted_scaling, fit_scaling
from wavevit.profiling.timing import (
    Summary,
    append_rows,
    check_columns,
    environment,
    figures,
    time_in_turns,
    time_once,
)
from wavevit.profiling.workload import Case, Workload, one_line

MODELS = (
    "wavevit_s",
    "plain_wavevit_s",
    "pvt_v2_b2",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
)
SIZES = (224, 320, 448, 640, 896, 1152, 1536)
LONG_ENOUGH_S = 0.02  # a timed turn on a GPU; shorter calls are repeated
COLUMNS = (
    "mode",
    "model",
    "runtime",
    "precision",
    "batch_size",
    "image_size",
    "images_per_s",
    "images_per_s_p20",
    "images_per_s_p80",
    "rounds",
)


def measure(
    active: list[str], size: int, options: argparse.Namespace
) -> tuple[dict[str, list[float]], list[str]]:
    """Seconds per image of every round, by model, and the models that the size is too large for."""
    torch.compiler.reset()  # or the graphs of other sizes would use up what one function may have
    workload = Workload(device=options.device)
    calls, dropped, repeats = {}, [], 1
    for model in active:
        case = Case(model, options.precision, options.runtime, 1, size)
        try:
            call = workload.call(case)
            call()  # compiles
            once = time_once(call, options.device)
        except RuntimeError as error:
            print(f"{case.name}: {one_line(error)}", flush=True)
            dropped.append(model)
            continue
        if once * options.rounds > options.limit_s / len(active):
            print(f"{case.name}: left out from here on, an image takes {once:.1f} s", flush=True)
            dropped.append(model)
            continue
        calls[model] = call
        if options.device == "cuda":
            repeats = max(repeats, math.ceil(LONG_ENOUGH_S / once))
    seconds = time_in_turns(calls, options.rounds, options.device, 1, repeats=repeats)
    return seconds, dropped


def on_meta(model: str, size: int) -> nn.Module:
    """The network for a size, without weights."""
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    is_for_one_size = config is not None and config.fixed_input_size
    with torch.device("meta"):
        return timm.create_model(model, **({"img_size": size} if is_for_one_size else {}))


def report(model: str, times: dict[int, Summary]) -> Cost | None:
    """Prints what time and FLOPs grow like, and what a picture needs of it."""
    counted = counted_scaling(lambda size: on_meta(model, size), (224, 448, 896))
    flops = f"{counted.cost(224) / 1e9:.2f} GFLOP at 224 px, half attention {_from(counted)}"
    if len(times) < 4:  # three are met exactly, noise and all
        print(f"{model}: too few sizes for a fit; {flops}")
        return None
    fit = fit_scaling(list(times), [summary.median for summary in times.values()])
    print(
        f"{model}: {1e3 * fit.constant:.3g} ms + {1e9 * fit.per_pixel:.3g} ms per megapixel + "
        f"{1e15 * fit.per_pixel_pair:.3g} ms per its square (within {fit.worst_error:.0%}), "
        f"half attention {_from(fit)}; {flops}"
    )
    seconds = [(each.p20, each.median, each.p80) for each in times.values()]
    return Cost(model, list(times), seconds, fit.cost, fit.crossing())


def _from(scaling: object) -> str:
    size = scaling.crossing()
    return f"from {size:.0f} px" if math.isfinite(size) else "at no size"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="pixels")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--runtime", choices=RUNTIMES, default="eager")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit-s", type=float, default=120.0, help="seconds for a size")
    parser.add_argument("--csv", type=Path, help="file to append rows to")
    parser.add_argument("--picture", type=Path, help="PNG of times and fits")
    parser.add_argument("--speed-picture", type=Path, help="PNG of throughputs")
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does
    fixed = environment(options.device)
    if options.csv is not None:
        check_columns(options.csv, [*fixed, *COLUMNS])
    for picture in (options.picture, options.speed_picture):
        if picture is not None:
            check_place(picture)
    times: dict[str, dict[int, Summary]] = {model: {} for model in options.models}
    active, rows = list(options.models), []
    for size in sorted(options.sizes):
        with float32_products(options.precision):
            seconds, dropped = measure(active, size, options)
        active = [model for model in active if model not in dropped]
        of_size = []
        for model, values in seconds.items():
            summary = times[model][size] = Summary.of(values)
            rate = summary.rate(1)
            what = ("inference", model, options.runtime, options.precision, 1, size)
            rates = (figures(value) for value in (rate.median, rate.p20, rate.p80))
            of_size.append(fixed | dict(zip(COLUMNS, (*what, *rates, len(values)), strict=True)))
            print(f"{size} px {model}: {1e3 * summary.median:.1f} ms", flush=True)
        if options.csv is not None:
            append_rows(options.csv, of_size)
        rows += of_size
    costs = [cost for model in times if (cost := report(model, times[model])) is not None]
    title = f"{fixed['device']}, {options.precision}, {options.runtime}, batch 1"
    if options.picture is not None and costs:
        draw_scaling(costs, options.picture, title=title)
    if options.speed_picture is not None and rows:
        draw_speed(rows, options.speed_picture)


if __name__ == "__main__":
    main()
