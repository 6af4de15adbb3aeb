"""Addition with LayerNorm: reference, kernels against it, gradients, dtypes, and machine code.

Most run in Triton's interpreter, see conftest.py.
"""

import importlib

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from wavevit.ops.add_layer_norm import add_layer_norm
from wavevit.ops.add_layer_norm_reference import reference_add_layer_norm
from wavevit.ops.triton_support import is_transformed

interpreted = pytest.mark.usefixtures("interpreter")
EPS = 1e-6
# One value, one token, odd channels, several programs, a warp's most channels and a block's, none.
SHAPES = ((1, 1), (8,), (2, 3, 5), (3, 9, 64), (3, 320), (2, 1000), (0, 4, 8))


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Residual, branch, weight, bias that want gradients."""
    shapes = (shape, shape, shape[-1:], shape[-1:])
    return [noise(*s, seed=i, dtype=dtype).requires_grad_() for i, s in enumerate(shapes)]


def gradients(outputs, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Those of a fixed random weighting of both outputs."""
    grads = [noise(*t.shape, seed=7 + i, dtype=t.dtype) for i, t in enumerate(outputs)]
    return torch.autograd.grad(outputs, leaves, grads)


def test_reference_is_the_expression_of_a_block_to_the_bit():
    for dtype in (torch.float32, torch.bfloat16):
        residual, branch, weight, bias = inputs((2, 3, 5, 8), dtype)
        summed, normed = add_layer_norm(residual, branch, weight, bias, EPS)
        assert torch.equal(summed, residual + branch)
        assert torch.equal(normed, F.layer_norm(residual + branch, (8,), weight, bias, EPS))
    summed, normed = add_layer_norm(residual.float(), branch, None, None, EPS)
    assert summed.dtype == normed.dtype == torch.float32


@interpreted
def test_kernels_equal_the_reference_in_float64():
    from wavevit.ops.add_layer_norm_triton import add_layer_norm_forward

    for shape in SHAPES:
        leaves = inputs(shape, torch.float64)
        found = add_layer_norm_forward(*leaves, EPS, torch.float64)[:2]
        expected = reference_add_layer_norm(*leaves, EPS)
        pairs = (found, expected), (gradients(found, leaves), gradients(expected, leaves))
        for ours, theirs in pairs:
            for a, b in zip(ours, theirs, strict=True):
                # A channel alone has variance 0: its sums are magnified by 1 / sqrt(eps).
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=str(shape))


@interpreted
@pytest.mark.parametrize("affine", ["both", "weight", "bias", "none"])
def test_every_gradient_with_and_without_weight_and_bias(affine: str):
    from wavevit.ops.add_layer_norm_triton import add_layer_norm_forward

    residual, branch, weight, bias = inputs((2, 3), torch.float64)
    weight = weight if affine in ("both", "weight") else None
    bias = bias if affine in ("both", "bias") else None
    leaves = [t for t in (residual, branch, weight, bias) if t is not None]

    def normed(*given: Tensor) -> tuple[Tensor, Tensor]:
        rest = list(given[2:])
        weights = [None if t is None else rest.pop(0) for t in (weight, bias)]
        return add_layer_norm_forward(*given[:2], *weights, EPS, torch.float64)[:2]

    assert torch.autograd.gradcheck(normed, leaves)
    if affine == "both":
        assert torch.autograd.gradgradcheck(normed, leaves, fast_mode=True)


