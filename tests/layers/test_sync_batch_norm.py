"""BatchNorm over several processes equals BatchNorm over their samples in one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from wavevit.layers.sync_batch_norm import SyncBatchNorm, convert_sync_batch_norm

C = 3
SIZES = (2, 1, 4)  # samples of each process
MAP = (5, 4)


def parts(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Each process's samples, with means far from 0, where naive variances lose their digits."""
    generator = torch.Generator().manual_seed(0)
    shift = torch.tensor([0.0, 1e3, -7.0]).reshape(1, C, 1, 1)
    return [
        (torch.randn(size, C, *MAP, generator=generator, dtype=torch.float64) + shift).to(dtype)
        for size in SIZES
    ]


def outcome(norm: nn.Module, x: Tensor, first: int) -> dict[str, Tensor]:
    """Everything a step makes of samples first.. of the whole batch."""
    x = x.requires_grad_()
    y = norm(x)
    weights = torch.linspace(-1, 1, sum(SIZES) * C * MAP[0] * MAP[1], dtype=torch.float64)
    weights = weights.reshape(-1, C, *MAP)[first : first + len(x)]
    (y.double() * weights).sum().backward()
    grads = {f"grad {name}": p.grad for name, p in norm.named_parameters()}
    return {"y": y.detach(), "grad x": x.grad, **grads, **dict(norm.named_buffers())}


def in_processes(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What the work returned in each of three forked processes of one group."""
    children = []
    for rank in range(len(SIZES)):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                store = dist.FileStore(str(folder / "store"), len(SIZES))
                dist.init_process_group("gloo", store=store, rank=rank, world_size=len(SIZES))
                torch.save(work(rank), folder / f"{rank}.pt")
                dist.barrier()  # nobody leaves while others still connect
                dist.destroy_process_group()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * len(SIZES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(SIZES))]


def make(kind: Callable[[], nn.Module]) -> nn.Module:
    norm = kind().double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.linspace(0.5, 2, C))
    return norm.train()


KINDS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.BatchNorm2d(C),
    "without affine": lambda: nn.BatchNorm2d(C, affine=False),
    "without statistics": lambda: nn.BatchNorm2d(C, track_running_stats=False),
    "cumulative": lambda: nn.BatchNorm2d(C, momentum=None),
    "with activation": lambda: BatchNormAct2d(C),
}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_gradients_and_statistics_equal_those_of_one_process(
    kind: str, tmp_path: Path
) -> None:
    whole = outcome(make(KINDS[kind]), torch.cat(parts()), 0)

    def work(rank: int) -> dict[str, Tensor]:
        norm = convert_sync_batch_norm(make(KINDS[kind]))
        return outcome(norm, parts()[rank], sum(SIZES[:rank]))

    shares = in_processes(work, tmp_path)
    for name, expected in whole.items():
        found = [share[name] for share in shares]
        if name in ("y", "grad x"):
            torch.testing.assert_close(torch.cat(found), expected, rtol=1e-9, atol=1e-9)
        elif name.startswith("grad"):  # DDP adds up what each process has
            torch.testing.assert_close(sum(found), expected, rtol=1e-9, atol=1e-9)
        else:
            for each in found:
                torch.testing.assert_close(each, expected, rtol=1e-9, atol=1e-12)


def test_gradients_are_right(tmp_path: Path) -> None:
    """gradcheck with the same samples in every process: they all move together."""

    def work(rank: int) -> bool:
        norm = convert_sync_batch_norm(make(KINDS["plain"]))
        x = torch.randn(2, C, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        return torch.autograd.gradcheck(norm, x.requires_grad_(), atol=1e-6)

    assert in_processes(work, tmp_path) == [True] * len(SIZES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_keeps_its_type_and_statistics_stay_exact(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    def work(rank: int) -> dict[str, Tensor]:
        norm = convert_sync_batch_norm(nn.BatchNorm2d(C)).train()
        x = parts(dtype)[rank].requires_grad_()
        y = norm(x)
        y.float().sum().backward()
        return {"y": y.detach(), "grad": x.grad, "mean": norm.running_mean}

    expected = torch.cat(parts(dtype)).double().mean((0, 2, 3)).float() * 0.1
    for share in in_processes(work, tmp_path):
        assert share["y"].dtype == share["grad"].dtype == dtype
        torch.testing.assert_close(share["mean"], expected, rtol=1e-5, atol=1e-5)


def test_one_process_and_evaluation_are_plain_batch_norm() -> None:
    x = torch.cat(parts())
    for training in (True, False):
        plain = make(KINDS["plain"]).train(training)
        synchronised = convert_sync_batch_norm(make(KINDS["plain"])).train(training)
        assert isinstance(synchronised, SyncBatchNorm)
        torch.testing.assert_close(synchronised(x), plain(x), rtol=0, atol=0)


def test_conversion_keeps_names_parameters_and_training_mode() -> None:
    network = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.Sequential(BatchNormAct2d(C)))
    network[1].eval()
    before = dict(network.named_parameters())
    names = list(network.state_dict())
    converted = convert_sync_batch_norm(network)
    assert list(converted.state_dict()) == names
    assert all(parameter is before[name] for name, parameter in converted.named_parameters())
    norms = [m for m in converted.modules() if isinstance(m, SyncBatchNorm)]
    assert [norm.training for norm in norms] == [False, True]


def test_a_vector_is_refused(tmp_path: Path) -> None:
    def work(rank: int) -> str:
        try:
            convert_sync_batch_norm(nn.BatchNorm1d(C)).train()(torch.randn(C))
        except ValueError as error:
            return str(error)
        return ""

    assert "expected at least 2 dimensions" in in_processes(work, tmp_path)[0]
