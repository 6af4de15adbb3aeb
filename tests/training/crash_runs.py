"""Training runs in processes of their own, for tests that break them."""

import json
import subprocess
import sys
from dataclasses import dataclass
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
    lines, folders = [], {}
    for number, (name, scenario) in enumerate(scenarios.items()):
        folders[name] = folder / str(number) if outputs is None else outputs[number]
        complete = {"name": name, "processes": 1, "starts": [[]], **scenario}
        complete["arguments"] = [*scenario["arguments"], "--output", str(folders[name])]
        lines.append(json.dumps(complete))
    done = subprocess.run(
        [sys.executable, str(_HARNESS)],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(lines), done.stderr
    return {
        answer["name"]: Run(folders[answer["name"]], [Start(**s) for s in answer["starts"]])
        for answer in answers
    }