@interpreted
@pytest.mark.parametrize("used", [0, 1])
def test_gradient_of_one_output_alone(used: int):
    from wavevit.ops.add_layer_norm_triton import add_layer_norm_forward

    leaves = inputs((4, 6), torch.float64)
    grads = [
        torch.autograd.grad(outputs[used].square().sum(), leaves, allow_unused=True)
        for outputs in (
            add_layer_norm_forward(*leaves, EPS, torch.float64),
            reference_add_layer_norm(*leaves, EPS),
        )
    ]
    torch.testing.assert_close(grads[0][:2], grads[1][:2])
    for ours, theirs in zip(grads[0][2:], grads[1][2:], strict=True):
        assert (ours is None) == (theirs is None) == (used == 0)
        if used:
            torch.testing.assert_close(ours, theirs)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_as_close_to_the_truth_as_the_reference(dtype: torch.dtype):
    from wavevit.ops.add_layer_norm_triton import add_layer_norm_forward

    leaves = inputs((6, 11, 96), dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    results = []
    for operation, given in (
        (lambda *x: add_layer_norm_forward(*x, dtype)[:2], leaves),
        (reference_add_layer_norm, leaves),
        (reference_add_layer_norm, exact),
    ):
        outputs = operation(*given, EPS)
        results.append((*outputs, *gradients(outputs, given)))
    # The interpreter cuts bfloat16 off where a GPU rounds: twice the error of each rounding.
    most = 2 if dtype == torch.float16 else 4
    for ours, theirs, truth in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        error, allowed = (
            (t.double() - truth).square().mean().sqrt().item() for t in (ours, theirs)
        )
        assert error <= most * allowed + 1e-7


@interpreted
def test_mixed_dtypes_as_under_autocast_equal_those_of_the_reference():
    from wavevit.ops.add_layer_norm_triton import add_layer_norm_forward

    residual, _, weight, bias = inputs((3, 5, 16), torch.float32)
    branch = inputs((3, 5, 16), torch.float16)[1]
    leaves = [residual, branch, weight, bias]
    found = add_layer_norm_forward(*leaves, EPS, torch.float32)[:2]
    expected = reference_add_layer_norm(*leaves, EPS)
    pairs = [*zip(found, expected, strict=True)]
    pairs += zip(gradients(found, leaves), gradients(expected, leaves), strict=True)
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    # Under CUDA autocast two 16-bit inputs have a float32 norm.
    low = inputs((3, 5, 16), torch.float16)
    summed, normed = add_layer_norm_forward(*low[:2], weight, bias, EPS, torch.float32)[:2]
    assert (summed.dtype, normed.dtype) == (torch.float16, torch.float32)
    expected = F.layer_norm(summed.float(), (16,), weight, bias, EPS)
    torch.testing.assert_close(normed, expected)
    for grad in torch.autograd.grad(normed.square().sum(), low[:2]):
        assert grad.dtype == torch.float16


@interpreted
def test_gradient_of_the_parameters_is_the_same_in_every_run_and_any_memory_order_is_taken():
    from wavevit.ops.add_layer_norm_triton import add_layer_norm_forward

    leaves = inputs((5, 40, 24), torch.float32)
    expected = add_layer_norm_forward(*leaves, EPS, torch.float32)[:2]
    strided = [
        leaves[0].detach().mT.contiguous().mT,
        torch.cat(2 * [leaves[1].detach()], -1)[..., 24:],
        leaves[2].detach().repeat_interleave(2)[::2],
        leaves[3].detach(),
    ]
    strided = [leaf.requires_grad_() for leaf in strided]
    found = add_layer_norm_forward(*strided, EPS, torch.float32)[:2]
    pairs = (found, expected), (gradients(found, strided), gradients(expected, leaves))
    for ours, theirs in pairs:
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@interpreted
def test_parameters_that_are_frozen_get_no_gradient_and_others_do():
    from wavevit.ops.add_layer_norm_triton import add_layer_norm_forward

    for frozen in ((0,), (2,), (3,), (2, 3)):
        leaves = inputs((4, 6), torch.float64)
        for index in frozen:
            leaves[index].requires_grad_(False)
        sum(
            t.sin().sum() for t in add_layer_norm_forward(*leaves, EPS, torch.float64)[:2]
        ).backward()
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        outputs = reference_add_layer_norm(*leaves, EPS)
        truth = torch.autograd.grad(sum(t.sin().sum() for t in outputs), wanted)
        assert [leaf.grad is None for leaf in leaves] == [i in frozen for i in range(4)]
        for leaf, grad in zip(wanted, truth, strict=True):
            torch.testing.assert_close(leaf.grad, grad)


@interpreted
def test_operators_are_registered_as_pytorch_wants_them():
    from wavevit.ops import add_layer_norm_triton as kernels

    # Its other checks trace through the kernel, which an interpreted one does not allow.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    leaves = inputs((2, 3, 8), torch.float32)
    results = torch.library.opcheck(
        kernels.add_layer_norm_forward, (*leaves, EPS, torch.float32), test_utils=checks
    )
    assert set(results.values()) == {"SUCCESS"}
    summed, normed, mean, rstd = (
        t.detach() for t in kernels.add_layer_norm_forward(*leaves, EPS, torch.float32)
    )
    for branch_dtype, affine in ((torch.float32, True), (torch.bfloat16, False)):
        torch.library.opcheck(
            kernels.add_layer_norm_backward,
            (
                *(None, normed, summed, mean, rstd, leaves[2].detach()),
                *(torch.float32, branch_dtype, affine),
            ),
            test_utils=("test_schema", "test_faketensor"),
        )


@interpreted
def test_self_check_passes_and_sees_a_wrong_kernel():
    from wavevit.ops import add_layer_norm_triton as kernels

    kernels.check_on(torch.device("cpu"))
    right = kernels.add_layer_norm_backward
    try:
        kernels.add_layer_norm_backward = lambda *x: tuple(2 * t for t in right(*x))
        with pytest.raises(AssertionError, match="not close"):
            kernels.check_on(torch.device("cpu"))
    finally:
        kernels.add_layer_norm_backward = right


@interpreted
def test_public_function_takes_the_kernel_where_it_applies():
    # On a CPU nothing applies: here the interpreter stands in for the GPU.
    from wavevit.ops import add_layer_norm_triton as kernels

    module = importlib.import_module(add_layer_norm.__module__)
    calls = []
    kept = module.triton_applies, module.why_not_triton, kernels.add_layer_norm_forward
    least = module.MIN_VALUES
    leaves = inputs((2, 3, 8), torch.float32)
    expected = add_layer_norm(*leaves, EPS)
    try:
        module.triton_applies = lambda x: not is_transformed()
        module.why_not_triton, module.MIN_VALUES = lambda x: None, 0
        kernels.add_layer_norm_forward = lambda *x: calls.append(x) or kept[2](*x)
        for backend, count in (("triton", 1), (None, 4), ("reference", 4)):
            for ours, theirs in zip(
                add_layer_norm(*leaves, EPS, backend=backend), expected, strict=True
            ):
                torch.testing.assert_close(ours, theirs)
            assert len(calls) == count, "the self check calls it twice"
        mapped = torch.func.vmap(lambda x: add_layer_norm(x, x, None, None, EPS)[1])(leaves[0])
        torch.testing.assert_close(mapped, F.layer_norm(2 * leaves[0], (8,), None, None, EPS))
        wide = noise(2, 2048, dtype=torch.float32)
        add_layer_norm(wide, wide, None, None, EPS)
        with pytest.raises(ValueError, match="1 to 1024 channels, got 2048"):
            add_layer_norm(wide, wide, None, None, EPS, backend="triton")
        with pytest.raises(ValueError, match=r"weight and bias in torch.float32, the sum's dtype"):
            add_layer_norm(*leaves[:2], leaves[2].half(), None, EPS, backend="triton")
        assert len(calls) == 4
    finally:
        module.triton_applies, module.why_not_triton, kernels.add_layer_norm_forward = kept
        module.MIN_VALUES = least


def test_mistakes_are_told():
    x = noise(2, 3, 8, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"one shape .* got \(2, 3, 8\) and \(3, 8\)"):
        add_layer_norm(x, x[0], None, None, EPS)
    with pytest.raises(ValueError, match=r"bias of shape \(8,\)"):
        add_layer_norm(x, x, None, x, EPS)
    with pytest.raises(ValueError, match='"reference", "triton" or None, got \'cuda\''):
        add_layer_norm(x, x, None, None, EPS, backend="cuda")
    with pytest.raises(ValueError, match=r'backend="triton": needs a tensor on a CUDA device'):
        add_layer_norm(x, x, None, None, EPS, backend="triton")


def test_compiles_to_one_graph():
    torch.compiler.reset()
    compiled = torch.compile(add_layer_norm, fullgraph=True, backend="aot_eager")
    leaves = inputs((2, 3, 8), torch.float32)
    for ours, theirs in zip(compiled(*leaves, EPS), add_layer_norm(*leaves, EPS), strict=True):
        torch.testing.assert_close(ours, theirs)


# ---- Machine code


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("residual", "branch"), [("bf16", "bf16"), ("fp32", "bf16")])
@pytest.mark.parametrize("channels", [64, 320])
def test_kernels_compile_without_spills_or_barriers_to_16_byte_accesses(
    compile_ahead, capability: int, residual: str, branch: str, channels: int
):
    from wavevit.ops.add_layer_norm_triton import backward_kernel, forward_kernel, launch_sizes

    sizes = launch_sizes(channels)
    warps = sizes.pop("num_warps")
    wide, narrow, statistics = f"*{residual}:16", f"*{branch}:16", "*fp32:16"
    shared = {
        "sum_ptr": wide,
        "weight_ptr": wide,
        "mean_ptr": statistics,
        "rstd_ptr": statistics,
        "num_tokens": "i32:16",
    }
    forward = shared | {
        "residual_ptr": wide,
        "branch_ptr": narrow,
        "bias_ptr": wide,
        "normed_ptr": wide,
        "eps": "fp32",
    }
    code = compile_ahead(forward_kernel, forward, sizes, capability, warps)
    # Of 64 channels the lanes read the parameters, and write their gradients, in another order than
    # they use them: one exchange each, outside the loop.
    few = 0 if channels == 320 else 2
    assert code.spill_bytes == 0
    assert code.count("bar.sync") <= few
    assert code.count("ld.global.v4.b32") >= code.count("ld.global") - few
    assert code.count("st.global.v4.b32") >= code.count("st.global") - 2, "all but the statistics"
    backward = shared | {
        "grad_sum_ptr": wide,
        "grad_normed_ptr": wide,
        "grad_residual_ptr": wide,
        "partial_ptr": statistics,
    }
    constants = dict(sizes)
    if residual == branch:
        constants["grad_branch_ptr"] = None
    else:
        backward["grad_branch_ptr"] = narrow
    code = compile_ahead(backward_kernel, backward, constants, capability, warps)
    assert code.spill_bytes == 0
    assert code.count("bar.sync") <= few
    assert code.count("ld.global.v4.b32") >= 6
    assert code.count("st.global.v4.b32") >= code.count("st.global") - few


