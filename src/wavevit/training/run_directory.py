"""A run's directory: configuration, log, checkpoints, best model, pictures and report."""

import errno
import json
import math
import os
import platform
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter

from wavevit.training.checkpoint import list_checkpoints

if sys.platform != "win32":
    import fcntl

# Settings that may differ when a run is resumed: they do not change what is computed, or only how
# the images of a step are dealt out, whose number is compared by itself, or they name files whose
# content is compared.
_FREE_SETTINGS = frozenset(
    {
        "data.path",
        "data.num_workers",
        "data.batch_size",
        "model.grad_checkpointing",
        "token_label.maps",
        "token_label.weights",
        "distill.weights",
        "trainer.checkpoint_every",
        "trainer.patience",
        "trainer.accelerator",
        "trainer.accumulate",
        "trainer.images_per_step",
        "trainer.strategy",
        "trainer.timeout_s",
        "trainer.log_every",
        "trainer.keep_checkpoints",
    }
)


CONTENT = "content of the "
"""Begins the names of settings that stand for what a run reads."""


def plain(value: Any) -> Any:
    """The value as a checkpoint and a YAML file hold it.

    Args:
        value: Settings, nested.
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class RunDirectory:
    """Owns one directory; a fresh run refuses one that already holds a run.

    Args:
        path: The directory; made if missing.
        config: Resolved settings, flat: ``"optim.lr"`` to a value.
        resume: Takes a directory that holds a run.
        writes: False for all processes of a run but one: they only read.
        defaults: Of the settings, flat. What a run of an older version does not know had them.

    Raises:
        FileExistsError: A fresh run would overwrite another.
        BlockingIOError: A live process writes into the directory.
        OSError: The directory cannot be written.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        *,
        resume: bool,
        writes: bool = True,
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.path = path
        self.config = config
        self.defaults = defaults
        self.checkpoints = path / "checkpoints"
        self.log_file = path / "log.jsonl"
        self.writes = writes
        self._events: SummaryWriter | None = None
        if not writes:
            return
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"the output {path} is a file; name a directory")
        if not resume and (self.log_file.exists() or self.checkpoints.exists()):
            raise FileExistsError(
                f"{path} already holds a run; pass --resume to go on with it, or another --output"
            )
        path.mkdir(parents=True, exist_ok=True)
        # Held as long as this object or the process lives.
        weakref.finalize(self, os.close, _lock(path / ".lock"))

    def write_config(self, resolved: dict[str, Any]) -> None:
        """Writes ``config.yaml``, a recipe that repeats this run.

        Args:
            resolved: Every setting, nested.
        """
        text = yaml.safe_dump(plain(resolved), sort_keys=False, default_flow_style=None)
        (self.path / "config.yaml").write_text(text, encoding="utf-8")

    def has_checkpoints(self) -> bool:
        """Whether there is something to resume."""
        return bool(list_checkpoints(self.checkpoints))

    def check_config(self, saved: dict[str, Any]) -> None:
        """Refuses to resume with settings that would train something else.

        Args:
            saved: Settings in the checkpoint.

        Raises:
            ValueError: Settings differ; they are named.
        """
        began_with = {**self.defaults, **saved}
        changed = [
            f"the {key.removeprefix(CONTENT)} are not those that it began with"
            if key.startswith(CONTENT)
            else f"{key} was {began_with.get(key)!r}, is {self.config.get(key)!r}"
            for key in sorted(saved.keys() | self.config.keys())
            if key not in _FREE_SETTINGS and began_with.get(key) != self.config.get(key)
        ]
        if changed:
            raise ValueError(
                f"cannot resume {self.path} with other settings: {'; '.join(changed)}; start a "
                "new run with --model.weights to go on from its best model"
            )

    def open_log(self, log_bytes: int, *, purge_step: int) -> None:
        """Opens the log, cut to what the checkpoint knew, so that no step stands in it twice.

        Args:
            log_bytes: Length to cut the log to.
            purge_step: TensorBoard hides events of later steps.
        """
        if not self.writes:
            return
        if self.log_file.exists() and self.log_file.stat().st_size > log_bytes:
            os.truncate(self.log_file, log_bytes)
        self._events = SummaryWriter(str(self.path / "tensorboard"), purge_step=purge_step or None)

    def log(self, row: dict[str, Any]) -> None:
        """Appends a row to ``log.jsonl`` and its numbers to the TensorBoard events.

        Args:
            row: Plain values, with "kind" and "step".
        """
        if not self.writes:
            return
        with open(self.log_file, "a", encoding="utf-8") as file:
            # JSON has no infinity: an overflowing gradient norm of fp16 is null.
            finite = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in row.items()
            }
            file.write(json.dumps(finite, allow_nan=False) + "\n")
        assert self._events is not None
        for key, value in row.items():
            if isinstance(value, int | float) and key != "step":
                self._events.add_scalar(f"{row['kind']}/{key}", value, row["step"])

    def log_bytes(self) -> int:
        """Length of the log."""
        return self.log_file.stat().st_size if self.log_file.exists() else 0

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the log."""
        if not self.log_file.exists():
            return []
        return [json.loads(line) for line in self.log_file.read_text("utf-8").splitlines()]

    def close_log(self) -> None:
        """Flushes the TensorBoard events."""
        if self._events is not None:
            self._events.close()
            self._events = None


def _lock(path: Path) -> int:
    """Descriptor of a file that no other process can lock as long as it is open here.

    Of the kinds of lock it is the one that a forked process, such as a loader's worker, does not
    take along: a run that was killed can be resumed while its workers still linger.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if sys.platform == "win32":
        return file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return file  # a file system without locks: go on without
        holder = os.read(file, 200).decode(errors="replace") or "unknown"
        os.close(file)
        raise BlockingIOError(
            f"{path.parent} is being written by another run ({holder}); wait for it, end it, or "
            "name another --output"
        ) from error
    os.truncate(file, 0)
    os.write(file, f"process {os.getpid()} on {platform.node()}".encode())
    return file
