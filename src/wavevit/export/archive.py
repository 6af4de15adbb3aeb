"""A folder with an exported model: its files, and what they are.

`export.json` names the model's card, the parts with their inputs and outputs, and the files with
their SHA-256, so that a damaged or incomplete folder is refused before anything runs.
"""

import hashlib
import json
import platform
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

import wavevit
from wavevit.export.formats import FORMATS, MAIN_ENDING
from wavevit.export.programs import Program
from wavevit.files import write_text

MANIFEST = "export.json"
REST = "rest.safetensors"
"""Weights that are in no part, such as the learned proposals of Sparse R-CNN."""

_LAYOUT = 1
_CHUNK = 1 << 20


@dataclass(frozen=True)
class ExportedPart:
    """A part of an exported model.

    Attributes:
        path: Of the module that it stands for; "" is the model itself.
        name: Of its files, without an ending.
        inputs: Names of the arguments.
        shapes: Of each argument: lengths, or the name of an axis that may have any.
        outputs: Names of the tensors that it gives.
        least: Least length of named axes.
    """

    path: str
    name: str
    inputs: list[str]
    shapes: list[list[int | str]]
    outputs: list[str]
    least: dict[str, int]

    @classmethod
    def of(cls, program: Program) -> "ExportedPart":
        """What a program's file is.

        Args:
            program: Of the part.
        """
        part = program.part
        return cls(
            part.path,
            part.name,
            list(part.inputs),
            [list(shape) for shape in program.shapes],
            list(program.output_names),
            program.least,
        )


@dataclass(frozen=True)
class Manifest:
    """What a folder holds.

    Attributes:
        format: One of `FORMATS`.
        task: Of the model.
        card: Values of its card.
        parts: All that runs in the format's runtime.
        device: "cpu" or "cuda", where it runs.
        precision: "fp32" or "int8".
        files: SHA-256 of each file, in hexadecimal digits.
        versions: Of what has written it.
        layout: Number of this form of folder.
    """

    format: str
    task: str
    card: dict[str, Any]
    parts: list[ExportedPart]
    device: str = "cpu"
    precision: str = "fp32"
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    layout: int = _LAYOUT


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the name of the target at the end, and is gone after an error.

    Args:
        target: Folder that does not exist.

    Yields:
        The temporary folder, beside the target.

    Raises:
        FileExistsError: The target exists.
        FileNotFoundError: The folder that it is to be in does not.
    """
    check_target(target)
    # A name that nothing else has: neither a folder of the user's nor another export's.
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    try:
        yield partial
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_target(target: Path) -> None:
    """Raises unless a new folder can be made.

    Args:
        target: The folder.

    Raises:
        FileExistsError: It exists.
        FileNotFoundError: The folder that it is to be in does not.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another name for the export")
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of the output does not exist: {target.parent}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `export.json` for the files that are in a folder.

    Args:
        folder: With all other files.
        manifest: Its files and versions are filled in.
    """
    values = asdict(manifest)
    values["files"] = {
        path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST
    }
    values["versions"] = {
        "wavevit": wavevit.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    write_text(folder / MANIFEST, json.dumps(values, indent=2) + "\n")


def export_folder(path: Path) -> Path | None:
    """The folder of an exported model, or None where a path names none.

    Args:
        path: The folder, or a file of an exported part.
    """
    if (path / MANIFEST).is_file():
        return path
    endings = tuple({*MAIN_ENDING.values(), ".bin", ".onnx.data"})
    is_part = path.name in (MANIFEST, REST) or path.name.endswith(endings)
    if is_part and path.is_file() and (path.parent / MANIFEST).is_file():
        return path.parent
    return None


def read_manifest(folder: Path) -> Manifest:
    """What a folder says that it holds.

    Args:
        folder: From `export_folder`.

    Raises:
        ValueError: It cannot be read.
    """
    path = folder / MANIFEST
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values["layout"] != _LAYOUT or values["format"] not in FORMATS:
            raise ValueError(f"layout {values['layout']}, format {values['format']!r}")
        parts = [ExportedPart(**part) for part in values.pop("parts")]
        if not parts:
            raise ValueError("no parts")
        known = {each.name for each in fields(Manifest)}
        if not values.keys() <= known:
            raise ValueError(f"unknown keys {sorted(values.keys() - known)}")
        return Manifest(parts=parts, **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); was it written by a newer version of wavevit?"
        ) from error


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raises unless all files are there as they were written.

    Args:
        folder: Of the manifest.
        manifest: From `read_manifest`.

    Raises:
        FileNotFoundError: One is missing.
        ValueError: One has changed.
    """
    needed = {part.name + MAIN_ENDING[manifest.format] for part in manifest.parts}
    for name in sorted({*needed, *manifest.files}):
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"the export {folder} is incomplete: {name} is missing")
        if manifest.files.get(name) != _sha256(path):
            raise ValueError(
                f"{path} is damaged, or not the file that was exported; export the model again"
            )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
