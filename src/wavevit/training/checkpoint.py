"""Checkpoints that survive a crash at any moment: written aside, synced, hashed, renamed, verified.

The file name carries the step and the start of the content's SHA-256:
``step_0000001234-0123456789abcdef.ckpt``.
"""

import hashlib
import logging
import os
import random
import re
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from wavevit.files import sync_file, sync_folder

logger = logging.getLogger(__name__)

_NAME = re.compile(r"^step_(\d{10})-([0-9a-f]{16})\.ckpt$")


def save_checkpoint(directory: Path, step: int, content: dict[str, Any], *, keep: int) -> Path:
    """Writes a checkpoint; older ones go only after the new one has been read back and verified.

    Args:
        directory: Where checkpoints live; made if missing.
        step: Optimizer steps done.
        content: Tensors and plain values only.
        keep: Checkpoints to keep, at least 1.

    Returns:
        The new file.

    Raises:
        OSError: It cannot be written, e.g. the disk is full; older checkpoints are untouched.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for left_over in directory.glob(".step_*.partial"):  # of a process that was killed
        left_over.unlink(missing_ok=True)
    partial = directory / f".step_{step:010d}.partial"
    try:
        with open(partial, "wb") as file:
            hashed = _HashedFile(file)
            torch.save(content, cast("IO[bytes]", hashed))
            sync_file(file)
            if hasattr(os, "posix_fadvise"):  # so that it is read back from the disk
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        path = directory / f"step_{step:010d}-{hashed.digest()}.ckpt"
        os.replace(partial, path)
    except RuntimeError as error:
        if not _is_write_failure(error):
            raise
        raise OSError(f"cannot write the checkpoint {partial}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(directory)
    if not verifies(path):
        raise OSError(f"{path} differs from what was written to it: the disk is not to be trusted")
    others = [other for other in list_checkpoints(directory) if other != path]
    # Later steps than this one are damaged files that the run did not go on from.
    abandoned = [other for other in others if checkpoint_step(other) > step]
    older = [other for other in others if other not in abandoned]
    for old in (*abandoned, *older[keep - 1 :]):
        old.unlink(missing_ok=True)
    return path


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoint files, newest step first, verified or not.

    Args:
        directory: Where checkpoints live; may be missing.
    """
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if _NAME.match(p.name)), reverse=True)


def checkpoint_step(path: Path) -> int:
    """The optimizer step that a checkpoint was made after.

    Args:
        path: From `list_checkpoints`.
    """
    match = _NAME.match(path.name)
    assert match is not None
    return int(match[1])


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint, on the CPU.

    Args:
        path: From `newest_checkpoint`.
    """
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that verifies, or None when there is none at all.

    Args:
        directory: Where checkpoints live; may be missing.

    Raises:
        ValueError: There are checkpoints, and every one is damaged.
    """
    paths = list_checkpoints(directory)
    for path in paths:
        if verifies(path):
            return path
        logger.warning("%s is damaged (its hash differs); trying the one before it", path)
    if paths:
        raise ValueError(
            f"none of the {len(paths)} checkpoints in {directory} verifies: all are damaged; "
            "start a new run, from best.safetensors if that is whole"
        )
    return None


def verifies(path: Path) -> bool:
    """Whether the file's content has the hash its name carries.

    Args:
        path: A checkpoint.
    """
    match = _NAME.match(path.name)
    try:
        return match is not None and path.is_file() and _digest(path) == match[2]
    except OSError as error:
        logger.warning("%s cannot be read: %s", path, error.strerror)
        return False


class _HashedFile:
    """A file that hashes what is written to it, for `torch.save`, which only ever appends."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self._digest.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._digest.hexdigest()[:16]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]


def _is_write_failure(error: RuntimeError) -> bool:
    # What torch.save makes of a full disk. Other errors may come at any moment, such as the death
    # of a loader's worker, and are not about this file.
    return bool(re.search(r"PytorchStreamWriter|inline_container|unexpected pos", str(error)))


def rng_state(device: torch.device) -> dict[str, Any]:
    """States of every global generator, as tensors and plain values.

    Args:
        device: Of the run; its generator is among them if it is a CUDA device.
    """
    numpy_state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, gauss = numpy_state
    version, words, gauss_next = random.getstate()
    return {
        "python": [version, list(words), gauss_next],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Sets every global generator to a state from `rng_state`.

    Args:
        state: The states.
        device: Of the run.
    """
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
