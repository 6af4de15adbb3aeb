"""Parts as programs of `torch.export`, for any batch and, where the network allows, any size."""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from wavevit.export.parts import Flat, Part, with_fixed_size


@dataclass(frozen=True)
class Program:
    """A part, exported.

    Attributes:
        part: The part, with the axes that may have any length.
        exported: Takes the part's arguments, returns a tuple of tensors.
        output_names: Of these tensors.
        shapes: Of each argument: lengths, or the name of an axis.
        least: Least length of named axes; any length of the others will do.
    """

    part: Part
    exported: ExportedProgram
    output_names: tuple[str, ...]
    shapes: tuple[tuple[int | str, ...], ...]
    least: dict[str, int]


def program_of(module: nn.Module, part: Part, image_size: tuple[int, int]) -> Program:
    """The program of a part.

    Args:
        module: The part's module, in evaluation mode.
        part: The part.
        image_size: H and W that a classifier is made for, taken where it refuses others; pixels.

    Raises:
        ValueError: torch cannot export the network with a batch of any size.
    """
    flat = Flat(module, part.outputs).eval()
    is_classifier = not part.path
    try:
        program = _program(flat, part)
    except _REFUSALS as error:
        if not is_classifier:
            raise ValueError(_reason(error)) from error
    else:
        sides = zip(("height", "width"), image_size, strict=True)
        # A program for maps of two rows and more does not take what a small network is made for.
        if not is_classifier or all(program.least.get(name, 1) <= side for name, side in sides):
            return program
    try:
        return _program(flat, with_fixed_size(part, image_size))
    except _REFUSALS as error:
        raise ValueError(_reason(error)) from error


_REFUSALS = (RuntimeError, ValueError, AssertionError, torch._dynamo.exc.TorchDynamoException)


def _reason(error: Exception) -> str:
    return f"torch.export does not take the network for any batch and size: {first_line(error)}"


def first_line(error: Exception) -> str:
    """What an error says first, or its kind where it says nothing.

    Args:
        error: Of an exporter or a runtime, which say much.
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _program(flat: Flat, part: Part) -> Program:
    axes = tuple(dict.fromkeys(of_input, Dim.AUTO) for of_input in part.axes)
    with torch.no_grad(), quiet():
        results = flat.named(*part.example)
        exported = export(flat, part.example, dynamic_shapes=(axes,), strict=False)
    users = set(exported.graph_signature.user_inputs)
    values = [
        node.meta["val"]
        for node in exported.graph.nodes
        if node.op == "placeholder" and node.name in users
    ]
    maps = [tensor for _, tensor in results if tensor.ndim == 4]
    shapes: list[tuple[int | str, ...]] = []
    least: dict[str, int] = {}
    for value, example, of_input in zip(values, part.example, part.axes, strict=True):
        shape: list[int | str] = []
        for axis, length in enumerate(value.shape):
            # A symbol that has turned out to be a number is still a SymInt.
            if not isinstance(length, torch.SymInt) or length.node.maybe_as_int() is not None:
                if axis in of_input:
                    raise ValueError(f"the {of_input[axis]} has to be {length}")
                shape.append(int(length))
                continue
            name = of_input[axis]
            shape.append(name)
            if name in ("height", "width"):
                least[name] = _least(exported, length, example.shape[axis], maps)
        shapes.append(tuple(shape))
    return Program(part, exported, tuple(name for name, _ in results), tuple(shapes), least)


def _least(
    program: ExportedProgram, length: torch.SymInt, side: int, maps: Sequence[Tensor]
) -> int:
    """The least side that the program was exported for.

    A map of one row or column is a constant to torch, so every map has two or more.
    """
    constraint = program.range_constraints.get(length.node.expr)
    bound = 1 if constraint is None else int(constraint.lower)
    stride = max(
        (2 ** round(math.log2(side / min(m.shape[2:]))) for m in maps),
        default=1,
    )
    return max(bound, stride + 1)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, the exporters' own warnings, which a user can do nothing about, are not shown."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
