"""Runs training in forked processes and breaks it at chosen points; imported once, forked often.

Usage: python crash_harness.py FOLDER, with scenarios as JSON lines on stdin:
``{"name", "arguments", "break": [[kind, step], ...]}``. Each scenario is started, broken as often
as it says, resumed each time, and run to its end; a line with the exit codes answers each.

Kinds of break: "kill_before_step" and "kill_after_step" end the process without warning around the
optimizer step, "kill_in_checkpoint" between writing and renaming a checkpoint, "kill_after_rename"
right behind it; "term" and "interrupt" send SIGTERM and SIGINT.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

import wavevit.cli.train_classification
import wavevit.training.checkpoint
import wavevit.training.report  # noqa: F401  (what a run imports, once and before the forks)
from wavevit.cli.main import main


def break_at(kind: str, step: int) -> None:
    """Arms one break in this process."""
    calls = {"step": 0}

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if kind in ("kill_before_step", "kill_after_step", "term", "interrupt"):
        original = torch.optim.AdamW.step

        def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls["step"] += 1
            now = calls["step"] == step
            if now and kind == "kill_before_step":
                die()
            result = original(self, *args, **kwargs)
            if now and kind == "kill_after_step":
                die()
            if now and kind in ("term", "interrupt"):
                os.kill(os.getpid(), signal.SIGTERM if kind == "term" else signal.SIGINT)
            return result

        torch.optim.AdamW.step = patched  # type: ignore[method-assign]
        return
    replace = os.replace

    def patched_replace(source: Any, target: Any) -> None:
        if str(target).endswith(".ckpt"):
            calls["step"] += 1
            if calls["step"] == step and kind == "kill_in_checkpoint":
                die()
        replace(source, target)
        if str(target).endswith(".ckpt") and calls["step"] == step and kind == "kill_after_rename":
            die()

    os.replace = patched_replace


def in_child(work: Callable[[], int]) -> int:
    """Exit code of the work done in a forked process; minus the signal that ended it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            code = work()
        except BaseException:  # noqa: BLE001 (a forked child must never return into the parent)
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(scenario: dict[str, Any]) -> list[int]:
    """Exit codes of every start of the scenario."""
    codes = []
    for kind, step in scenario["break"]:

        def broken(kind: str = kind, step: int = step) -> int:
            torch.set_num_threads(1)
            break_at(kind, step)
            return main([*scenario["arguments"], "--resume"])

        codes.append(in_child(broken))

    def whole() -> int:
        torch.set_num_threads(1)
        return main([*scenario["arguments"], "--resume"])

    codes.append(in_child(whole))
    return codes


for line in sys.stdin:
    scenario = json.loads(line)
    answer = {"name": scenario["name"], "codes": run(scenario)}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
