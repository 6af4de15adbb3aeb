"""The operations that a network executes, noted while it runs on tensors without data.

Legend: B batch, C channels, H W rows and columns, h heads, N tokens, d channels per head.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry

BATCH = 2
"""Images of the traced batch: at one, a copy that changes the order of memory may be a view."""

ATTENTION = "attention"
DEPTHWISE = "depthwise convolution"
CONVOLUTION = "convolution"
MATMUL = "matrix product"
LAYER_NORM = "LayerNorm"
BATCH_NORM = "BatchNorm"
ACTIVATION = "activation"
SOFTMAX = "softmax"
ELEMENTWISE = "addition and scaling"
COPY = "copy"
REDUCTION = "pooling and sums"

_FAMILIES = (
    (re.compile(r"^(mm|addmm|bmm|baddbmm|dot|mv|addmv)$"), MATMUL),
    (re.compile(r"layer_norm"), LAYER_NORM),
    (re.compile(r"batch_norm|group_norm"), BATCH_NORM),
    (re.compile(r"softmax"), SOFTMAX),
    (re.compile(r"^(gelu|relu|silu|hardswish|sigmoid|tanh|leaky_relu|threshold_b)"), ACTIVATION),
    (re.compile(r"^(sum|mean|amax|max|var|std)|pool|argmax"), REDUCTION),
    (re.compile(r"^(clone|copy|cat|stack|roll|index|gather|repeat|_to_copy|to_|flip|pad)"), COPY),
    (re.compile(r"pad|fill|zeros|ones|full|scatter|slice_b|select_b"), COPY),
)


class Footprint(NamedTuple):
    """The memory that a tensor covers, the same for all views of the same elements."""

    storage: int
    offset: int
    layout: tuple[tuple[int, int], ...]
    """(stride, size) of its dimensions, merged and ordered."""
    numel: int
    itemsize: int
    """Bytes of an element; 0 for the precision that is asked for."""


@dataclass(frozen=True)
class Op:
    """One executed operation.

    Attributes:
        name: ATen's, such as "addmm".
        family: What it is, such as "matrix product".
        module: Qualified name of the module that runs it; "" outside of modules and in a backward
            pass.
        flops: Of the whole traced batch.
        reads: Memory it reads.
        writes: Memory it writes.
    """

    name: str
    family: str
    module: str
    flops: int
    reads: tuple[Footprint, ...]
    writes: tuple[Footprint, ...]


@dataclass(frozen=True)
class Trace:
    """What a batch of `BATCH` images made a network execute.

    Attributes:
        ops: In order.
        per_batch: Storages of the same size for every batch: parameters and what depends on them
            alone, and the parameters' gradients.
    """

    ops: list[Op]
    per_batch: frozenset[int]


def trace_operations(model: nn.Module, size: Sequence[int], *, training: bool = False) -> Trace:
    """Runs a network on a batch of fake images and notes its operations.

    Args:
        model: As for `count`.
        size: (C, H, W).
        training: Forward and backward pass instead of evaluation.

    Raises:
        ValueError: The network's path depends on the values of a tensor.
    """
    with ExitStack() as stack:
        stack.enter_context(_in_mode(model, training))
        stack.enter_context(FakeTensorMode())
        step = _Step(model)
        state = {name: _fake(value) for name, value in step.named_parameters()}
        buffers = {name: _fake(value) for name, value in step.named_buffers()}
        images = torch.empty(BATCH, *size)
        recorder = _Recorder(images)
        stack.enter_context(torch.set_grad_enabled(training))
        stack.enter_context(_module_names(model, recorder))
        stack.enter_context(recorder)
        stack.enter_context(_AttentionAsOne(recorder))
        try:
            torch.func.functional_call(step, {**state, **buffers}, (images,))
        except DataDependentOutputException as error:
            raise ValueError(
                f"cannot count a {type(model).__name__} with training={training}: its path "
                f"depends on the values of a tensor ({error.func}); count it with training="
                f"{not training}"
            ) from error
        gradients = (value.grad for value in state.values() if value.grad is not None)
        per_batch = recorder.independent | {recorder.storage(grad) for grad in gradients}
    return Trace(recorder.ops, frozenset(per_batch))


class _Step(nn.Module):
    """Forward and, in training, backward pass of a network, which share its replaced weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, images: Tensor) -> None:
        output = self.model(images)
        if self.training:
            results = [x for x in _tensors(output) if x.requires_grad]
            # What `torch.autograd.backward` calls: that itself switches function modes off, and
            # checkpointed attention has to be recomputed in one.
            torch.autograd.Variable._execution_engine.run_backward(
                tuple(results),
                tuple(torch.ones_like(result) for result in results),
                False,
                False,
                (),
                allow_unreachable=True,
                accumulate_grad=True,
            )


@contextmanager
def _in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _fake(value: Tensor) -> Tensor:
    """A tensor without data, on the "CPU" whatever the device: paths are the eager ones."""
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return torch.empty_strided(
        value.size(), value.stride(), dtype=dtype, requires_grad=value.requires_grad
    )


