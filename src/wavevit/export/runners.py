"""Exported files run in their own runtimes: tensors in their order in, tensors in theirs out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavevit.export.programs import first_line, quiet
from wavevit.models.openvino_graphs import (
    OpenVinoForms,
    compiled,
    import_openvino,
    run_dynamic,
)

Runner = Callable[[Sequence[Tensor]], list[Tensor]]

MOST_FORMS = 4
"""Shapes of images that OpenVINO compiles forms for; the rest share one for any shape."""


def open_file(path: Path, form: str) -> Runner:
    """What runs a file.

    Args:
        path: The part's main file.
        form: Its format.

    Raises:
        ValueError: The runtime cannot read it, or is not installed.
    """
    try:
        return _OPENERS[form](path)
    except ImportError as error:
        raise ValueError(
            f'running {path} needs what is not installed ({error}): pip install "wavevit[export]"'
        ) from error
    except (RuntimeError, OSError, KeyError) as error:
        raise ValueError(f"{path} cannot be opened: {first_line(error)}") from error


def _open_torch(path: Path) -> Runner:
    with quiet():
        module = torch.export.load(path).module()
    return lambda inputs: list(module(*inputs))


def _open_aotinductor(path: Path) -> Runner:
    with quiet():
        package = torch._inductor.aoti_load_package(str(path))
    return lambda inputs: list(package(*(tensor.contiguous() for tensor in inputs)))


def _open_onnx(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except onnx_runtime_errors() as error:
        raise ValueError(f"{path} cannot be opened: {first_line(error)}") from error
    names = [each.name for each in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        arrays = [tensor.detach().contiguous().numpy() for tensor in inputs]
        outputs = session.run(None, dict(zip(names, arrays, strict=True)))
        return [torch.from_numpy(output) for output in outputs]

    return run


def onnx_runtime_errors() -> tuple[type[Exception], ...]:
    """All that ONNX Runtime raises: they have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = vars(state).values()
    return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))


class _OpenVinoFile:
    """Images in a form for their shape, as long as there are few; all else in one for any shape."""

    def __init__(self, path: Path) -> None:
        self._core = import_openvino().Core()
        self._path = path
        graph = self._read()
        self._takes_images = len(graph.inputs) == 1 and graph.input(0).partial_shape[1] == 3
        self._forms = OpenVinoForms(lambda images: self._read())
        self._any_shape: Any = None

    def _read(self) -> Any:
        return self._core.read_model(self._path)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if self._takes_images:
            shape = inputs[0].shape
            if shape in self._forms or len(self._forms) < MOST_FORMS:
                return self._forms(inputs[0])
        if self._any_shape is None:
            self._any_shape = compiled(self._read())
        return run_dynamic(self._any_shape, dict(enumerate(inputs)))


_OPENERS: Mapping[str, Callable[[Path], Runner]] = {
    "onnx": _open_onnx,
    "torch": _open_torch,
    "aotinductor": _open_aotinductor,
    "openvino": _OpenVinoFile,
}
