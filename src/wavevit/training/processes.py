"""The processes of a run: how they find each other, what they agree on, how they fail together.

torchrun or SLURM starts the processes and tells each its place in the environment; Fabric reads
it. One process without either is a run of one.
"""

import inspect
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch.nn.parallel import DistributedDataParallel

from wavevit.training.sharding import shard

Precision = Literal["fp32", "bf16", "fp16", "bf16-true", "fp64"]

_FABRIC_PRECISION: dict[str, Any] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "bf16-true": "bf16-true",
    "fp64": "64-true",
}
# What gloo, NCCL and the store say when a process they wait for has gone or does not answer.
_LOST = re.compile(
    r"gloo|nccl|connection (?:was |is )?(?:closed|reset|refused)|broken pipe|timed? ?out",
    re.IGNORECASE,
)
_PORT_TAKEN = re.compile("address already in use|EADDRINUSE", re.IGNORECASE)
# Speaks of gloo or NCCL as well, but of how they were set up.
_WRONG_SET_UP = re.compile(r"unable to find (?:address|interface)|built in", re.IGNORECASE)

T = TypeVar("T")


class LostProcessError(RuntimeError):
    """Another process of the run has ended or does not answer."""

    is_breakdown = True  # how the command line knows it


class SharedError(ValueError):
    """A failure that every process of the run knows of."""


class EchoedError(SharedError):
    """Another process has failed and says why; this one has nothing to add."""

    is_echo = True


class EarlyStop(BaseException):
    """A signal came while there was nothing to save; no Exception, so that nobody swallows it."""


