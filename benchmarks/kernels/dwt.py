"""Times the wavelet transforms against depthwise convolutions, forward, backward and both.

    python benchmarks/kernels/dwt.py --csv dwt_cpu.csv
    python benchmarks/kernels/dwt.py --allocator keep
    python benchmarks/kernels/dwt.py --device cuda --dtype bfloat16 --csv dwt_gpu.csv

Letters: B batch, C channels, H W rows and columns.

On a GPU `buffers` is the way taken where kernels are switched off, `compiled` what `torch.compile`
makes of the plain expression, and `haar_dwt2` takes the kernel. On Linux, glibc may hand large
tensors back to the system after each operation, and page faults then cost more than the sums;
`--allocator keep` tells it not to. comparison.py says what is measured.
"""

import argparse
import ctypes
from collections.abc import Callable

import torch
from comparison import DTYPES, add_options, compare, make_cases, prepare, with_constants
from torch import Tensor
from torch.nn import functional as F

from wavevit.ops.dwt import dwt2, haar_dwt2, haar_idwt2
from wavevit.ops.triton_support import use_kernels

Transform = Callable[[Tensor], Tensor]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
COLUMNS = ["threads", "allocator", "layout", "shape_bchw", "dtype", "transform", "relu"]
# wavevit_s at 224 px, stage 1; on a GPU a batch that no cache holds.
SHAPES = {"cpu": [8, 64, 56, 56], "cuda": [4096, 16, 56, 56]}


def make_convolution(x: Tensor, inverse: bool) -> Transform:
    """The usual way: four strided depthwise convolutions and a `cat`, or a transposed one."""
    signs = [[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]
    filters = (0.5 * torch.tensor(signs)).to(x).view(4, 1, 2, 2)
    if not inverse:
        C = x.shape[1]
        banks = [f[None].repeat(C, 1, 1, 1) for f in filters]
        return lambda x: torch.cat([F.conv2d(x, f, stride=2, groups=C) for f in banks], 1)
    C = x.shape[1] // 4
    filters = filters.repeat(C, 1, 1, 1)

    def transposed(y: Tensor) -> Tensor:
        # A group's four bands side by side: a copy.
        y = y.unflatten(1, (4, C)).transpose(1, 2).flatten(1, 2)
        return F.conv_transpose2d(y, filters, stride=2, groups=C)

    return transposed


def slices(x: Tensor) -> Tensor:
    """The plain expression on four strided views; x is (B, C, H, W)."""
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    bands = (a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d)
    return torch.cat(bands, 1) * 0.5


def pyramid(x: Tensor) -> Tensor:
    """`dwt2`, its bands left where they are; ll stands for them in the timings."""
    return dwt2(x)[0]


def make_ours(layout: str, inverse: bool, relu: bool) -> Transform:
    """The public function on (B, C, H, W) in one of the layouts."""
    function = haar_idwt2 if inverse else haar_dwt2
    if layout == "NCHW":
        return lambda x: function(x, relu=relu)
    return lambda x: function(x.permute(0, 2, 3, 1), True, relu=relu).permute(0, 3, 1, 2)


def make_peers(x: Tensor, layout: str, args: argparse.Namespace) -> dict[str, dict[str, Callable]]:
    """Forward, backward and both of every peer."""
    convolution = make_convolution(x, args.inverse)
    ours = make_ours(layout, args.inverse, args.relu)
    plain: dict[str, Transform] = {"conv": convolution}
    if not args.inverse:
        plain["slices"] = slices
    peers = {
        name: (lambda x, run=run: run(F.relu(x))) if args.relu else run
        for name, run in plain.items()
    }
    on_gpu = args.device == "cuda" and layout == "NHWC"
    if on_gpu:

        def buffers(x: Tensor) -> Tensor:
            with use_kernels(False):
                return ours(x)

        peers |= {"buffers": buffers, "compiled": torch.compile(ours, dynamic=False)}
    name = "haar_idwt2" if args.inverse else "haar_dwt2"
    peers[name] = ours
    expected = peers["conv"](x)
    for peer, run in peers.items():
        torch.testing.assert_close(
            run(x), expected, rtol=2e-2, atol=2e-2, msg=lambda m, peer=peer: f"{peer}: {m}"
        )
    cases = {peer: make_cases(run, [x]) for peer, run in peers.items()}
    if not args.inverse and not args.relu:
        cases["dwt2"] = {"forward": make_cases(pyramid, [x])["forward"]}  # ll is not all of it
    if on_gpu and args.sweep:
        cases |= sweep(cases[name])
    return cases


def sweep(case: dict[str, Callable]) -> dict[str, dict[str, Callable]]:
    """The kernels' case with other launch constants."""
    from wavevit.ops import haar_triton

    return {
        f"tile {tile}, {warps} warps": {
            what: with_constants(haar_triton, {"TILE": tile, "NUM_WARPS": warps}, call)
            for what, call in case.items()
        }
        for tile, warps in ((512, 2), (1024, 2), (1024, 8), (2048, 4), (2048, 8))
    }


def keep_memory() -> None:
    """Stops glibc from returning freed tensors to the system."""
    libc = ctypes.CDLL("libc.so.6")
    if not (libc.mallopt(M_MMAP_THRESHOLD, 1 << 30) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)):
        raise SystemExit("this C library does not take mallopt; leave out --allocator keep")


def main() -> None:
    """Runs the comparison and prints, or appends, one row per timing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_options(parser)
    parser.add_argument("--shape", type=int, nargs=4, metavar="N", help="B C H W, H and W even")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--layouts", nargs="+", default=["NCHW", "NHWC"], choices=["NCHW", "NHWC"])
    parser.add_argument("--inverse", action="store_true", help="the inverse transform, to B C H W")
    parser.add_argument("--relu", action="store_true", help="of the ReLU of the input")
    parser.add_argument("--allocator", default="default", choices=["default", "keep"])
    args = parser.parse_args()
    prepare(args, parser, COLUMNS)
    if args.allocator == "keep":
        keep_memory()
    B, C, H, W = args.shape or SHAPES[args.device]
    shape = (B, 4 * C, H // 2, W // 2) if args.inverse else (B, C, H, W)
    for layout in args.layouts:
        x = torch.randn(shape, device=args.device, dtype=getattr(torch, args.dtype))
        if layout == "NHWC":
            x = x.contiguous(memory_format=torch.channels_last)
        one = x.numel() * x.element_size()
        back = one * (3 if args.relu else 2)  # ReLU's derivative needs the input
        described = (args.threads, args.allocator, layout, "x".join(map(str, (B, C, H, W))))
        kind = (args.dtype, "idwt" if args.inverse else "dwt", args.relu)
        compare(
            make_peers(x, layout, args),
            {"forward": 2 * one, "backward": back, "both": 2 * one + back},
            dict(zip(COLUMNS, (*described, *kind), strict=True)),
            args,
        )


if __name__ == "__main__":
    main()
