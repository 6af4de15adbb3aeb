"""int8 for ONNX Runtime: products with weights and what lies between, calibrated on images.

Legend: B images, H W rows and columns of one.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from wavevit.export.int8_graph import rewrite_for_int8
from wavevit.export.programs import first_line, quiet
from wavevit.export.runners import onnx_runtime_errors

CALIBRATION_IMAGES = 64
"""Images that are taken, spread over all that are given."""


def quantize(path: Path, images: Iterable[Tensor]) -> int:
    """Rewrites a part's ONNX file in int8, in place.

    Linear layers, convolutions and the GELUs among them are computed in int8: activations with a
    scale for each tensor, weights with one for each output channel. Norms, residual sums, the
    products within attention, the convolution that reads the image and the layer that gives the
    logits stay fp32: they are small, or lose accuracy. Weights have seven bits, since products of
    eight can overflow on processors without VNNI.

    Args:
        path: The file, with one input.
        images: Normalised ``(B, 3, H, W)``, as the network sees them in use.

    Returns:
        The number of products with weights in int8.

    Raises:
        ValueError: No images, a network without layers between its first and its last one, or one
            that ONNX Runtime cannot quantize.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    inputs = iter(images)
    first = next(inputs, None)
    if first is None:
        raise ValueError("expected images to calibrate int8 with, got none")
    model = onnx.load(path)
    metadata = {each.key: each.value for each in model.metadata_props}
    of_gelu = rewrite_for_int8(model)
    prepared = path.with_suffix(".prepared.onnx")
    onnx.save(model, prepared)
    try:
        with quiet(), _errors_only():
            quant_pre_process(prepared, prepared, skip_symbolic_shape=True)
            graph = onnx.load(prepared).graph
            products = _products(graph)[1:-1]
            if not products:  # an empty list would mean all to ONNX Runtime
                raise ValueError("expected a network of three layers or more, for int8 between")
            quantize_static(
                prepared,
                path,
                _reader(graph.input[0].name, chain([first], inputs)),
                quant_format=QuantFormat.QDQ,
                nodes_to_quantize=[
                    *products,
                    *(node.name for node in graph.node if node.name in of_gelu),
                ],
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
    except onnx_runtime_errors() as error:
        raise ValueError(
            f"ONNX Runtime cannot quantize the network: {first_line(error)}"
        ) from error
    finally:
        prepared.unlink()
    _restore_metadata(path, metadata)
    return len(products)


@contextmanager
def _errors_only() -> Iterator[None]:
    """Inside, ONNX Runtime does not list the constants that its optimizer leaves unused."""
    import onnxruntime

    warning, error = 2, 3  # it starts at warnings, and cannot be asked what it is at
    onnxruntime.set_default_logger_severity(error)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(warning)


def _products(graph: Any) -> list[str]:
    """Names of the nodes that multiply by weights, from the image to the logits."""
    weights = {each.name for each in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in weights
    ]


def _reader(name: str, images: Iterable[Tensor]) -> Any:
    """What gives ONNX Runtime the images one by one."""
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """Gives the images one by one."""

        def __init__(self) -> None:
            self._inputs: Iterator[dict[str, Any]] = (
                {name: np.ascontiguousarray(one.numpy())} for one in images
            )

        def get_next(self) -> dict[str, Any] | None:
            """The next one, or None."""
            return next(self._inputs, None)

    return Reader()


def _restore_metadata(path: Path, metadata: dict[str, str]) -> None:
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