def launch_fabric(
    *, precision: Precision, accelerator: str, strategy: Literal["ddp", "fsdp"], timeout_s: float
) -> Fabric:
    """Joins the processes of the run, as torchrun's or SLURM's environment describes them.

    Args:
        precision: Number format of training.
        accelerator: "auto", "cpu", "cuda" or "mps".
        strategy: How several processes share the work; one process needs neither.
        timeout_s: Longest wait for another process, seconds.

    Raises:
        ValueError: No such device, or settings that do not go together.
        LostProcessError: The others did not come.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # not its banners
    devices, num_nodes = _launched()
    several = devices * num_nodes > 1
    if several and strategy == "fsdp" and precision in ("fp16", "fp64"):
        raise ValueError(
            f"trainer.strategy fsdp works with fp32, bf16 and bf16-true, not with {precision}; "
            "choose one of them, or ddp"
        )
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=_strategy(strategy, devices * num_nodes, timeout_s) if several else "auto",
            precision=_FABRIC_PRECISION[precision],
            plugins=None if several else LightningEnvironment(),  # no search for a cluster
        )
        with lost_processes_explained():
            fabric.launch()
    except MisconfigurationException as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"trainer.accelerator {accelerator!r}: {reason}") from error
    return fabric


def emulates(precision: Precision, device: torch.device) -> bool:
    """Whether the device has no instructions for that format, so that it is tens of times slower.

    Args:
        precision: Number format of training.
        device: Of the run.
    """
    if device.type != "cpu" or not precision.startswith("bf16"):
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _launched() -> tuple[int, int]:
    """Processes per machine and machines, as the launcher says.

    Raises:
        ValueError: Several processes were started in a way that they would not work together.
    """
    if TorchElasticEnvironment.detect():
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return local, int(os.environ["WORLD_SIZE"]) // local
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"the environment says WORLD_SIZE={os.environ['WORLD_SIZE']}, but neither torchrun nor "
            "srun started this process, so that each would train by itself: write `torchrun ... "
            "-m wavevit ...`, or unset WORLD_SIZE for one process"
        )
    tasks, nodes = (int(os.environ.get(f"SLURM_{name}", "1")) for name in ("NTASKS", "NNODES"))
    by_srun = "SLURM_STEP_ID" in os.environ
    job_name = os.environ.get("SLURM_JOB_NAME")
    is_shell = job_name in ("bash", "interactive")  # which Fabric never takes for a run
    if tasks == 1 or (is_shell and not by_srun):
        return 1, 1
    if not by_srun:
        raise ValueError(
            f"SLURM has {tasks} tasks for this job, but srun did not start this command: write "
            "`srun wavevit ...`, or `srun --ntasks 1 wavevit ...` for one process"
        )
    if is_shell:
        raise ValueError(
            f"srun started {tasks} processes in a job named {job_name!r}, where each would train "
            "by itself; give it another name, as in `SLURM_JOB_NAME=wavevit srun ...`"
        )
    if tasks % nodes:
        raise ValueError(
            f"expected as many processes on every machine, got {tasks} on {nodes} machines; say "
            "--nodes and --ntasks-per-node"
        )
    # Fabric insists on this one, and srun leaves the whole job's in place, or sets none.
    os.environ["SLURM_NTASKS_PER_NODE"] = str(tasks // nodes)
    return tasks // nodes, nodes


def _strategy(name: Literal["ddp", "fsdp"], world_size: int, timeout_s: float) -> Strategy:
    timeout = timedelta(seconds=timeout_s)
    if name == "ddp":
        # BatchNorm statistics are exchanged where the run's own setting says, not at each forward.
        known = inspect.signature(DistributedDataParallel).parameters
        old, new = "broadcast_buffers", "forward_sync_buffers"  # renamed after torch 2.11
        # A depthwise kernel's gradient counts its axis of length 1 another way: the same memory.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DDPStrategy(
            timeout=timeout,
            gradient_as_bucket_view=True,
            **{new if new in known else old: False},
        )
    # Said at each step of a network that returns one; the objectives change no output in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return ModelParallelStrategy(
        lambda network, mesh: shard(network, mesh["data_parallel"]),
        data_parallel_size=world_size,
        tensor_parallel_size=1,
        timeout=timeout,
    )


def leave() -> None:
    """Ends this process's part in the group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def failures_shared(fabric: Fabric, folder: Path) -> Iterator[None]:
    """Inside, what ends one process ends the others with the same reason.

    The others wait for it in the middle of something, and learn from its going only that it has
    gone. So it leaves a note for them in a folder that all see; where they see different ones,
    they say that a process has gone.

    Args:
        fabric: The processes.
        folder: Exists.

    Raises:
        EchoedError: Another process has met a mistake of the user, and says it.
        EarlyStop: Another process was told to stop where there was nothing to save.
        LostProcessError: Another process has broken down.
    """
    if fabric.world_size == 1:
        yield
        return
    note = folder / ".failure.json"
    # Room for a note, which a full disk would have no more; and a mark that tells it from others'.
    on_first(fabric, lambda: note.write_bytes(b" " * _NOTE_BYTES))
    mark = fabric.broadcast(os.urandom(8).hex())
    try:
        with lost_processes_explained():
            yield
    except SharedError:
        raise
    except LostProcessError as error:
        raise _noted(note, mark, error) from error
    except (ValueError, OSError, RuntimeError, EarlyStop) as error:
        kind = next((kind for kind, of in _KINDS.items() if isinstance(error, of)), "breakdown")
        text = " ".join(str(error).split())[:_NOTE_CHARACTERS]
        content = {"mark": mark, "rank": fabric.global_rank, "kind": kind, "text": text}
        # Where it cannot be written, the others only know that this process has gone.
        with suppress(OSError), open(note, "r+b") as file:
            file.write(json.dumps(content).encode().ljust(_NOTE_BYTES))
        raise


_KINDS: dict[str, Any] = {"stop": EarlyStop, "mistake": (ValueError, OSError)}
_NOTE_BYTES = 4096
_NOTE_CHARACTERS = 500  # six bytes each at worst


def _noted(path: Path, mark: str, lost: LostProcessError) -> BaseException:
    """What a lost process has left as its reason; `lost` if nothing."""
    try:
        note = json.loads(path.read_bytes())
    except (OSError, ValueError):  # none, or half a one
        return lost
    if note["mark"] != mark:  # of another start
        return lost
    if note["kind"] == "stop":
        return EarlyStop(note["text"])
    text = f"process {note['rank']}: {note['text']}"
    return EchoedError(text) if note["kind"] == "mistake" else LostProcessError(text)


