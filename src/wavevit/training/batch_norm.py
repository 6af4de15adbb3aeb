"""What BatchNorm's statistics are with several processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from lightning_fabric import Fabric
from timm.layers import convert_sync_batchnorm
from timm.utils.distributed import distribute_bn
from torch import nn

from wavevit.layers.sync_batch_norm import convert_sync_batch_norm

BatchNormStatistics = Literal["local", "sync", "broadcast", "reduce"]


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with BatchNorms that take their statistics over all processes.

    Args:
        network: Changed in place.
        device: Where it will run.
    """
    if device.type == "cuda":  # torch's fused kernels, timm's handling of its own layers
        synchronised: nn.Module = convert_sync_batchnorm(network)
        return synchronised
    return convert_sync_batch_norm(network)


@contextmanager
def shared_statistics(
    fabric: Fabric, network: nn.Module, statistics: BatchNormStatistics
) -> Iterator[None]:
    """Inside, BatchNorm's running statistics are the same on every process.

    Args:
        fabric: The processes.
        network: To be evaluated or saved.
        statistics: "broadcast" puts those of process 0 in the place of all, "reduce" their mean;
            "local" does as "broadcast" but gives each process its own back afterwards. "sync"
            statistics are the same anyhow.

    Yields:
        Nothing.
    """
    if fabric.world_size == 1 or statistics == "sync":
        yield
        return
    own = {
        name: buffer.clone()
        for name, buffer in network.named_buffers()
        if statistics == "local" and buffer.is_floating_point()
    }
    distribute_bn(network, fabric.world_size, reduce=statistics == "reduce")
    try:
        yield
    finally:
        for name, buffer in network.named_buffers():
            if name in own:
                buffer.copy_(own[name])
