"""Runs commands in forked processes and breaks them at chosen points; imported once, forked often.

Usage: python crash_harness.py, with scenarios as JSON lines on stdin: ``{"arguments", "processes",
"starts"}``. A start is a list of breaks ``[rank, kind, step]``; every start of a training goes on
with what the one before left. One JSON line answers each scenario: per start and process the exit
code and what it wrote to stderr, and the seconds that the start took. Processes of a run find each
other as torchrun would have told them. Pictures, half of a short run's time, are
drawn only where the scenario has ``"pictures": true``.

Kinds of break, around the step-th optimizer step of that start: "kill_before_step",
"kill_after_step" end the process without warning, "term", "interrupt" send SIGTERM and SIGINT,
"freeze" stops the process without ending it, "full_log" lets no file grow beyond a few bytes;
around the step-th checkpoint: "kill_in_checkpoint" between writing and renaming,
"kill_after_rename" right behind it, "full_disk" lets no file grow beyond some kilobytes, "vanish"
removes the folder of checkpoints before; "term_in_check" sends SIGTERM before the validation images
are read; "nan" puts NaN into the step-th batch, "kill_worker" ends the loader's worker processes at
the step-th batch; "truncate" and "flip" damage the newest checkpoint before the start;
"kill_after_s" ends the process after so many seconds.
"""

import itertools
import json
import os
import resource
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

import wavevit.cli.train_classification  # what a run imports: once, before the forks
import wavevit.training.checkpoint
import wavevit.training.classification
import wavevit.training.detection_report
import wavevit.training.loop
import wavevit.training.report
from wavevit.cli.main import main
from wavevit.data.loader import Batch

LIMIT_S = 120


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count_calls(owner: Any, name: str, step: int, before: Any = None, after: Any = None) -> None:
    """Does something around the step-th call of a function."""
    original = getattr(owner, name)
    calls = itertools.count(1)

    def patched(*args: Any, **kwargs: Any) -> Any:
        now = next(calls) == step
        if now and before is not None:
            before(*args)
        result = original(*args, **kwargs)
        if now and after is not None:
            after(result)
        return result

    setattr(owner, name, patched)


def around_rename(step: int, before: Any = None, after: Any = None) -> None:
    original = os.replace
    calls = itertools.count(1)

    def patched(source: Any, target: Any) -> None:
        now = str(target).endswith(".ckpt") and next(calls) == step
        if now and before is not None:
            before()
        original(source, target)
        if now and after is not None:
            after()

    os.replace = patched


def limit_file_size(size: int = 20_000) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def kill_workers() -> None:
    for child in torch.multiprocessing.active_children():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)


def spoil(batch: Batch) -> None:
    batch.images[0, 0, 0, 0] = float("nan")


def break_at(kind: str, step: float, output: Path) -> None:
    """Arms one break in this process."""

    def at_step(**what: Any) -> None:
        count_calls(torch.optim.AdamW, "step", int(step), **what)

    def send(number: signal.Signals) -> Callable[..., None]:
        return lambda *_: os.kill(os.getpid(), number)

    def at_checkpoint(action: Callable[[], Any]) -> None:
        count_calls(wavevit.training.loop, "save_checkpoint", int(step), before=lambda *_: action())

    def at_batch(**what: Any) -> None:
        count_calls(Batch, "to", int(step), **what)

    arm: dict[str, Callable[[], None]] = {
        "kill_before_step": lambda: at_step(before=lambda *_: kill()),
        "kill_after_step": lambda: at_step(after=lambda _: kill()),
        "term": lambda: at_step(after=send(signal.SIGTERM)),
        "interrupt": lambda: at_step(after=send(signal.SIGINT)),
        "freeze": lambda: at_step(before=send(signal.SIGSTOP)),
        "kill_in_checkpoint": lambda: around_rename(int(step), before=kill),
        "kill_after_rename": lambda: around_rename(int(step), after=kill),
        "full_disk": lambda: at_checkpoint(limit_file_size),
        "full_log": lambda: at_step(after=lambda _: limit_file_size(300)),
        "term_in_check": lambda: count_calls(
            wavevit.training.classification.ClassificationTask,
            "check_validation_set",
            1,
            before=send(signal.SIGTERM),
        ),
        "vanish": lambda: at_checkpoint(lambda: shutil.rmtree(output / "checkpoints")),
        "nan": lambda: at_batch(after=spoil),
        "kill_worker": lambda: at_batch(after=lambda _: kill_workers()),
        "kill_after_s": lambda: threading.Timer(step, kill).start(),
    }
    arm[kind]()


def damage(kind: str, output: Path) -> None:
    newest = wavevit.training.checkpoint.list_checkpoints(output / "checkpoints")[0]
    content = bytearray(newest.read_bytes())
    if kind == "truncate":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 16
    newest.write_bytes(content)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def fork(work: Callable[[], int], stderr: int) -> int:
    """Process id of a fork that does the work and exits with its code."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setpgid(0, 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(stderr, 2)
            code = work()
        except BaseException:  # noqa: BLE001 (a forked child must never return into the parent)
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def start(scenario: dict[str, Any], breaks: list[list[Any]]) -> dict[str, Any]:
    """Exit codes and words of the processes of one start."""
    words = scenario["arguments"]
    output = Path(words[words.index("--output") + 1])
    for _, kind, _ in breaks:
        if kind in ("truncate", "flip"):
            damage(kind, output)
    processes, port, began = scenario["processes"], free_port(), time.monotonic()

    def work(rank: int) -> int:
        torch.set_num_threads(1)
        if not scenario.get("pictures"):
            for report in (wavevit.training.report, wavevit.training.detection_report):
                for name in ("write_samples", "write_pictures"):
                    setattr(report, name, lambda *_: None)
        if processes > 1:
            os.environ |= {
                "TORCHELASTIC_RUN_ID": "test",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        for broken_rank, kind, step in breaks:
            if broken_rank == rank and kind not in ("truncate", "flip"):
                break_at(kind, step, output)
        return main([*words, "--resume"] if words[0] == "train" else words)

    said = [output.parent / f"{output.name}-stderr-{rank}" for rank in range(processes)]
    children = []
    for rank, path in enumerate(said):
        with path.open("wb") as file:
            children.append(fork(lambda rank=rank: work(rank), file.fileno()))
    codes: list[int | str] = ["hangs"] * processes
    frozen = {rank for rank, kind, _ in breaks if kind == "freeze"}
    while "hangs" in codes and time.monotonic() - began < LIMIT_S:
        for rank, child in enumerate(children):
            if codes[rank] != "hangs":
                continue
            if all(code != "hangs" for other, code in enumerate(codes) if other not in frozen):
                os.kill(child, signal.SIGKILL)
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                codes[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for rank, child in enumerate(children):
        if codes[rank] == "hangs":
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return {
        "codes": codes,
        "stderr": [p.read_text() for p in said],
        "seconds": time.monotonic() - began,
    }


if __name__ == "__main__":
    for line in sys.stdin:
        scenario = json.loads(line)
        answer = [start(scenario, breaks) for breaks in scenario["starts"]]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
