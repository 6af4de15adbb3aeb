"""Training runs in processes of their own, for tests that break them."""

import atexit
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from wavevit.training.checkpoint import load_checkpoint, newest_checkpoint

KILLED, STOPPED, DIVERGED, BROKEN, USAGE = -9, 75, 3, 4, 2

_HARNESS = Path(__file__).with_name("crash_harness.py")


@dataclass
class Start:
    """One start of a run: exit code and standard error of each process."""

    codes: list[int | str]
    stderr: list[str]
    seconds: float


@dataclass
class Run:
    """A run and all its starts."""

    folder: Path
    starts: list[Start]

    @property
    def codes(self) -> list[list[int | str]]:
        """Exit codes by start and process."""
        return [start.codes for start in self.starts]

    def checkpoint(self) -> dict[str, Any]:
        """Content of the newest checkpoint that verifies."""
        path = newest_checkpoint(self.folder / "checkpoints")
        assert path is not None
        return load_checkpoint(path)

    def log(self) -> list[dict[str, Any]]:
        """Rows of the log, without what depends on the clock."""
        rows = [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]
        for row in rows:
            row.pop("images_per_s", None)
        return rows


class RunsOnDemand(dict[str, Run]):
    """Runs of scenarios, by name, each done when a test first asks for it.

    Args:
        scenarios: As in `run_all`.
        folder: Where the run directories go.
    """

    def __init__(self, scenarios: dict[str, dict[str, Any]], folder: Path) -> None:
        super().__init__()
        self._scenarios = scenarios
        self._folder = folder

    def __missing__(self, name: str) -> Run:
        scenarios = {name: self._scenarios[name]}
        self.update(run_all(scenarios, self._folder / str(len(self))))
        return self[name]


def run_all(
    scenarios: dict[str, dict[str, Any]], folder: Path, outputs: list[Path] | None = None
) -> dict[str, Run]:
    """Runs scenarios of `crash_harness` one after the other, each in a folder of its own.

    Args:
        scenarios: By name: "arguments", and perhaps "processes" (1) and "starts" (one whole run).
        folder: Where the run directories go.
        outputs: The run directories, where they are to be others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, (name, scenario) in enumerate(scenarios.items()):
        output = folder / str(number) if outputs is None else outputs[number]
        arguments = [*scenario["arguments"], "--output", str(output)]
        complete = {"processes": 1, "starts": [[]], **scenario, "arguments": arguments}
        found[name] = Run(output, [Start(**start) for start in _ask(complete)])
    return found


def _ask(scenario: dict[str, Any]) -> list[dict[str, Any]]:
    harness = _harness()
    assert harness.stdin is not None
    assert harness.stdout is not None
    harness.stdin.write(json.dumps(scenario) + "\n")
    harness.stdin.flush()
    answer = harness.stdout.readline()
    assert answer, f"the harness has ended with {harness.wait()}; its words are above"
    starts: list[dict[str, Any]] = json.loads(answer)
    return starts


@cache
def _harness() -> "subprocess.Popen[str]":
    """One for all tests of a process: what a run imports takes longer than the run."""
    harness = subprocess.Popen(
        [sys.executable, str(_HARNESS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(_close, harness)
    return harness


def _close(harness: "subprocess.Popen[str]") -> None:
    harness.communicate()
