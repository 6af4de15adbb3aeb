"""depthwise_gelu: the definition, the kernels against it, gradients, dtypes, and machine code.

Kernels run in Triton's interpreter, see conftest.py, unless they are only compiled or need a GPU.
"""

import importlib
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavevit.ops import depthwise_gelu as public
from wavevit.ops.depthwise_gelu import depthwise_gelu
from wavevit.ops.depthwise_gelu_reference import reference_depthwise_gelu

# Triton 3.9 says what 3.10 will not do unasked. The kernels spell it out.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
interpreted = pytest.mark.usefixtures("interpreter")
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# One pixel, one row, one column, strips that do and do not fill a row, several tiles of strips and
# of channels, few and odd channels, rows that are split over programs, nothing.
SHAPES = (
    (1, 1, 1, 1),
    (2, 1, 7, 3),
    (3, 2, 1, 16),
    (9, 2, 14, 16),
    (1, 5, 11, 70),
    (0, 4, 4, 8),
)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> list[Tensor]:
    """Tokens, weight and bias that want gradients."""
    C = shape[-1]
    made = [noise(*s, seed=i) for i, s in enumerate((shape, (C, 1, 3, 3), (C,)))]
    made[1] /= 2
    return [x.to(device, dtype).requires_grad_() for x in made]


def with_gradients(function, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """The result and its gradients for a fixed random gradient of the result."""
    result = function(*leaves)
    grad = noise(*result.shape, seed=9).to(result.device, result.dtype)
    return (result.detach(), *torch.autograd.grad(result, leaves, grad))


def kernel_module():
    return importlib.import_module("wavevit.ops.depthwise_gelu_triton")


# ---- The definition


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_is_a_convolution_and_gelu_to_the_bit(dtype: torch.dtype):
    conv = nn.Conv2d(12, 12, 3, padding=1, groups=12).to(dtype)
    tokens = noise(2, 5, 7, 12, dtype=dtype)
    expected = F.gelu(conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    for backend in (None, "reference"):
        found = depthwise_gelu(tokens, conv.weight, conv.bias, backend=backend)
        assert torch.equal(found, expected)


def test_a_filter_of_one_tap_moves_the_map():
    tokens, weight = noise(2, 4, 5, 3), torch.zeros(3, 1, 3, 3, dtype=torch.float64)
    weight[:, :, 0, 2] = 1  # the neighbour above and to the right
    found = depthwise_gelu(tokens, weight, None)
    expected = F.pad(F.gelu(tokens), (0, 0, 0, 1, 1, 0))[:, :-1, 1:]
    torch.testing.assert_close(found, expected)


def test_autocast_computes_in_its_dtype():
    tokens, weight, bias = (x.float() for x in inputs((1, 4, 4, 8)))
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_gelu(tokens, weight, bias.bfloat16()).dtype == torch.bfloat16


def test_exported_programs_hold_the_reference_for_any_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(public, "works_here", None)  # never asked

    class Layer(nn.Module):
        def forward(self, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return depthwise_gelu(tokens, weight, bias)

    example = tuple(x.detach() for x in inputs((2, 6, 8, 4), torch.float32))
    batch, height = torch.export.Dim("batch", min=1), torch.export.Dim("height", min=2)
    program = torch.export.export(
        Layer(), example, dynamic_shapes=({0: batch, 1: height}, None, None)
    )
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("wavevit" in target for target in targets)
    other = (noise(3, 9, 8, 4, dtype=torch.float32), *example[1:])
    torch.testing.assert_close(program.module()(*other), reference_depthwise_gelu(*other))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 4, 8), (8, 1, 3, 3), (8,)), r"tokens \(B, H, W, C\), got shape \(4, 4, 8\)"),
        (
            ((1, 8, 4, 4), (8, 1, 3, 3), (8,)),
            r"weight \(4, 1, 3, 3\) for tokens of 4 channels, got \(8, 1, 3, 3\)",
        ),
        (((1, 4, 4, 8), (8, 1, 3, 3), (4,)), r"bias \(8,\) for tokens of 8 channels, got \(4,\)"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(arguments, message: str):
    with pytest.raises(ValueError, match=message):
        depthwise_gelu(*(torch.zeros(shape) for shape in arguments))


def test_other_mistakes_are_refused():
    tokens, weight, bias = (x.float() for x in inputs((1, 4, 4, 8)))
    with pytest.raises(ValueError, match=r"weight of the tokens' dtype torch\.float32, got"):
        depthwise_gelu(tokens, weight.half(), bias)
    with pytest.raises(ValueError, match=r"bias on the tokens' device cpu, got meta"):
        depthwise_gelu(tokens, weight, bias.to("meta"))
    with pytest.raises(ValueError, match="triton backend needs a tensor on a CUDA device, got"):
        depthwise_gelu(tokens, weight, bias, backend="triton")
    with pytest.raises(ValueError, match="backends reference and triton, got 'cudnn'"):
        depthwise_gelu(tokens, weight, bias, backend="cudnn")


# ---- The kernels, interpreted


@interpreted
@pytest.mark.parametrize("has_bias", [True, False])
def test_kernels_equal_the_reference_in_float64(has_bias: bool):
    op = kernel_module().depthwise_gelu_op
    for shape in SHAPES:
        leaves = inputs(shape)[: 2 + has_bias]
        found = with_gradients(lambda x, w, b=None: op(x, w, b), leaves)
        expected = with_gradients(lambda x, w, b=None: reference_depthwise_gelu(x, w, b), leaves)
        for ours, theirs in zip(found, expected, strict=True):
            # Sums of at most 266 terms near 1.
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-11, msg=str(shape))
            assert ours.is_contiguous()


