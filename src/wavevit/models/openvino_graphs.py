"""Graphs of OpenVINO: made from exported programs, and run on the CPU in fp32.

Letters: B batch.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def import_openvino() -> ModuleType:
    """The module `openvino`.

    Raises:
        ImportError: It is not installed; the text names what to install.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError('OpenVINO: pip install "wavevit[export]"') from error
    return openvino


def converted(program: torch.export.ExportedProgram) -> Any:
    """The graph of OpenVINO that computes what a program does.

    Args:
        program: Of tensors.

    Raises:
        ImportError: OpenVINO is missing.
        ValueError: OpenVINO cannot take the program.
    """
    openvino = import_openvino()
    from openvino import frontend

    try:
        return openvino.convert_model(program)
    except (frontend.OpConversionFailure, frontend.GeneralFailure) as error:
        reason = str(error).strip().split("\n")[-1].lstrip("- ")
        raise ValueError(f"OpenVINO cannot take the network ({reason})") from error


def compiled(graph: Any, streams: int = 1) -> Any:
    """A graph made ready for the CPU, in fp32, on the threads that PyTorch would use.

    By itself OpenVINO takes bf16 on processors that have it.

    Args:
        graph: Of OpenVINO.
        streams: Requests that run side by side, each on its share of the threads.
    """
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": streams,
    }
    return import_openvino().Core().compile_model(graph, "CPU", settings)


class OpenVinoForms:
    """Runs a network with OpenVINO, one compiled form per shape of the input.

    Args:
        graph_for: The graph for some images ``(B, ...)``, with a batch of any size, that may be
            reshaped to theirs. Called at the first images of a shape.

    Raises:
        ImportError: OpenVINO is missing.
    """

    def __init__(self, graph_for: Callable[[Tensor], Any]) -> None:
        import_openvino()
        self._graph_for = graph_for
        self._requests: dict[torch.Size, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, shape: torch.Size) -> bool:
        return shape in self._requests

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The outputs, each with the batch as its first dimension.

        Args:
            images: float32 ``(B, ...)`` on the CPU.
        """
        if images.shape not in self._requests:
            self._requests[images.shape] = self._compile(images)
        requests = self._requests[images.shape]
        parts = images.detach().contiguous().chunk(len(requests))
        for request, part in zip(requests, parts, strict=True):
            request.start_async({0: part.numpy()}, share_inputs=True)
        for request in requests:
            request.wait()
        count = len(requests[0].model_outputs)
        # Joining is copying: the requests write there again.
        return [
            torch.cat([torch.from_numpy(r.get_output_tensor(i).data) for r in requests])
            for i in range(count)
        ]

    def _compile(self, images: Tensor) -> list[Any]:
        """Requests that share the batch, each with threads of its own."""
        graph = self._graph_for(images)
        streams = num_streams(len(images), torch.get_num_threads())
        graph.reshape([len(images) // streams, *images.shape[1:]])
        ready = compiled(graph, streams)
        return [ready.create_infer_request() for _ in range(streams)]


def run_dynamic(ready: Any, inputs: Mapping[int, Tensor]) -> list[Tensor]:
    """The outputs of a compiled graph that takes inputs of any shape.

    Args:
        ready: From `compiled`.
        inputs: By their number; on the CPU.
    """
    outputs = ready({i: tensor.detach().contiguous().numpy() for i, tensor in inputs.items()})
    return [torch.from_numpy(outputs[i].copy()) for i in range(len(ready.outputs))]


def num_streams(batch: int, threads: int) -> int:
    """Into how many equal parts a batch goes that run side by side, each on a share of the threads.

    Less waiting for one another: 4 % more images per second from two threads. Parts of less than
    four images would lose more than that.

    Args:
        batch: Images.
        threads: Of the processor.
    """
    fits = (n for n in range(threads, 1, -1) if batch % n == 0 and batch // n >= 4)
    return next(fits, 1)
