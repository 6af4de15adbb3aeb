"""Peak memory of activations for large images: Wave-ViT against its paper-literal form.

    python benchmarks/models/memory.py --sizes 256 384 512 1024 --csv benchmarks/results/memory.csv

Batch 1. Inference, and a training step of forward and backward pass without optimizer, each with
and without what saves memory there: folded norms, and blocks computed again in the backward pass.
The peak is what PyTorch's allocators hold at once beyond weights, gradients and the image; on a CPU
it is taken from the profiler's events. `ratio` is the peak over that of the plain network at this
size, for which the bar at 1024 pixels is 0.4.

Sizes are measured in ascending order. Where what a step needs is known from three sizes, a fit
foretells it for the next one, and a case beyond ``--limit-gib`` is not run: its peak is the fit's,
and `measured` says so.
"""

import argparse
from pathlib import Path

import plain  # noqa: F401 - registers the paper-literal networks
import torch
import torch.nn.functional as F

from wavevit.profiling.precision import PRECISIONS
from wavevit.profiling.scaling import fit_scaling
from wavevit.profiling.timing import append_rows, check_columns, environment, peak_memory
from wavevit.profiling.workload import Workload

GIB = 2**30
BAR, BAR_FROM = 0.4, 1024  # of plain, pixels

FORMS = {
    "inference": {"eager": {"fuse": False}, "folded": {"fuse": True}},
    "training": {
        "eager": {"grad_checkpointing": False},
        "checkpointing": {"grad_checkpointing": True},
    },
}
COLUMNS = ("mode", "precision", "image_size", "model", "form", "peak_mib", "measured", "ratio")


def peak_bytes(model: str, workload: Workload, precision: str, size: int) -> int:
    """Bytes that one call holds at once, weights, gradients and image not among them."""
    network = workload.network(model, size).to(workload.device)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 3, size, size, generator=generator).to(workload.device)
    target = torch.tensor([0], device=workload.device)
    if workload.mode == "training":
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def infer() -> torch.Tensor:
        with torch.inference_mode(), workload.autocast_in(precision):
            return network(image)

    def train() -> None:
        with workload.autocast_in(precision):
            loss = F.cross_entropy(network(image), target)
        loss.backward()

    return peak_memory(infer if workload.mode == "inference" else train, workload.device)


def peaks(
    model: str, workload: Workload, precision: str, sizes: list[int], limit: float
) -> dict[int, tuple[float, bool]]:
    """Bytes by size, and whether they were measured."""
    found: dict[int, tuple[float, bool]] = {}
    for size in sizes:
        if len(found) >= 3:
            foretold = fit_scaling(list(found), [value for value, _ in found.values()]).cost(size)
            if foretold > limit:
                found[size] = (foretold, False)
                continue
        found[size] = (peak_bytes(model, workload, precision, size), True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="wavevit_s")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 384, 512, 1024])
    parser.add_argument("--modes", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="by autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit-gib", type=float, default=12.0, help="what a case may take")
    parser.add_argument("--csv", type=Path, help="file to append rows to")
    options = parser.parse_args()
    fixed = environment(options.device)
    if options.csv is not None:
        check_columns(options.csv, [*fixed, *COLUMNS])
    sizes = sorted(options.sizes)
    for mode in options.modes:
        bases: dict[int, float] = {}
        for model, form in (
            (f"plain_{options.model}", "eager"),
            *((options.model, form) for form in FORMS[mode]),
        ):
            settings = {"autocast": True} | FORMS[mode][form]
            workload = Workload(mode=mode, device=options.device, **settings)
            found = peaks(model, workload, options.precision, sizes, options.limit_gib * GIB)
            rows = []
            for size, (peak, measured) in found.items():
                base = bases.setdefault(size, peak)
                values = (mode, options.precision, size, model, form, round(peak / 2**20, 1))
                row = dict(zip(COLUMNS, (*values, measured, round(peak / base, 4)), strict=True))
                rows.append(fixed | row)
                is_over = model == options.model and size >= BAR_FROM and peak > BAR * base
                print(
                    f"{mode} {options.precision} {size} px {model} {form}: "
                    f"{peak / GIB:.3f} GiB{'' if measured else ' (fitted)'}, "
                    f"{peak / base:.3f} of plain"
                    + (f", above the bar of {BAR}" if is_over else ""),
                    flush=True,
                )
            if options.csv is not None:
                append_rows(options.csv, rows)


if __name__ == "__main__":
    main()