@interpreted
def test_every_way_to_launch_computes_the_same():
    module = kernel_module()
    leaves = inputs((1, 3, 5, 20), torch.float32)
    expected = with_gradients(reference_depthwise_gelu, leaves)
    # columns, strips, channels, rows: more and less than there are, and what does not divide them
    for way in ((1, 8, 32, 3), (2, 1, 32, 9), (8, 4, 16, 2), (5, 1, 64, 1)):
        launch = module.Launch(*way, num_warps=4)
        with mock.patch.object(module, "choose_launch", return_value=launch):
            found = with_gradients(module.depthwise_gelu_op, leaves)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5, msg=str(launch))


@interpreted
def test_gradients_are_those_of_finite_differences_to_second_order():
    op = kernel_module().depthwise_gelu_op
    leaves = inputs((1, 2, 2, 1))
    assert torch.autograd.gradcheck(op, leaves)
    assert torch.autograd.gradgradcheck(op, leaves, fast_mode=True)


@interpreted
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_the_gradients_that_are_wanted_are_computed(wanted: tuple[int, ...]):
    op = kernel_module().depthwise_gelu_op
    found, expected = [], []
    for function, results in ((op, found), (reference_depthwise_gelu, expected)):
        leaves = [x.requires_grad_(i in wanted) for i, x in enumerate(inputs((2, 3, 4, 3)))]
        result = function(*leaves)
        results += torch.autograd.grad(result.sum(), [leaves[i] for i in wanted])
    torch.testing.assert_close(found, expected)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_is_at_most_twice_as_far_from_the_truth_as_the_reference(dtype: torch.dtype):
    op = kernel_module().depthwise_gelu_op
    for scale in (0.3, 2.0):
        leaves = [(x.detach() * scale).requires_grad_() for x in inputs((8, 4, 4, 64), dtype)]
        truth = with_gradients(
            reference_depthwise_gelu, [x.detach().double().requires_grad_() for x in leaves]
        )
        found, rounded = (
            with_gradients(op, leaves),
            with_gradients(reference_depthwise_gelu, leaves),
        )
        for ours, theirs, right in zip(found, rounded, truth, strict=True):
            assert ours.dtype == dtype
            size = float(right.abs().max())
            # Our GELU is off by 1.5e-7 in 32 bit, and by 4e-5 of 16 bit's 2.4e-4 or 2e-3.
            floor = size * (5e-7 if dtype == torch.float32 else 1e-5)
            for norm in (2, float("inf")):
                error, allowed = ((x.double() - right).norm(norm) for x in (ours, theirs))
                assert error <= 2 * allowed + floor


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gelu_and_its_derivative_hold_everywhere(dtype: torch.dtype):
    """A filter of one tap leaves GELU alone: over its whole range, and where it ends."""
    module = kernel_module()
    C = 4096
    op, launch = module.depthwise_gelu_op, module.Launch(4, 1, C, 4, num_warps=4)
    weight = torch.zeros(C, 1, 3, 3, dtype=dtype)
    weight[:, :, 1, 1] = 1
    x = torch.linspace(-12, 12, 4 * C).to(dtype).view(1, 1, 4, C).requires_grad_()
    with mock.patch.object(module, "choose_launch", return_value=launch):
        found = with_gradients(lambda x: op(x, weight, None), [x])
    truth = with_gradients(F.gelu, [x.detach().double().requires_grad_()])
    grad = noise(*x.shape, seed=9).abs()
    bound = {torch.float32: 5e-7, torch.float16: 5e-4}[dtype]  # twice the rounding of either
    for ours, right, size in zip(found, truth, (1, grad), strict=True):
        error = (ours.double() - right).abs() / (right.abs() + size * 0.1)
        assert error.max() < 2 * bound
    limit = torch.finfo(dtype).max
    ends = torch.tensor([limit, -limit, float("inf"), float("nan")], dtype=dtype).view(1, 1, 1, 4)
    result = op(ends, weight[:4], None).flatten()
    assert torch.equal(result[:3], torch.tensor([limit, 0, float("inf")], dtype=dtype))
    assert result[3].isnan()


