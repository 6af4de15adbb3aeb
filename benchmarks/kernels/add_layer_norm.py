"""Times the residual addition with LayerNorm against PyTorch's two operations, on a GPU.

    python benchmarks/kernels/add_layer_norm.py --csv add_layer_norm.csv
    python benchmarks/kernels/add_layer_norm.py --residual float32 --sweep

Letters: M tokens, C channels.

`eager` is PyTorch's addition and `layer_norm`, `compiled` what `torch.compile` makes of them and
`kernel` ours. `--residual float32` with `--dtype bfloat16` is what training under autocast meets.
comparison.py says what is measured.
"""

import argparse
from collections.abc import Callable

import torch
from comparison import DTYPES, add_options, compare, make_cases, prepare, with_constants
from torch import Tensor

from wavevit.ops.add_layer_norm import add_layer_norm
from wavevit.ops.add_layer_norm_reference import reference_add_layer_norm

COLUMNS = ["shape_mc", "residual", "branch"]
EPS = 1e-6
BATCH = 2048  # more than a cache holds, and longer than a launch takes
# wavevit_s at 224 px, its four stages.
SHAPES = tuple((BATCH * H * H, C) for H, C in ((56, 64), (28, 128), (14, 320), (7, 448)))


def kernel(residual: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Ours; fails where it cannot run."""
    return add_layer_norm(residual, branch, weight, bias, EPS, backend="triton")


def eager(residual: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's two operations."""
    return reference_add_layer_norm(residual, branch, weight, bias, EPS)


def make_peers(inputs: list[Tensor], sweeping: bool) -> dict[str, dict[str, Callable]]:
    """Forward, backward and both of every peer."""
    torch.compiler.reset()  # it compiles for a few shapes only
    peers = {"eager": eager, "compiled": torch.compile(eager, dynamic=False), "kernel": kernel}
    expected = eager(*inputs)
    for name, run in peers.items():
        for ours, theirs in zip(run(*inputs), expected, strict=True):
            torch.testing.assert_close(
                ours, theirs, rtol=2e-2, atol=2e-2, msg=lambda m, name=name: f"{name}: {m}"
            )
    cases = {name: make_cases(run, inputs) for name, run in peers.items()}
    if sweeping:
        from wavevit.ops import add_layer_norm_triton as module

        for tile, warp_channels, programs in (
            (256, 512, 2048),
            (1024, 512, 2048),
            (2048, 128, 1024),
            (512, 512, 1024),
            (512, 512, 4096),
        ):
            constants = {"TILE": tile, "WARP_CHANNELS": warp_channels, "MAX_PROGRAMS": programs}
            cases[f"tile {tile}, {warp_channels} a warp, {programs}"] = {
                what: with_constants(module, constants, call)
                for what, call in cases["kernel"].items()
            }
    return cases


def floor_bytes(inputs: list[Tensor]) -> dict[str, int]:
    """Bytes of the tokens that are read and written at least; parameters hardly count."""
    residual, branch, *_ = inputs
    wide, narrow = (x.numel() * x.element_size() for x in (residual, branch))
    forward = 3 * wide + narrow  # both in, sum and norm out, in the residual's dtype
    # Two gradients and the sum in; the gradient out, once more where the branch has its own dtype.
    backward = 4 * wide + (narrow if residual.dtype != branch.dtype else 0)
    return {"forward": forward, "backward": backward, "both": forward + backward}


def main() -> None:
    """Runs the comparison and prints, or appends, one row per timing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser)
    parser.set_defaults(device="cuda")
    parser.add_argument("--shape", type=int, nargs=2, metavar="N", help="M C, not the stages'")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="of the branch")
    parser.add_argument("--residual", choices=DTYPES, help="of all but the branch")
    args = parser.parse_args()
    if args.device == "cpu":
        parser.error("the kernels need an NVIDIA GPU: --device cuda")
    prepare(args, parser, COLUMNS)
    low = getattr(torch, args.dtype)
    high = getattr(torch, args.residual or args.dtype)
    for M, C in [args.shape] if args.shape else SHAPES:
        shapes_and_dtypes = (((M, C), high), ((M, C), low), ((C,), high), ((C,), high))
        inputs = [torch.randn(s, device=args.device, dtype=t) for s, t in shapes_and_dtypes]
        described = (f"{M}x{C}", str(high).removeprefix("torch."), args.dtype)
        compare(
            make_peers(inputs, args.sweep),
            floor_bytes(inputs),
            dict(zip(COLUMNS, described, strict=True)),
            args,
        )


if __name__ == "__main__":
    main()