# ---- GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gpu_kernel_is_as_close_to_the_truth_as_the_reference(dtype: torch.dtype):
    for shape in SHAPES:
        leaves = [leaf.detach().cuda().requires_grad_() for leaf in inputs(shape, dtype)]
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        results = []
        for backend, given in (("triton", leaves), ("reference", leaves), ("reference", exact)):
            outputs = add_layer_norm(*given, EPS, backend=backend)
            grads = [noise(*t.shape, seed=7 + i).to(t) for i, t in enumerate(outputs)]
            results.append((*outputs, *torch.autograd.grad(outputs, given, grads)))
        for ours, theirs, truth in zip(*results, strict=True):
            assert ours.dtype == theirs.dtype == dtype
            error, allowed = ((t.double() - truth).square().sum().sqrt() for t in (ours, theirs))
            # The floor: a rounding of the result or so.
            assert error <= 2 * allowed + torch.finfo(dtype).eps * truth.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_gpu_autocast_gives_the_dtypes_of_the_reference(low: torch.dtype):
    residual, branch, weight, bias = (t.detach().cuda() for t in inputs((6, 64), torch.float32))
    for first in (residual, residual.to(low)):
        leaves = [t.requires_grad_() for t in (first, branch.to(low), weight, bias)]
        with torch.autocast("cuda", dtype=low):
            found = add_layer_norm(*leaves, EPS, backend="triton")
            expected = add_layer_norm(*leaves, EPS, backend="reference")
        pairs = [*zip(found, expected, strict=True)]
        grads = [torch.ones_like(t).cumsum(-1) for t in expected]
        pairs += zip(
            torch.autograd.grad(found, leaves, grads),
            torch.autograd.grad(expected, leaves, grads),
            strict=True,
        )
        for ours, theirs in pairs:
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