@interpreted
def test_inputs_of_any_strides_are_taken():
    op = kernel_module().depthwise_gelu_op
    tokens = noise(2, 8, 5, 6).permute(0, 2, 3, 1).requires_grad_()
    weight = noise(3, 3, 1, 8).permute(3, 2, 0, 1).requires_grad_()
    bias = noise(16)[::2].requires_grad_()
    leaves = [tokens, weight, bias]
    found, expected = with_gradients(op, leaves), with_gradients(reference_depthwise_gelu, leaves)
    torch.testing.assert_close(found, expected)
    expanded = torch.autograd.grad(op(*leaves).sum(), leaves)  # its gradient has strides of 0
    torch.testing.assert_close(
        expanded, torch.autograd.grad(reference_depthwise_gelu(*leaves).sum(), leaves)
    )


@interpreted
def test_operator_keeps_the_rules_for_operators():
    module = kernel_module()
    tokens, weight, bias = inputs((1, 2, 3, 2))
    # Tracing needs kernels that are not interpreted: see the compiled graph below.
    checks = ("test_schema", "test_autograd_registration")
    torch.library.opcheck(module.depthwise_gelu_op, (tokens, weight, bias), test_utils=checks)
    plain = [x.detach() for x in (tokens, tokens, weight, bias)]
    torch.library.opcheck(module.depthwise_gelu_backward_op, (*plain, True), test_utils=checks)
    torch.library.opcheck(module.depthwise_transposed_op, (*plain[1:3],), test_utils=checks)


@interpreted
def test_self_check_passes_here_and_finds_a_wrong_kernel():
    module = kernel_module()
    module.check_on(torch.device("cpu"))
    plan = module._plan

    def swap(*arguments, **flags):  # the convolution in place of its transpose
        return plan(*arguments, **{name: name != "FLIP" and on for name, on in flags.items()})

    with mock.patch.object(module, "_plan", swap), pytest.raises(AssertionError, match="not close"):
        module.check_on(torch.device("cpu"))


