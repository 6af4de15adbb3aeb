"""The official token-label maps: one PyTorch file per image, `<class>/<image>.pt`.

Shape legend: K classes per cell, H W rows and columns of the grid.
"""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wavevit.data.images import walk_files
from wavevit.data.label_maps.keys import KeyTable
from wavevit.data.label_maps.packed import LabelMap, LabelMapError, find_fault

SUFFIX = ".pt"
# The class numbers are stored as float16, whose whole numbers have gaps above this one.
MAX_CLASSES = 2048
_MAX_NUMBERS = 1 << 24  # of a map; a small file can claim any shape by strides of 0


def check_num_classes(num_classes: int) -> None:
    """Refuses a number of classes that the official files cannot tell apart.

    Args:
        num_classes: Classes of the teacher.

    Raises:
        ValueError: More than 2048.
    """
    if num_classes > MAX_CLASSES:
        raise ValueError(
            f"official label maps store class numbers as float16, exact only to {MAX_CLASSES}, and "
            f"there are {num_classes} classes; make maps of our own with "
            "`wavevit label-maps create`"
        )


def list_official(folder: Path) -> KeyTable:
    """Keys of all official maps under a folder, in order: posix paths without the extension.

    Only folders are listed; no file is opened or asked for its properties.

    Args:
        folder: That holds `<class>/<image>.pt`.

    Raises:
        OSError: A folder cannot be listed.
    """
    prefix = len(os.path.join(os.fspath(folder), ""))
    return KeyTable.of(
        path[prefix : -len(SUFFIX)].replace(os.sep, "/")
        for path in walk_files(os.fspath(folder))
        if path.endswith(SUFFIX)
    )


def read_official(folder: Path, key: str, num_classes: int) -> LabelMap:
    """An official map, checked. Pickled code is never run: a file that needs it is refused.

    Args:
        folder: That holds `<class>/<image>.pt`.
        key: Path in it, without the extension.
        num_classes: Classes of the teacher.

    Returns:
        The map.

    Raises:
        LabelMapError: No such file, damaged, in need of code to load, or not a map of these
            classes.
    """
    path = folder / f"{key}{SUFFIX}"
    content = _load(path)
    if not isinstance(content, Tensor):
        raise LabelMapError(f"{path} is no label map: expected a tensor, got {_kind(content)}")
    shape = tuple(content.shape)
    is_plain = content.layout == torch.strided and content.device.type == "cpu"
    if content.dtype not in (torch.float16, torch.float32) or len(shape) != 4 or not is_plain:
        raise _wrong_form(path, content)
    if shape[0] != 2 or not 0 < content.numel() <= _MAX_NUMBERS:
        raise _wrong_form(path, content)
    numbers = content.detach().float().numpy()
    scores, indices = numbers[0].copy(), numbers[1]
    if not np.isfinite(indices).all() or (indices != np.floor(indices)).any():
        raise LabelMapError(
            f"{path} is no label map: its second half must be class numbers, got fractions"
        )
    label_map = LabelMap(scores, indices.astype(np.int64))
    fault = find_fault(label_map, num_classes)
    if fault is not None:
        raise LabelMapError(f"{path} is damaged or made for other classes: {fault}")
    return label_map


def _wrong_form(path: Path, tensor: Tensor) -> LabelMapError:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return LabelMapError(
        f"{path} is no label map: expected float16 or float32 numbers of the shape (2, classes per "
        f"cell, rows, columns), got {dtype} of the shape {tuple(tensor.shape)}"
    )


def _kind(content: object) -> str:
    return type(content).__name__


def _load(path: Path) -> object:
    # The checkpoint reader in `models` guards against the same errors of torch.load.
    if not path.is_file():  # also anything that reading would wait for
        raise LabelMapError(f"the label map {path} is missing or no regular file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needs = _unsafe_globals(path)
        if needs:
            raise LabelMapError(
                f"refused the label map {path}: loading it would run code ({', '.join(needs)}); "
                "get it from a source you trust"
            ) from error
        raise LabelMapError(f"{path} is no label map, is damaged, or needs code to load") from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        AssertionError,
        ValueError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LabelMapError(f"{path} is no label map, or is damaged: {reason}") from error


def _unsafe_globals(path: Path) -> list[str]:
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError):
        return []
