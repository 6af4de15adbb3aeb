"""The Haar kernels: the bits of the reference, gradients, dtypes, and their machine code.

Most run in Triton's interpreter, see conftest.py.
"""

import math
import warnings

import pytest
import torch
from torch import Tensor

from wavevit.ops import haar, haar_dwt2, haar_idwt2
from wavevit.ops.dwt_reference import reference_dwt2
from wavevit.ops.triton_support import is_transformed

interpreted = pytest.mark.usefixtures("interpreter")
# Leading dimensions, rows, columns, channels: one pixel of the bands, odd channels, a row's end
# inside a program, several programs, channels past one block, nothing at all.
SHAPES = ((2, 4, 6, 3), (1, 2, 2, 1), (3, 2, 14, 16), (2, 6, 44, 24), (2, 4, 130), (0, 4, 4, 8))
DTYPES = (torch.float64, torch.float32, torch.float16)


def image(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(0), dtype=torch.float64).to(dtype)


def bands_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    *lead, H, W, C = shape
    return (*lead, H // 2, W // 2, 4 * C)


@interpreted
@pytest.mark.parametrize("relu", [False, True])
def test_kernels_compute_the_bits_of_the_reference(relu: bool):
    from wavevit.ops.haar_triton import haar_dwt, haar_idwt

    for shape in SHAPES:
        for dtype in DTYPES:
            x, y = image(*shape, dtype=dtype), image(*bands_of(shape), dtype=dtype)
            bands = haar.analyse(x, True, relu).flatten(-2)
            back = haar.synthesise(y.unflatten(-1, (4, -1)), True, relu)
            assert torch.equal(haar_dwt(x, relu, None), bands), (shape, dtype)
            assert torch.equal(haar_idwt(y, relu, None), back), (shape, dtype)


@interpreted
def test_bands_equal_the_definition():
    from wavevit.ops.haar_triton import haar_dwt, haar_idwt

    x = image(2, 6, 10, 5)
    ll, details = reference_dwt2(x.permute(0, 3, 1, 2))
    expected = torch.cat((ll, *details), 1).permute(0, 2, 3, 1)
    bands = haar_dwt(x, False, None)
    torch.testing.assert_close(bands, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(haar_idwt(bands, False, None), x, rtol=1e-12, atol=1e-12)


@interpreted
def test_bfloat16_is_rounded_once():
    from wavevit.ops.haar_triton import haar_dwt, haar_idwt

    # The interpreter cuts bfloat16 off where a GPU rounds: up to one unit in the last place.
    eps = torch.finfo(torch.bfloat16).eps
    for kernel, shape in ((haar_dwt, (2, 4, 6, 8)), (haar_idwt, (2, 2, 3, 32))):
        x = image(*shape, dtype=torch.bfloat16)
        found, exact = kernel(x, True, None), kernel(x.double(), True, None)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact, rtol=eps, atol=1e-7)


@interpreted
@pytest.mark.parametrize("relu", [False, True])
def test_first_and_second_derivatives(relu: bool):
    from wavevit.ops.haar_triton import haar_dwt, haar_idwt

    for kernel, shape in ((haar_dwt, (1, 2, 4, 1)), (haar_idwt, (1, 1, 2, 4))):
        x = image(*shape).requires_grad_()

        def run(x: Tensor, kernel=kernel) -> Tensor:
            return kernel(x, relu, None)

        assert torch.autograd.gradcheck(run, x)
        assert torch.autograd.gradgradcheck(run, x, fast_mode=True)


@interpreted
def test_gradient_with_relu_equals_that_of_the_reference_at_zero_and_not_a_number():
    from wavevit.ops.haar_triton import haar_dwt, haar_idwt

    def analyse(x: Tensor) -> Tensor:
        return haar.analyse(x.relu(), True).flatten(-2)

    def synthesise(y: Tensor) -> Tensor:
        return haar.synthesise(y.relu().unflatten(-1, (4, -1)), True)

    for kernel, reference, shape in (
        (haar_dwt, analyse, (2, 4, 6, 4)),
        (haar_idwt, synthesise, (2, 2, 3, 16)),
    ):
        x = image(*shape, dtype=torch.float32)
        x[0, 0, 0, 0], x[0, 1, 1] = -0.0, 0.0
        x[1, 0, 0, 0] = math.nan
        x.requires_grad_()
        found, expected = kernel(x, True, None), reference(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        grad = image(*found.shape, dtype=torch.float32)
        gradients = (torch.autograd.grad(y, x, grad)[0] for y in (found, expected))
        torch.testing.assert_close(*gradients, rtol=0, atol=0)


@interpreted
def test_memory_in_another_order_gives_the_same_and_stays_as_it_was():
    from wavevit.ops.haar_triton import haar_dwt, haar_idwt

    x = image(2, 4, 6, 8, dtype=torch.float32)
    views = (
        x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
        torch.cat((x, x), -1)[..., 8:],
        torch.cat((x, x), 2)[:, :, :6],
    )
    expected = haar_dwt(x, True, None)
    for view in views:
        assert not view.is_contiguous()
        before = view.clone()
        assert torch.equal(haar_dwt(view, True, None), expected)
        assert torch.equal(view, before)
        gradient = torch.autograd.grad(
            haar_dwt(view.requires_grad_(), True, None), view, expected.mT.contiguous().mT
        )[0]
        assert torch.equal(gradient, haar_idwt(expected, False, x))


@interpreted
def test_operators_are_registered_as_pytorch_wants_them():
    from wavevit.ops.haar_triton import haar_dwt, haar_idwt

    # Its other checks trace through the kernel, which an interpreted one does not allow.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for operator, shape, gate in (
        (haar_dwt, (2, 4, 2, 3), (2, 2, 1, 12)),
        (haar_idwt, (2, 2, 1, 12), (2, 4, 2, 3)),
    ):
        x = image(*shape, dtype=torch.float32).requires_grad_()
        torch.library.opcheck(operator, (x, True, None), test_utils=checks)
        torch.library.opcheck(operator, (x, False, image(*gate)), test_utils=checks)


@interpreted
def test_self_check_passes_and_sees_a_wrong_kernel():
    from wavevit.ops import haar_triton

    haar_triton.check_on(torch.device("cpu"))
    right = haar_triton.haar_idwt
    try:
        haar_triton.haar_idwt = lambda y, relu, gate: right(y, relu, gate) + 0.1
        with pytest.raises(AssertionError, match="not close"):
            haar_triton.check_on(torch.device("cpu"))
    finally:
        haar_triton.haar_idwt = right


@interpreted
def test_public_functions_take_the_kernel_where_it_applies():
    # On a CPU nothing applies: here the interpreter stands in for the GPU.
    from wavevit.ops import haar_triton

    calls = []

    def counted(kernel):
        return lambda *arguments: calls.append(kernel) or kernel(*arguments)

    kept = haar.triton_applies, haar_triton.haar_dwt, haar_triton.haar_idwt
    last = image(2, 4, 6, 8, dtype=torch.float32)
    first = last.permute(0, 3, 1, 2)
    expected = haar_dwt2(last, True, relu=True)
    back = haar_idwt2(expected, True, relu=True)
    try:
        haar.triton_applies = lambda x: not is_transformed()
        haar_triton.haar_dwt, haar_triton.haar_idwt = map(counted, kept[1:])
        assert torch.equal(haar_dwt2(last, True, relu=True), expected)
        assert torch.equal(haar_idwt2(expected, True, relu=True), back)
        assert torch.equal(haar_dwt2(first, relu=True), expected.permute(0, 3, 1, 2))
        assert len(calls) > 3, "the self check's calls and ours"
        calls.clear()
        haar_dwt2(first.contiguous())
        torch.func.vmap(lambda x: haar_dwt2(x[None], True))(last)
        with warnings.catch_warnings():
            # torch's own forward mode sets itself up with a deprecated part of torch.
            warnings.filterwarnings("ignore", ".*torch.jit.script")
            torch.func.jvp(lambda x: haar_dwt2(x, True), (last,), (last,))
        assert not calls, "NCHW memory and transforms have ways of their own"
    finally:
        haar.triton_applies, haar_triton.haar_dwt, haar_triton.haar_idwt = kept


# ---- ReLU in the public functions, on any device


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", ["symmetric", "smooth", "antisymmetric"])
def test_relu_comes_before_the_transform(mode: str, channels_last: bool):
    for shape in ((2, 4, 6, 8), (2, 4, 3, 4), (2, 5, 4, 4) if channels_last else (2, 4, 4, 5)):
        x = image(*shape)
        before = x.clone()
        bands = haar_dwt2(x, channels_last, mode=mode, relu=True)
        assert torch.equal(bands, haar_dwt2(x.relu(), channels_last, mode=mode))
        assert torch.equal(
            haar_idwt2(x, channels_last, relu=True), haar_idwt2(x.relu(), channels_last)
        )
        assert torch.equal(x, before)


def test_relu_compiles_to_one_graph():
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: haar_idwt2(haar_dwt2(x, True, relu=True), True, relu=True),
        fullgraph=True,
        backend="aot_eager",
    )
    x = image(2, 4, 6, 2, dtype=torch.float32)
    torch.testing.assert_close(compiled(x), haar_idwt2(haar_dwt2(x.relu(), True).relu(), True))


# ---- Machine code


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "per_load"), [("bf16", 8), ("fp16", 8), ("fp32", 4)])
def test_kernels_compile_without_spills_to_16_byte_accesses(
    compile_ahead, capability: int, dtype: str, per_load: int
):
    from wavevit.ops.haar_triton import NUM_WARPS, analysis_kernel, launch_sizes, synthesis_kernel

    pointer = f"*{dtype}:16"
    for C in (16, 24):
        _, sizes = launch_sizes(256 * 28 * 28, C)
        warps = sizes.pop("num_warps")
        assert warps == NUM_WARPS
        per_thread = max(1, sizes["BLOCK_P"] * sizes["BLOCK_C"] // (32 * warps * per_load))
        for kernel, name, gated in (
            (analysis_kernel, "x_ptr", False),
            (synthesis_kernel, "y_ptr", True),
        ):
            arguments = {name: pointer, "out_ptr": pointer, "num_pixels": "i32:16", "width": "i32"}
            constants = {"RELU": not gated, **sizes}
            if gated:
                arguments["gate_ptr"] = pointer
            else:
                constants["gate_ptr"] = None
            code = compile_ahead(kernel, arguments, constants, capability, warps)
            assert code.spill_bytes == 0
            assert code.count("st.global.v4.b32") == code.count("st.global") == 4 * per_thread
            loads = 8 if gated else 4
            assert code.count("ld.global.v4.b32") == code.count("ld.global") == loads * per_thread


# ---- GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gpu_computes_the_bits_of_the_cpu(dtype: torch.dtype, relu: bool):
    for shape in SHAPES:
        x = image(*shape, dtype=dtype).requires_grad_()
        y = x.detach().cuda().requires_grad_()
        ours = haar.analyse(y, True, relu)
        kernel = ours.grad_fn.next_functions[0][0]  # below the view that names the bands
        assert type(kernel).__name__.startswith("GeneratedBackward"), "the kernel ran"
        ours, theirs = ours.flatten(-2), haar.analyse(x, True, relu).flatten(-2)
        assert torch.equal(ours.cpu(), theirs), shape
        grad = image(*theirs.shape, dtype=dtype)
        ours, theirs = (
            torch.autograd.grad(t, leaf, grad.to(t.device))[0]
            for t, leaf in ((ours, y), (theirs, x))
        )
        assert torch.equal(ours.cpu(), theirs), shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_addresses_more_than_two_to_the_31_values():
    shape = (33, 1024, 1024, 64)  # 2.2e9 values, 4.4 GB
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 20 GB of GPU memory")
    x = torch.ones(shape, dtype=torch.bfloat16, device="cuda")
    x[-1, -2:, -2:] = torch.arange(4.0, device="cuda").view(2, 2, 1)
    bands = haar_dwt2(x, True)
    assert bands[-1, -1, -1].view(4, 64)[:, -1].tolist() == [3, -2, -1, 0]
    assert bands[-1, -1, -2].view(4, 64)[:, -1].tolist() == [2, 0, 0, 0]
    assert torch.equal(haar_idwt2(bands, True)[-1, -2:], x[-1, -2:])
