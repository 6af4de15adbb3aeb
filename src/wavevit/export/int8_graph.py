"""ONNX graphs in the form that ONNX Runtime has int8 kernels for.

Its convolution in int8 adds the bias and requantizes tile by tile while the sums are in the cache,
and two of them hand each other eight bits. A linear layer that the exporter wrote, a product of
matrices and then a sum, gets three passes over fp32 in memory instead. For GELU there is no
int8 kernel at all, but for the logistic function and for products there is.

Legend: B images, H W rows and columns, C channels in, K channels out.
"""

from collections import defaultdict
from typing import Any

import numpy as np

GELU_SLOPE = 1.702
"""GELU is within 0.0203 of ``x * sigmoid(1.702 * x)`` everywhere (Hendrycks and Gimpel, arXiv
1606.08415, section 2)."""


def rewrite_for_int8(model: Any) -> set[str]:
    """Writes linear layers as 1x1 convolutions and GELU with the logistic function, in place.

    Linear layers on ``(B, ..., C)``, one axis or more between: ``(B, C, ...)`` convolved with
    ``(K, C, 1, ...)``, between transposes that runtimes cancel against each other. Those on other
    tensors stay as they are.

    Args:
        model: An `onnx.ModelProto`.

    Returns:
        Names of the nodes that GELU was written as, which pay in int8.
    """
    import onnx

    graph = model.graph
    ranks = _ranks(onnx.shape_inference.infer_shapes(model).graph)
    weights = {each.name: each for each in graph.initializer}
    users = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    written: list[Any] = []
    merged: set[str] = set()
    of_gelu: set[str] = set()
    for node in graph.node:
        tokens, output = next(iter(node.input), ""), node.output[0]
        if output in merged:
            continue
        if node.op_type == "Gelu" and not any(each.s == b"tanh" for each in node.attribute):
            slope = onnx.numpy_helper.from_array(np.float32(GELU_SLOPE), f"{output}_slope")
            graph.initializer.append(slope)
            nodes = _gelu(tokens, output, slope.name)
            of_gelu.update(each.name for each in nodes)
        elif _is_linear(node, weights) and ranks.get(tokens, 0) > 2:
            kernel = _kernel(weights[node.input[1]], ranks[tokens])
            graph.initializer.append(kernel)
            inputs = [tokens, kernel.name]
            add = _bias_of(node, users, weights)
            if add is not None:
                inputs += [name for name in add.input if name in weights]
                output = add.output[0]
                merged.add(output)
            nodes = _convolution(inputs, output, ranks[tokens])
        else:
            nodes = [node]
        written += nodes
    del graph.node[:]
    graph.node.extend(written)
    return of_gelu


def _ranks(graph: Any) -> dict[str, int]:
    """Number of axes of the graph's tensors, as far as it is known."""
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input)
        if value.type.tensor_type.HasField("shape")
    }


def _is_linear(node: Any, weights: dict[str, Any]) -> bool:
    """Whether a node multiplies by a matrix of weights."""
    weight = weights.get(node.input[1]) if node.op_type == "MatMul" else None
    return weight is not None and len(weight.dims) == 2


def _bias_of(product: Any, users: dict[str, list[Any]], weights: dict[str, Any]) -> Any | None:
    """The node that adds one number for each channel to a product that nothing else uses."""
    following = users[product.output[0]]
    if len(following) != 1 or following[0].op_type != "Add":
        return None
    shapes = [list(weights[name].dims) for name in following[0].input if name in weights]
    channels = weights[product.input[1]].dims[1]
    return following[0] if shapes == [[channels]] else None


def _kernel(weight: Any, rank: int) -> Any:
    """The ``(C, K)`` weights of a product, ``(K, C, 1, ...)``."""
    import onnx

    matrix = onnx.numpy_helper.to_array(weight).T
    values = np.ascontiguousarray(matrix.reshape(*matrix.shape, *[1] * (rank - 2)))
    return onnx.numpy_helper.from_array(values, f"{weight.name}_as_kernel")


def _convolution(inputs: list[str], output: str, rank: int) -> list[Any]:
    """Of tokens, a kernel and perhaps a bias."""
    import onnx

    make = onnx.helper.make_node
    first, last = f"{output}_channels_first", f"{output}_convolved"
    to_first, to_last = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    return [
        make("Transpose", inputs[:1], [first], f"{output}_to_first", perm=to_first),
        make("Conv", [first, *inputs[1:]], [last], f"{output}_conv", kernel_shape=[1] * (rank - 2)),
        make("Transpose", [last], [output], f"{output}_to_last", perm=to_last),
    ]


def _gelu(features: str, output: str, slope: str) -> list[Any]:
    import onnx

    make = onnx.helper.make_node
    scaled, gate = f"{output}_scaled", f"{output}_gate"
    return [
        make("Mul", [features, slope], [scaled], f"{output}_scale"),
        make("Sigmoid", [scaled], [gate], f"{output}_sigmoid"),
        make("Mul", [features, gate], [output], f"{output}_product"),
    ]
