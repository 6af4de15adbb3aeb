"""FLOPs and bytes per image, counted from the operations that a network executes.

The network runs once on fake tensors, which have shapes and no data, so that 1536 pixels cost no
more than 224, and every ATen operation is noted. What is counted is the least that a GPU must do
when each operation is one kernel:

- An operation reads each of its inputs and writes each of its outputs once, in the precision asked
  for. Views and allocations move nothing; a broadcast input is read at its own size.
- Attention through `scaled_dot_product_attention` is one kernel that reads queries, keys, values
  and a mask, and writes the result: scores never reach memory. Spelled out, it is what it is.
- A convolution adds its bias in the same pass. GELU, LayerNorm and BatchNorm are one pass each.
- FLOPs are those of matrix products, convolutions and attention: a multiplication and an addition
  are two.

`Count.activation_bytes` grows with the number of images; what does not (parameters, buffers, in
training the parameters' gradients) is `Count.parameter_bytes`, once per batch.

With ``fused`` the bytes are a floor for kernels that take neighbouring operations together,
`FUSIONS`: what one hands to the next stays in registers.

``wavevit_s`` at 224 pixels is 4.60 G multiply-adds, 4.62 with its auxiliary head, and moves 217 MB
of activations in 16 bit: 209 MB folded by `wavevit.fuse`, 205 MB with each Haar transform as one
operation too, 60 % of it in feed-forward networks. Depthwise convolutions with their GELU, and
residuals with LayerNorm, leave 163 MB, that is 29,000 images/s at 4.8 TB/s; all of `FUSIONS` leave
156 MB.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from wavevit.profiling.tracing import (
    ACTIVATION,
    BATCH,
    BATCH_NORM,
    DEPTHWISE,
    ELEMENTWISE,
    LAYER_NORM,
    Footprint,
    Op,
    Trace,
    trace_operations,
)

FUSIONS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "depthwise convolution, bias and GELU": (frozenset({DEPTHWISE}), frozenset({ACTIVATION})),
    "BatchNorm and ReLU": (frozenset({BATCH_NORM}), frozenset({ACTIVATION})),
    "residual and LayerNorm": (frozenset({ELEMENTWISE}), frozenset({LAYER_NORM})),
    "elementwise neighbours, such as the Haar transform behind its ReLU": (
        frozenset({ACTIVATION, ELEMENTWISE}),
        frozenset({ELEMENTWISE}),
    ),
}
"""Fused floor: families that may hand their result to these in registers."""


@dataclass(frozen=True)
class Count:
    """What a network does for one image.

    Attributes:
        flops: Of matrix products, convolutions and attention; two per multiply-add.
        activation_bytes: Read and written for each image.
        parameter_bytes: Read, and in training written, once per batch.
        by_group: Share of `activation_bytes` by family of operation, in [0, 1], largest first.
        flops_by_group: Share of `flops`, in the same way.
        by_module: Share of `activation_bytes` by qualified name of the module, "" in backward.
    """

    flops: float
    activation_bytes: float
    parameter_bytes: float
    by_group: Mapping[str, float]
    flops_by_group: Mapping[str, float]
    by_module: Mapping[str, float] = field(repr=False)

    def share(self, part: str) -> float:
        """Share of `activation_bytes` of the modules with a name, and all inside them.

        In training it is that of their forward pass alone.

        Args:
            part: A component of qualified names, such as "mlp" or "attn".
        """
        return sum(share for name, share in self.by_module.items() if part in name.split("."))


def count(
    model: nn.Module,
    image: Sequence[int] | Tensor,
    dtype_bytes: int = 2,
    *,
    fused: bool = False,
    training: bool = False,
) -> Count:
    """FLOPs and bytes of a network for one image; its weights are neither read nor changed.

    Args:
        model: Takes images (B, C, H, W); on any device, "meta" too, in any dtype.
        image: (C, H, W), or a tensor (..., C, H, W) of that size.
        dtype_bytes: Bytes of a floating-point number in memory.
        fused: Whether `FUSIONS` apply.
        training: Forward and backward pass instead of evaluation.

    Raises:
        ValueError: Not a size (C, H, W), or the network's path depends on the values of a tensor.
    """
    size = tuple(image.shape[-3:]) if isinstance(image, Tensor) else tuple(image)
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"expected the size (C, H, W) of an image, got {size}")
    trace = trace_operations(model, size, training=training)
    groups = _fused_groups(trace.ops) if fused else [[op] for op in trace.ops]
    return _summarise(trace, groups, dtype_bytes)


def _fused_groups(ops: Sequence[Op]) -> list[list[Op]]:
    """Operations that one kernel takes together.

    An operation joins the kernel of what it reads if `FUSIONS` allow, and if all else that it reads
    exists before that kernel starts.
    """
    groups: list[list[Op]] = []
    writer: dict[int, list[int]] = {}  # groups that have written a storage
    for op in ops:
        sources = sorted({g for read in op.reads for g in writer.get(read.storage, [])})
        home = sources[-1] if sources else None
        if home is None or not _may_join(groups[home], op):
            home = len(groups)
            groups.append([])
        groups[home].append(op)
        for write in op.writes:
            writer[write.storage] = [*writer.get(write.storage, []), home]
    return groups


def _may_join(group: Sequence[Op], op: Op) -> bool:
    writers = {write.storage: other.family for other in group for write in other.writes}
    givers = {writers[read.storage] for read in op.reads if read.storage in writers}
    return any(givers <= before and op.family in after for before, after in FUSIONS.values())


def _summarise(trace: Trace, groups: Sequence[Sequence[Op]], dtype_bytes: int) -> Count:
    per_image: Counter[str] = Counter()
    by_module: Counter[str] = Counter()
    per_batch = 0
    for op, footprint in _traffic(groups):
        size = footprint.numel * (footprint.itemsize or dtype_bytes)
        if footprint.storage in trace.per_batch:
            per_batch += size
        else:
            per_image[op.family] += size
            by_module[op.module] += size
    flops: Counter[str] = Counter()
    for op in trace.ops:
        flops[op.family] += op.flops
    return Count(
        sum(flops.values()) / BATCH,
        sum(per_image.values()) / BATCH,
        float(per_batch),
        _shares(per_image),
        _shares(flops),
        _shares(by_module),
    )


def _traffic(groups: Sequence[Sequence[Op]]) -> Iterator[tuple[Op, Footprint]]:
    """What each group reads from and writes to memory, once, with the operation that does it."""
    users: dict[int, set[int]] = {}
    for number, group in enumerate(groups):
        for op in group:
            for footprint in (*op.reads, *op.writes):
                users.setdefault(footprint.storage, set()).add(number)
    for group in groups:
        read: set[Footprint] = set()
        written: dict[Footprint, Op] = {}
        handed: set[int] = set()  # storages that one operation of the group hands to another
        for op in group:
            made = {footprint.storage for footprint in written}
            handed |= made & {footprint.storage for footprint in op.reads}
            for footprint in op.reads:
                if footprint.storage not in made and footprint not in read:
                    read.add(footprint)
                    yield op, footprint
            written |= dict.fromkeys(op.writes, op)
        for footprint, op in written.items():
            if footprint.storage not in handed or len(users[footprint.storage]) > 1:
                yield op, footprint


def _shares(amounts: Counter[str]) -> dict[str, float]:
    total = max(sum(amounts.values()), 1)
    return {name: amount / total for name, amount in amounts.most_common() if amount}
