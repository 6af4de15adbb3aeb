"""Formats that a program is written in.

Each writes one part as a file or two, with what a user of the file alone has to know inside where
the format has a place for it.
"""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

import torch

from wavevit.export.programs import Program, quiet
from wavevit.models.openvino_graphs import import_openvino

Format = Literal["onnx", "torch", "aotinductor", "openvino"]
FORMATS: tuple[str, ...] = get_args(Format)

MAIN_ENDING: Mapping[str, str] = {
    "onnx": ".onnx",
    "torch": ".pt2",
    "aotinductor": ".aoti.pt2",
    "openvino": ".xml",
}
"""Of the file of a part that is opened; others may lie beside it."""

Metadata = Mapping[str, str]


def check_format(form: str, device: str) -> None:
    """Finds out before any work whether a format can be written here.

    Args:
        form: One of `FORMATS`.
        device: "cpu" or "cuda", where the file is to run.

    Raises:
        ValueError: Unknown, or not for this device; or a library or a compiler is missing.
    """
    if form not in FORMATS:
        raise ValueError(f"expected a format of {', '.join(FORMATS)}, got {form!r}")
    if form in ("onnx", "openvino") and device != "cpu":
        raise ValueError(f"--format {form} runs on the CPU here; leave out --device {device}")
    if form == "aotinductor" and shutil.which("g++") is None and shutil.which("clang++") is None:
        raise ValueError(
            "--format aotinductor compiles C++ and found no compiler; install g++, or take "
            "--format torch"
        )
    try:
        if form in ("onnx", "openvino"):
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401 - torch's exporter uses it
        if form == "onnx":
            import onnxruntime  # noqa: F401 - what runs the file
        if form == "openvino":
            import_openvino()
    except ImportError as error:
        raise ValueError(
            f'--format {form} needs what is not installed ({error}): pip install "wavevit[export]"'
        ) from error


def write(program: Program, form: str, folder: Path, metadata: Metadata) -> None:
    """Writes the files of a part.

    Args:
        program: Of the part.
        form: One of `FORMATS`, checked with `check_format`.
        folder: Where to.
        metadata: Names and texts to store inside, where the format can.

    Raises:
        ValueError: The format cannot express the network.
    """
    _WRITERS[form](program, folder / (program.part.name + MAIN_ENDING[form]), metadata)


def _write_torch(program: Program, path: Path, metadata: Metadata) -> None:
    with quiet():
        torch.export.save(program.exported, path, extra_files=dict(metadata))


def _write_aotinductor(program: Program, path: Path, metadata: Metadata) -> None:
    with quiet(), torch.no_grad():
        torch._inductor.aoti_compile_and_package(program.exported, package_path=str(path))


def _write_onnx(program: Program, path: Path, metadata: Metadata) -> None:
    import onnx

    with quiet(), torch.no_grad():
        made = torch.onnx.export(
            program.exported,
            dynamo=True,
            verbose=False,
            input_names=list(program.part.inputs),
            output_names=list(program.output_names),
        )
        assert made is not None
        made.save(path)
    model = onnx.load(path, load_external_data=False)
    _name_axes(model.graph, program)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def _name_axes(graph: "onnx.GraphProto", program: Program) -> None:  # type: ignore[name-defined] # noqa: F821
    """Gives the axes the names of the program instead of torch's symbols."""
    renamed: dict[str, str] = {}
    for value, shape in zip(graph.input, program.shapes, strict=True):
        for dimension, name in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            if isinstance(name, str) and dimension.dim_param.isidentifier():
                renamed.setdefault(dimension.dim_param, name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = re.sub(
                    r"[A-Za-z_]\w*", lambda m: renamed.get(m[0], m[0]), dimension.dim_param
                )


def _write_openvino(program: Program, path: Path, metadata: Metadata) -> None:
    openvino = import_openvino()
    # By way of ONNX: OpenVINO reads that in a second, where converting torch's program with
    # sides of any length takes it minutes (2026.4).
    between = path.with_suffix(".onnx")
    _write_onnx(program, between, metadata)
    try:
        graph = openvino.Core().read_model(between)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"OpenVINO cannot take the network ({reason})") from error
    for name, text in metadata.items():
        graph.set_rt_info(text, [name])
    openvino.save_model(graph, path, compress_to_fp16=False)
    del graph
    for file in path.parent.glob(f"{between.name}*"):
        file.unlink()


_WRITERS: Mapping[str, Callable[[Program, Path, Metadata], None]] = {
    "onnx": _write_onnx,
    "torch": _write_torch,
    "aotinductor": _write_aotinductor,
    "openvino": _write_openvino,
}
