"""Times the depthwise convolution with bias and GELU against PyTorch's two operations, on a GPU.

    python benchmarks/kernels/depthwise_gelu.py --csv depthwise_gelu.csv
    python benchmarks/kernels/depthwise_gelu.py --shape 256 56 56 512 --sweep

Letters: B batch, H W rows and columns, C channels.

`eager` is PyTorch's convolution and GELU on the same channels_last memory, `compiled` what
`torch.compile` makes of them and `kernel` ours. The bytes counted are those that any implementation
moves: tokens in and result out; backward, tokens and a gradient in and a gradient out. Our backward
pass moves five thirds of that, since the gradient of the pre-activation goes through memory between
its two kernels. comparison.py says what is measured.
"""

import argparse
from collections.abc import Callable

import torch
from comparison import DTYPES, add_options, compare, make_cases, prepare, with_constants
from torch import Tensor

from wavevit.ops.depthwise_gelu import depthwise_gelu
from wavevit.ops.depthwise_gelu_reference import reference_depthwise_gelu

COLUMNS = ["shape_bhwc", "dtype"]
# wavevit_s at 224 px and batch 256, its four stages.
SHAPES = ((256, 56, 56, 512), (256, 28, 28, 1024), (256, 14, 14, 1280), (256, 7, 7, 1792))
# What the sweep changes of a launch that was chosen.
SWEEP: tuple[dict[str, int], ...] = (
    {"columns": 4},
    {"columns": 7},
    {"columns": 8},
    {"columns": 14},
    {"strips": 1, "channels": 256},
    {"strips": 2, "channels": 128},
    {"strips": 2, "channels": 64, "num_warps": 2},
    {"strips": 8, "channels": 64, "num_warps": 8},
    {"strips": 4, "channels": 128},
    {"rows": 7},
    {"rows": 14},
    {"rows": 28},
    {"rows": 56},
)
ROUNDS = 5  # of ten calls each


def kernel(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Ours; fails where it cannot run."""
    return depthwise_gelu(tokens, weight, bias, backend="triton")


def make_peers(inputs: list[Tensor], sweeping: bool) -> dict[str, dict[str, Callable]]:
    """Forward, backward and both of every peer."""
    torch.compiler.reset()  # it compiles for a few shapes only
    peers = {
        "eager": reference_depthwise_gelu,
        "compiled": torch.compile(reference_depthwise_gelu, dynamic=False),
        "kernel": kernel,
    }
    expected = reference_depthwise_gelu(*inputs)
    for name, run in peers.items():
        torch.testing.assert_close(
            run(*inputs), expected, rtol=2e-2, atol=2e-2, msg=lambda m, name=name: f"{name}: {m}"
        )
    cases = {name: make_cases(run, inputs) for name, run in peers.items()}
    if sweeping:
        add_sweep(cases, inputs[0].shape)
    return cases


def add_sweep(cases: dict[str, dict[str, Callable]], shape: torch.Size) -> None:
    """Adds the kernel under other launches: forward, and backward with its first kernel changed."""
    from wavevit.ops import depthwise_gelu_triton as module

    choose = module.choose_launch
    for changes in SWEEP:
        chosen = choose(*shape, "forward")
        if chosen._replace(**changes) == chosen or changes.get("rows", 0) > shape[1]:
            continue

        def change(*arguments: object, changes: dict[str, int] = changes) -> object:
            launch = choose(*arguments)
            return launch if arguments[-1] == "transposed" else launch._replace(**changes)

        cases[" ".join(f"{name}={value}" for name, value in changes.items())] = {
            what: with_constants(module, {"choose_launch": change}, cases["kernel"][what])
            for what in ("forward", "backward")
        }


def floor_bytes(tokens: Tensor) -> dict[str, int]:
    """Bytes of the tokens and gradients that are read and written at least."""
    size = tokens.numel() * tokens.element_size()
    return {"forward": 2 * size, "backward": 3 * size, "both": 5 * size}


def main() -> None:
    """Runs the comparison and prints, or appends, one row per timing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser)
    parser.set_defaults(device="cuda", rounds=ROUNDS)
    parser.add_argument("--shape", type=int, nargs=4, metavar="N", help="B H W C, not the stages'")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    args = parser.parse_args()
    if args.device == "cpu":
        parser.error("the kernels need an NVIDIA GPU: --device cuda")
    prepare(args, parser, COLUMNS)
    dtype = getattr(torch, args.dtype)
    for B, H, W, C in [args.shape] if args.shape else SHAPES:
        shapes = ((B, H, W, C), (C, 1, 3, 3), (C,))
        inputs = [torch.randn(shape, device=args.device, dtype=dtype) for shape in shapes]
        inputs[1] /= 3  # pre-activations near 1, as in a network
        described = dict(zip(COLUMNS, (f"{B}x{H}x{W}x{C}", args.dtype), strict=True))
        compare(make_peers(inputs, args.sweep), floor_bytes(inputs[0]), described, args)


if __name__ == "__main__":
    main()