# ---- The kernels, compiled


def test_a_compiled_graph_holds_the_kernels(monkeypatch: pytest.MonkeyPatch):
    """Without breaks, forward and backward, with the shapes that the reference would give."""
    triton = pytest.importorskip("triton")
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from triton.backends.compiler import GPUTarget

    kernel_module()
    driver = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)  # asked what a kernel writes
    monkeypatch.setattr(public, "triton_applies", lambda x: True)
    monkeypatch.setattr(public, "works_here", lambda name, check, device: True)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, example: list[Tensor]):
        graphs.append(graph)
        (output,) = (node for node in graph.graph.nodes if node.op == "output")

        def run(*arguments: Tensor) -> list[Tensor | None]:
            made = [None if node is None else node.meta["val"] for node in output.args[0]]
            return [None if v is None else torch.zeros(v.shape, dtype=v.dtype) for v in made]

        return make_boxed_func(run)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    leaves = inputs((2, 5, 8, 16), torch.float32)
    torch._dynamo.reset()
    found = with_gradients(torch.compile(depthwise_gelu, fullgraph=True, backend=backend), leaves)
    for ours, theirs in zip(found, [leaves[0], *leaves], strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
    # What a kernel is not known to leave alone would be copied first.
    written = [
        sorted(
            node.kwargs["tensors_to_clone"]
            for node in graph.graph.nodes
            if "triton" in str(node.target)
        )
        for graph in graphs
    ]
    assert written == [[["y_ptr"]], [["d_ptr", "partial_ptr"], ["y_ptr"]]]


ARGUMENTS = {
    **dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "y_ptr", "g_ptr", "d_ptr"), "*{}:16"),
    "partial_ptr": "*fp32:16",
    **dict.fromkeys(("H", "W", "num_strips", "strips_per_row", "row_blocks", "rows"), "i32"),
}


@pytest.mark.parametrize("kernel", ["forward", "backward", "transposed"])
def test_launch_fits_the_shape(kernel: str):
    choose = kernel_module().choose_launch
    for B, H, W, C in ((256, 56, 56, 512), (256, 7, 7, 1792), (1, 56, 56, 512), (2, 1, 1, 1)):
        launch = choose(B, H, W, C, kernel)
        assert W % launch.columns == 0 or W == 1
        assert 1 <= launch.rows <= H
        assert launch.strips * launch.channels == 2 * 32 * launch.num_warps
    assert choose(256, 56, 56, 512, kernel).rows == 56, "a large batch reads no row twice"
    assert choose(1, 56, 56, 512, kernel).rows == 4, "a small one is spread over the GPU"


def compile_like_the_launcher(
    compile_ahead, kernel: str, shape: tuple[int, ...], dtype: torch.dtype, capability: int
):
    from wavevit.ops.depthwise_gelu_kernels_triton import backward_kernel, depthwise_kernel

    is_backward = kernel == "backward"
    flags = (
        {"BIAS": True, "SUMS": True}
        if is_backward
        else {"BIAS": kernel == "forward", "GELU": kernel == "forward", "FLIP": kernel != "forward"}
    )
    tokens = torch.empty(shape, dtype=dtype, device="meta")
    constants = kernel_module()._plan(tokens, kernel, **flags).constants
    warps = constants.pop("num_warps")
    function = backward_kernel if is_backward else depthwise_kernel
    short = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    arguments = {
        name: kind.format(short) for name, kind in ARGUMENTS.items() if name in function.arg_names
    }
    return compile_ahead(function, arguments, constants, capability, warps), constants


