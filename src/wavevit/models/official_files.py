"""Checkpoint files of mmdetection and mmsegmentation, read without running what is in them."""

import argparse
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavevit.models import official
from wavevit.models.weights import read_checkpoint

# Runs of mmengine keep logs of numpy arrays beside the weights, in classes of their own. The names
# that they are pickled under are bound to `_Inert`, which does nothing.
_UNUSED = re.compile(
    r"^(?:mmengine|mmcv|mmdet|mmseg|mmcls|mmpretrain|numpy)\.|^(?:builtins|__builtin__)\.getattr$"
)


@dataclass(frozen=True)
class OfficialFile:
    """What a checkpoint file holds.

    Attributes:
        state: Weights by name, without wrappings.
        class_names: One name per label; empty where the file does not say.
        palette: Red, green and blue of each class, 0..255; empty where the file does not say.
        config: Text of the configuration that was trained; empty where the file has none.
        copies: Entries that are a second copy of the weights, without an average's effect.
    """

    state: dict[str, Tensor]
    class_names: list[str] = field(default_factory=list)
    palette: list[list[int]] = field(default_factory=list)
    config: str = ""
    copies: list[str] = field(default_factory=list)


def read_official(path: Path) -> OfficialFile:
    """The weights of a checkpoint file, and what it says of them.

    Of weights and their moving average, the average is taken: both mmcv and mmengine write it under
    the ordinary names, and the other copy as "ema_..." entries or beside.

    Args:
        path: ``.pth``, or any other file that `read_checkpoint` takes.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Damaged, not a checkpoint, or in need of code to load.
    """
    content = _load(path) if path.is_file() and path.suffix != ".safetensors" else None
    if not isinstance(content, dict):
        return OfficialFile(read_checkpoint(path))
    try:
        state = dict(official.unwrap(content))
    except ValueError as error:
        raise ValueError(f"{path} holds no weights: {error}") from error
    meta = content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    config = meta.get("config") or meta.get("cfg")
    # The average's hook of mmcv keeps the other copy among the buffers, dots made underscores.
    flat_names = {f"ema_{name.replace('.', '_')}" for name in state}
    copies = [name for name in state if name in flat_names]
    return OfficialFile(
        {name: value for name, value in state.items() if name not in set(copies)},
        class_names=_class_names(meta),
        palette=_palette(meta),
        config=config if isinstance(config, str) else "",
        copies=copies,
    )


def _data_set(meta: dict[str, Any]) -> dict[str, Any]:
    dataset = meta.get("dataset_meta")
    return dataset if isinstance(dataset, dict) else {}


def _class_names(meta: dict[str, Any]) -> list[str]:
    dataset = _data_set(meta)
    for names in (meta.get("CLASSES"), dataset.get("classes"), dataset.get("CLASSES")):
        if isinstance(names, str):  # of a single class
            return [names]
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return list(names)
    return []


def _palette(meta: dict[str, Any]) -> list[list[int]]:
    dataset = _data_set(meta)
    for colours in (meta.get("PALETTE"), dataset.get("palette"), dataset.get("PALETTE")):
        if isinstance(colours, list | tuple) and all(_is_colour(colour) for colour in colours):
            return [list(colour) for colour in colours]
    return []


def _is_colour(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(part, int) and 0 <= part <= 255 for part in value)
    )


def _load(path: Path) -> Any:
    """The whole of a pickled file; None where it cannot be had so."""
    try:
        with _inert_names(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickle protocols: it loads or is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, ValueError, EOFError, LookupError):
        return None  # `read_checkpoint` finds out and explains
    except (TypeError, AttributeError, AssertionError):
        return None


@contextmanager
def _inert_names(path: Path) -> Iterator[None]:
    """Inside, names of the libraries that write such files stand for nothing."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError):
        names = []  # the older format, which such classes are not found in
    stand_ins: list[Any] = [argparse.Namespace]
    for name in names:
        if _UNUSED.match(name):
            module, _, last = name.rpartition(".")
            own = {"__module__": module, "__qualname__": last}
            stand_ins.append(type(last, (_Inert,), own))
    with torch.serialization.safe_globals(stand_ins):
        yield


class _Inert:
    """Takes the place of a class or function: takes anything, and does nothing."""

    def __new__(cls, *_: object, **__: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass
