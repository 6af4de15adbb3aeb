"""Fully sharded data parallelism (FSDP2): which modules are sharded, and whole states of them.

A checkpoint always holds whole tensors, so that a run may go on with another strategy or another
number of processes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

_LEAST_PARAMETERS = 50_000  # smaller pieces cost more in messages than they save in memory


def shard(network: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shards the network's blocks one by one, and the rest as one piece.

    A block is an element of a list or sequence of modules that holds no such block itself: stages
    are left whole, since networks call into them past their forward.

    Args:
        network: Changed in place.
        mesh: The processes to shard over.
    """
    sharded: set[nn.Module] = set()
    for parent in reversed(list(network.modules())):  # inner ones first
        if not isinstance(parent, nn.ModuleList | nn.Sequential):
            continue
        for block in parent:
            size = sum(parameter.numel() for parameter in block.parameters())
            if size >= _LEAST_PARAMETERS and sharded.isdisjoint(block.modules()):
                fully_shard(block, mesh=mesh)
                sharded.add(block)
    fully_shard(network, mesh=mesh)
    return network


def whole(state: Any, *, keep: bool) -> Any:
    """The state with every sharded tensor put together; to be called on every process.

    One tensor at a time is whole on the device: it goes to the CPU before the next one comes.

    Args:
        state: Dictionaries and lists of tensors and plain values.
        keep: False on the processes that have no use for it: theirs has None for such tensors.
    """
    if isinstance(state, dict):
        return {key: whole(value, keep=keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole(value, keep=keep) for value in state)
    if isinstance(state, DTensor):
        complete = state.full_tensor()
        return complete.cpu() if keep else None
    return state


def load_whole(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads whole tensors into a network, sharded or not.

    Args:
        network: The network.
        state: Every name of its state.
    """
    own = network.state_dict()
    network.load_state_dict({name: _like(value, own.get(name)) for name, value in state.items()})


def load_whole_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Loads a state of whole tensors into an optimizer of a network, sharded or not.

    Args:
        optimizer: The optimizer.
        state: As its ``state_dict`` gives it, with whole tensors.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    parameter_of = dict(zip(indices, parameters, strict=True))
    placed = {
        index: {
            key: _like(value, parameter_of[index]) if _is_per_weight(value) else value
            for key, value in entries.items()
        }
        for index, entries in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": placed})


def _is_per_weight(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _like(value: Tensor, own: Tensor | None) -> Tensor:
    if not isinstance(own, DTensor):
        return value
    placed = value.to(own.device, own.dtype)
    return distribute_tensor(placed, own.device_mesh, own.placements)


def number(value: Tensor | float) -> float:
    """A number out of a scalar, sharded or not.

    Args:
        value: One number.
    """
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return float(value.item() if isinstance(value, torch.Tensor) else value)