class _Recorder(TorchDispatchMode):
    """Notes every operation that moves memory.

    Args:
        images: The batch; what depends on it grows with it.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self.module = ""
        self._storages: dict[int, tuple[int, Any]] = {}
        self._of_images = {self.storage(images)}

    @property
    def independent(self) -> set[int]:
        """Storages that do not depend on the images."""
        return {number for number, _ in self._storages.values()} - self._of_images

    def storage(self, tensor: Tensor) -> int:
        """A number for the tensor's storage, which stays alive so that no other gets it."""
        storage = tensor.untyped_storage()
        return self._storages.setdefault(storage._cdata, (len(self._storages), storage))[0]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = _tensors(result)
        if not outputs or func.namespace != "aten":
            return result
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        name = func._schema.name.removeprefix("aten::")
        inputs, changed = [], []
        for argument in func._schema.arguments:
            tensors = _tensors(given.get(argument.name))
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            if is_written:
                changed += tensors
            if not is_written or not (argument.kwarg_only or name in _OVERWRITING):
                inputs += tensors
        known = {self.storage(tensor) for tensor in inputs + changed}
        fresh = [out for out in outputs if self.storage(out) not in known]
        if "empty" not in name and (changed or fresh):
            self.note(
                name,
                _family(name, func, args),
                _flops(func, args, kwargs, result),
                inputs,
                changed + fresh,
            )
        return result

    def note(
        self,
        name: str,
        family: str,
        flops: int,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
    ) -> None:
        """Adds an operation.

        Args:
            name: Of the operation.
            family: Of the operation.
            flops: Of the operation.
            inputs: Tensors it reads.
            outputs: Tensors it writes.
        """
        reads, writes = (
            tuple(dict.fromkeys(self._footprint(tensor) for tensor in tensors if tensor.numel()))
            for tensors in (inputs, outputs)
        )
        if any(footprint.storage in self._of_images for footprint in reads):
            self._of_images |= {footprint.storage for footprint in writes}
        self.ops.append(Op(name, family, self.module, flops, reads, writes))

    def _footprint(self, tensor: Tensor) -> Footprint:
        dims: list[tuple[int, int]] = []
        pairs = zip(tensor.stride(), tensor.shape, strict=True)
        for stride, size in sorted(
            (pair for pair in pairs if pair[1] > 1 and pair[0]), reverse=True
        ):
            if dims and dims[-1][0] == stride * size:
                dims[-1] = (stride, dims[-1][1] * size)
            else:
                dims.append((stride, size))
        numel = math.prod(size for _, size in dims)
        itemsize = 0 if tensor.is_floating_point() else tensor.element_size()
        offset = int(tensor.storage_offset())
        return Footprint(self.storage(tensor), offset, tuple(dims), numel, itemsize)


_OVERWRITING = frozenset({"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_"})


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _family(name: str, func: Any, args: Sequence[Any]) -> str:
    if "conv" in name:
        weight = args[2 if "backward" in name else 1]
        return DEPTHWISE if weight.shape[1] == 1 and weight.shape[0] > 1 else CONVOLUTION
    for pattern, family in _FAMILIES:
        if pattern.search(name):
            return family
    return ELEMENTWISE if torch.Tag.pointwise in func.tags else COPY


def _flops(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    packet = func._overloadpacket
    if packet is torch.ops.aten.convolution_backward:
        # PyTorch's own formula leaves groups out. Each gradient costs what the convolution does.
        grad, image, weight, *_, transposed, _, _, wanted = args
        forward = conv_flop_count(image.shape, weight.shape, grad.shape, transposed)
        return forward * sum(wanted[:2])
    formula = flop_registry.get(packet)
    return int(formula(*args, **kwargs, out_val=result)) if formula else 0


class _AttentionAsOne(TorchFunctionMode):
    """Makes `scaled_dot_product_attention` one operation, on any PyTorch, masked or not."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask")
        given = dict(zip(names, args, strict=False)) | kwargs
        q, k, v, mask = (given.get(name) for name in names)
        return _OneAttention.apply(self.recorder, q, k, v, mask)


class _OneAttention(torch.autograd.Function):
    """Notes what a flash-type kernel moves; its backward pass computes the scores again."""

    @staticmethod
    def forward(
        ctx: Any, recorder: _Recorder, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> Tensor:
        # Kernels write (B, N, h, d) memory, so that merging the heads is a view.
        out = q.new_empty(*q.shape[:-3], q.shape[-2], q.shape[-3], v.shape[-1]).transpose(-3, -2)
        log_sum = q.new_empty(q.shape[:-1])
        ctx.recorder = recorder
        ctx.products = 2 * q.shape[:-1].numel() * k.shape[-2]  # FLOPs per channel of a head
        ctx.save_for_backward(q, k, v, mask)
        ctx.results = (out.detach(), log_sum)  # the result itself would hold what made it
        flops = ctx.products * (q.shape[-1] + v.shape[-1])
        recorder.note("attention", ATTENTION, flops, _tensors([q, k, v, mask]), [out, log_sum])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, mask = ctx.saved_tensors
        needed = zip((q, k, v, mask), ctx.needs_input_grad[1:], strict=True)
        grads = [torch.empty_like(x) if x is not None and need else None for x, need in needed]
        flops = ctx.products * (3 * q.shape[-1] + 2 * v.shape[-1])
        inputs = _tensors([q, k, v, mask, *ctx.results, grad])
        ctx.recorder.note("attention_backward", ATTENTION, flops, inputs, _tensors(grads))
        return None, *grads


@contextmanager
def _module_names(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Inside, the recorder knows the innermost module that runs."""
    names = {module: name for name, module in model.named_modules()}
    outer: list[str] = []

    def enter(module: nn.Module, _: Any) -> None:
        outer.append(recorder.module)
        recorder.module = names.get(module, recorder.module)

    def leave(*_: Any) -> None:
        recorder.module = outer.pop()

    hooks = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
