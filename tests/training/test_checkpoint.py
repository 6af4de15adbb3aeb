"""Checkpoints: hashed, verified, never lost before the next one stands."""

import errno
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wavevit.training import checkpoint
from wavevit.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    restore_rng_state,
    rng_state,
    save_checkpoint,
    verifies,
)


def content(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((50,), float(step))}


def load_newest(folder: Path) -> dict[str, Any]:
    path = newest_checkpoint(folder)
    assert path is not None
    return load_checkpoint(path)


def test_newest_is_loaded_and_old_ones_are_removed(tmp_path: Path) -> None:
    for step in (3, 12, 100):
        path = save_checkpoint(tmp_path, step, content(step), keep=2)
        assert verifies(path)
    assert [p.name[:15] for p in list_checkpoints(tmp_path)] == [
        "step_0000000100",
        "step_0000000012",
    ]
    loaded = load_newest(tmp_path)
    assert loaded["step"] == 100
    assert torch.equal(loaded["weights"], content(100)["weights"])


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, 1, content(1), keep=3)
    path = save_checkpoint(tmp_path, 2, content(2), keep=3)
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[len(data) // 2] ^= 1
    else:
        data = bytearray()
    path.write_bytes(data)
    loaded = load_newest(tmp_path)
    assert loaded["step"] == 1
    assert "is damaged" in caplog.text


def test_all_damaged_is_an_error_and_none_is_not(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "missing") is None
    path = save_checkpoint(tmp_path, 2, content(2), keep=1)
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"none of the 1 checkpoints in .* verifies"):
        newest_checkpoint(tmp_path)


def test_a_failed_write_leaves_the_older_checkpoint_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, content(1), keep=1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, content(2), keep=1)
    assert [p.name[:15] for p in sorted(tmp_path.iterdir())] == ["step_0000000001"]


def test_generators_continue_where_they_were_saved() -> None:
    def draws() -> tuple[float, float, float, float]:
        return random.gauss(0, 1), np.random.randn(), np.random.rand(), torch.rand(()).item()

    draws()
    state = rng_state(torch.device("cpu"))
    first = draws()
    draws()
    restore_rng_state(state, torch.device("cpu"))
    assert draws() == first


def test_damaged_files_of_later_steps_go_and_never_the_new_one(tmp_path: Path) -> None:
    """A run that fell back behind damaged checkpoints saves at a lower step than theirs."""
    for step in (9, 12, 15):
        path = save_checkpoint(tmp_path, step, {"step": step}, keep=3)
        if step > 9:
            path.write_bytes(path.read_bytes()[:-1])
    new = save_checkpoint(tmp_path, 10, {"step": 10}, keep=2)
    assert new.is_file()
    content = load_newest(tmp_path)
    assert content == {"step": 10}
    assert len(list_checkpoints(tmp_path)) == 2


def test_what_a_killed_process_left_half_written_goes_with_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".step_0000000005.partial").write_bytes(b"half")
    save_checkpoint(tmp_path, 7, content(7), keep=1)
    assert [path.name[:15] for path in tmp_path.iterdir()] == ["step_0000000007"]


def test_an_unreadable_checkpoint_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, 1, content(1), keep=2)
    bad = save_checkpoint(tmp_path, 2, content(2), keep=2)
    digest = checkpoint._digest

    def failing(path: Path) -> str:
        if path == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return digest(path)

    monkeypatch.setattr(checkpoint, "_digest", failing)
    assert load_newest(tmp_path)["step"] == 1
    assert "cannot be read: Input/output error" in caplog.text
