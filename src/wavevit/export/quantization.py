"""int8 for ONNX Runtime: weights and activations of the large products, calibrated on images.

Legend: B images, H W rows and columns of one.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from wavevit.export.programs import quiet

CALIBRATION_IMAGES = 64
"""Images that are taken, spread over all that are given."""


def quantize(path: Path, images: Iterable[Tensor]) -> int:
    """Rewrites a part's ONNX file in int8, in place.

    Products with weights (linear layers, convolutions that are not depthwise) are computed in
    int8: activations with a scale for each tensor, weights with one for each output channel.
    What lies between, such as norms, GELU and the products within attention, stays fp32: it is
    small, or loses accuracy. Weights have seven bits, since products of eight can overflow on
    processors without VNNI.

    Args:
        path: The file, with one input.
        images: Normalised ``(B, 3, H, W)``, as the network sees them in use.

    Returns:
        The number of products in int8.

    Raises:
        ValueError: No images, or ONNX Runtime cannot quantize the network.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """Gives the images one by one."""

        def __init__(self, name: str) -> None:
            self._inputs: Iterator[dict[str, Any]] = (
                {name: np.ascontiguousarray(one.numpy())} for one in images
            )

        def get_next(self) -> dict[str, Any] | None:
            """The next one, or None."""
            return next(self._inputs, None)

    prepared = path.with_suffix(".prepared.onnx")
    with quiet():
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        metadata, name, chosen = _inspect(prepared)
        quantize_static(
            prepared,
            path,
            Reader(name),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=chosen,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
    prepared.unlink()
    _restore_metadata(path, metadata)
    return len(chosen)


def _inspect(path: Path) -> tuple[dict[str, str], str, list[str]]:
    """Metadata, name of the input, and nodes that multiply by weights."""
    import onnx

    model = onnx.load(path)
    weights = {each.name for each in model.graph.initializer}
    chosen = [
        node.name
        for node in model.graph.node
        if (node.op_type in ("MatMul", "Gemm") and node.input[1] in weights)
        or (node.op_type == "Conv" and node.input[1] in weights and _groups(node) == 1)
    ]
    facts = {each.key: each.value for each in model.metadata_props}
    return facts, model.graph.input[0].name, chosen


def _groups(node: Any) -> int:
    return next((each.i for each in node.attribute if each.name == "group"), 1)


def _restore_metadata(path: Path, metadata: dict[str, str]) -> None:
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