@contextmanager
def lost_processes_explained() -> Iterator[None]:
    """Inside, what the collectives raise when a process has gone says so.

    Raises:
        LostProcessError: Another process has ended or does not answer.
        ValueError: The port at which the processes meet is taken.
    """
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        # Our own kinds of RuntimeError may speak of anything, such as a file named "gloo".
        is_lost = type(error) is RuntimeError and _LOST.search(text)
        if not (is_lost or isinstance(error, dist.DistError)) or not _was_launched():
            raise
        if _PORT_TAKEN.search(text):
            raise ValueError(
                f"the port at which the processes meet is taken ({text[:160]}); give torchrun "
                "another --master-port, or set MASTER_PORT"
            ) from error
        if _WRONG_SET_UP.search(text):
            raise ValueError(
                f"the processes cannot speak to each other ({text[:200]}); look at the variables "
                "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, and at the torch that is installed"
            ) from error
        raise LostProcessError(
            f"another process of this run has ended or does not answer ({text[:160]})"
        ) from error


def _was_launched() -> bool:
    devices, num_nodes = _launched()
    return devices * num_nodes > 1


def gather(fabric: Fabric, value: T) -> list[T]:
    """The value of every process, in the order of ranks, on every process.

    Args:
        fabric: The processes.
        value: Can be pickled.
    """
    if fabric.world_size == 1:
        return [value]
    gathered: list[Any] = [None] * fabric.world_size
    with lost_processes_explained():
        dist.all_gather_object(gathered, value)
    return gathered


@contextmanager
def said_once() -> Iterator[None]:
    """Inside, a mistake that every process finds alike is told by the first one only.

    For what is checked before the processes have found each other; afterwards there is `together`.

    Raises:
        EchoedError: In place of ValueError, on all processes but the first.
    """
    try:
        yield
    except ValueError as error:
        rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
        if rank == "0" or not _was_launched():
            raise
        raise EchoedError(str(error)) from error


def together(fabric: Fabric, work: Callable[[], T]) -> T:
    """Does work on every process; if it fails on any of them, every process raises.

    The first process that failed raises its reason, and those of others; the rest raise
    `EchoedError`, so that one line reaches the user and nobody waits for a process that has gone.

    Args:
        fabric: The processes.
        work: What to do; it must not contain anything that waits for other processes.

    Returns:
        What the work gave on this process.

    Raises:
        SharedError: The work failed with ValueError or OSError on some process.
    """
    if fabric.world_size == 1:
        return work()
    failure: ValueError | OSError | None = None
    result: Any = None
    try:
        result = work()
    except (ValueError, OSError) as error:
        failure = error
    reasons = gather(fabric, None if failure is None else str(failure))
    if all(reason is None for reason in reasons):
        return result
    first = next(rank for rank, reason in enumerate(reasons) if reason is not None)
    if fabric.global_rank != first:
        raise EchoedError(f"process {first}: {reasons[first]}")
    others = {reason for reason in reasons if reason is not None} - {reasons[first]}
    more = f" (other processes: {'; '.join(sorted(others))})" if others else ""
    raise SharedError(f"{failure}{more}") from failure


def on_first(fabric: Fabric, work: Callable[[], T]) -> T | None:
    """Does work on process 0 alone; if it fails there, every process raises.

    Args:
        fabric: The processes.
        work: What to do, such as to write a file.

    Returns:
        What the work gave; None on the other processes.

    Raises:
        SharedError: The work failed with ValueError or OSError.
    """
    return together(fabric, lambda: work() if fabric.is_global_zero else None)


def sum_over_processes(fabric: Fabric, values: list[float]) -> list[float]:
    """The sums over all processes.

    Args:
        fabric: The processes.
        values: Of this process.
    """
    if fabric.world_size == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=fabric.device)
    dist.all_reduce(tensor)
    return tensor.tolist()