@pytest.mark.parametrize("kernel", ["forward", "transposed"])
def test_kernels_need_few_instructions_and_registers(compile_ahead, kernel: str):
    """Memory is the limit only below some 30 instructions per value, with 20 warps or more."""
    shape = (256, 56, 56, 512)
    code, constants = compile_like_the_launcher(compile_ahead, kernel, shape, torch.bfloat16, 90)
    assert code.spill_bytes == 0
    assert code.registers <= 96  # 65,536 of them for 20 warps
    # Rows are loaded at four places (two at first, in the loop, and at the end) and stored at two.
    # Two channels at once make 32 bits of a thread, a line of 128 bytes of a warp.
    columns = constants["K"]
    assert code.count("ld.global.b32") in (4 * (columns + 2), 4 * (columns + 2) + 1)  # the bias
    assert code.count("st.global.b32") == code.count("st.global") == 2 * columns
    # For each of two channels: taps of the first row 3, of the second 6, of the third 9, of the
    # last 3; and five for each GELU.
    gelu = 5 if kernel == "forward" else 0
    assert code.count("fma.rn.f32") == 2 * columns * (3 + 6 + 9 + 3 + 2 * gelu)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kernel", ["forward", "backward", "transposed"])
def test_no_kernel_spills_registers(
    compile_ahead, kernel: str, dtype: torch.dtype, capability: int
):
    for shape in ((256, 56, 56, 512), (8, 64, 64, 512), (5, 9, 11, 40)):
        code, _ = compile_like_the_launcher(compile_ahead, kernel, shape, dtype, capability)
        assert code.spill_bytes == 0, (shape, code.registers)


# ---- On a GPU


@gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_is_at_most_twice_as_far_from_the_truth_as_the_reference(dtype: torch.dtype):
    for shape in (*SHAPES, (4, 56, 56, 512), (4, 28, 28, 1024), (4, 14, 14, 1280), (4, 7, 7, 1792)):
        leaves = inputs(shape, dtype, "cuda")
        exact = [x.detach().double().requires_grad_() for x in leaves]
        truth = with_gradients(reference_depthwise_gelu, exact)
        found = with_gradients(lambda *x: depthwise_gelu(*x, backend="triton"), leaves)
        rounded = with_gradients(reference_depthwise_gelu, leaves)
        for ours, theirs, right in zip(found, rounded, truth, strict=True):
            if right.numel() == 0:
                continue
            floor = float(right.abs().max()) * (2e-6 if dtype == torch.float32 else 1e-4)
            error, allowed = (float((x.double() - right).abs().max()) for x in (ours, theirs))
            assert error <= 2 * allowed + floor, (shape, error, allowed)


@gpu
@needs_gpu
def test_gpu_takes_the_kernel_and_gives_the_same_bits_again():
    leaves = inputs((8, 28, 28, 1024), torch.bfloat16, "cuda")
    first = with_gradients(depthwise_gelu, leaves)
    named = with_gradients(lambda *x: depthwise_gelu(*x, backend="triton"), leaves)
    compiled = with_gradients(torch.compile(depthwise_gelu, fullgraph=True), leaves)
    for a, b, c in zip(first, named, compiled, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)


@gpu
@needs_gpu
def test_gpu_autocast_computes_in_its_dtype():
    leaves = inputs((2, 8, 8, 64), torch.float32, "cuda")
    with torch.autocast("cuda", torch.bfloat16):
        found = with_gradients(depthwise_gelu, leaves)
        expected = with_gradients(reference_depthwise_gelu, leaves)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


@gpu
@needs_gpu
def test_gpu_addresses_more_than_two_to_the_31_values():
    B, H, W, C = 1400, 56, 56, 512
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    tokens = torch.zeros(B, H, W, C, dtype=torch.bfloat16, device="cuda")
    tokens[-1] = noise(H, W, C).to(tokens)
    _, weight, bias = inputs((1, 1, 1, C), torch.bfloat16, "cuda")
    found = depthwise_gelu(tokens, weight, bias, backend="triton")[-1:]
    assert torch.equal(found, depthwise_gelu(tokens[-1:], weight, bias, backend="triton"))
