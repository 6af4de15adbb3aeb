"""What the reports of all tasks have in common."""

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from wavevit.files import write_text
from wavevit.training.loop import Outcome
from wavevit.training.run_directory import RunDirectory
from wavevit.training.state import versions


def opening(title: str, outcome: Outcome) -> list[str]:
    """Title of a report, and how the run ended.

    Args:
        title: What was trained on what.
        outcome: How it ended.
    """
    position = outcome.position
    ending = "stopped early: no better score" if outcome.early else "finished"
    return [
        f"# {title}",
        "",
        f"{ending.capitalize()} at step {position.step} of {outcome.total_steps} after "
        f"{position.seconds / 60:.1f} minutes of training, {time.strftime('%Y-%m-%d')}.",
        "",
    ]


def facts(rows: Mapping[str, Any], seed: int) -> list[str]:
    """A table of facts, those of the machine and the versions last.

    Args:
        rows: Names and values.
        seed: Of the run.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, {device}"
    every = {**rows, "seed": seed, "machine": machine, **versions()}
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in every.items())]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A table, its first column to the left and the others to the right.

    Args:
        head: Names of the columns.
        rows: As many values each.
    """
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(cell(value) for value in line) + " |" for line in lines]


def cell(value: Any) -> str:
    """A value as it stands in a table, such as the name of a class.

    Args:
        value: Any.
    """
    return " ".join(str(value).split()).replace("|", "\\|")


def pictures(names: Mapping[str, str]) -> list[str]:
    """Pictures of the run's directory.

    Args:
        names: What they show, by file name.
    """
    return ["", *(f"![{what}]({name})" for name, what in names.items())]


def usage(commands: Sequence[str]) -> list[str]:
    """Commands that use what was trained.

    Args:
        commands: One a line.
    """
    return ["", "Use it:", "", "```", *commands, "```"]


def listed(what: str, unreadable: Mapping[str, str]) -> list[str]:
    """Files that could not be read; nothing if there are none.

    Args:
        what: Became of them.
        unreadable: Sample id to reason.
    """
    if not unreadable:
        return []
    entries = [f"- `{name}`: {reason}" for name, reason in sorted(unreadable.items())]
    return ["", f"## {len(unreadable)} {what}", "", *entries]


def save(run: RunDirectory, lines: Sequence[str]) -> None:
    """Writes ``report.md``.

    Args:
        run: Where.
        lines: Of the report.
    """
    write_text(run.path / "report.md", "\n".join(lines) + "\n")
