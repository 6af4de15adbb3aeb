"""A run's directory belongs to one run at a time, and goes on only with what it began with."""

import os
from pathlib import Path
from typing import Any

import pytest

from wavevit.training.run_directory import CONTENT, RunDirectory

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs fork and POSIX locks")


@posix_only
def test_another_live_process_is_refused_and_a_dead_one_is_not(tmp_path: Path) -> None:
    said, say = os.pipe()
    stay, leave = os.pipe()
    child = os.fork()
    if child == 0:  # holds the directory until told to leave
        code = 1
        try:
            run = RunDirectory(tmp_path, {}, resume=True)
            os.write(say, b"1")
            os.read(stay, 1)
            code = 0 if run.writes else 2
        finally:
            os._exit(code)
    os.read(said, 1)
    with pytest.raises(BlockingIOError, match=f"written by another run .process {child} on"):
        RunDirectory(tmp_path, {}, resume=True)
    os.write(leave, b"1")
    os.waitpid(child, 0)
    RunDirectory(tmp_path, {}, resume=True)


@pytest.mark.parametrize(
    "name", ["data.path", "trainer.patience", "trainer.checkpoint_every", "token_label.maps"]
)
def test_a_run_goes_on_where_only_places_and_habits_differ(name: str, tmp_path: Path) -> None:
    RunDirectory(tmp_path, {name: "new"}, resume=True).check_config({name: "old"})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("optim.lr", "optim.lr was 'old', is 'new'"),
        (f"{CONTENT}training labels", "the training labels are not those that it began with"),
    ],
)
def test_a_run_of_something_else_is_refused(name: str, words: str, tmp_path: Path) -> None:
    run: Any = RunDirectory(tmp_path, {name: "new"}, resume=True)
    with pytest.raises(ValueError, match=words):
        run.check_config({name: "old"})


def test_a_setting_that_an_older_version_did_not_know_had_its_default(tmp_path: Path) -> None:
    defaults = {"optim.new": [1, 2]}
    run = RunDirectory(tmp_path, {"optim.new": [1, 2]}, resume=True, defaults=defaults)
    run.check_config({})
    other: Any = RunDirectory(tmp_path / "other", {"optim.new": 3}, resume=True, defaults=defaults)
    with pytest.raises(ValueError, match=r"optim.new was \[1, 2\], is 3"):
        other.check_config({})
