"""Ways to run a network for inference: as it is, compiled, or by OpenVINO on the CPU.

Letters: B batch, C channels, H W rows and columns.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from wavevit.models.folding import fuse
from wavevit.models.openvino_graphs import OpenVinoForms, converted

Runtime: TypeAlias = Literal["eager", "compiled", "cuda-graphs", "openvino"]
RUNTIMES: tuple[str, ...] = get_args(Runtime)

FILLED_AT_MOST = 3
"""How often a batch of one size is filled up before it gets a form of its own."""

Forward: TypeAlias = Callable[[Tensor], Any]


def prepare(model: nn.Module, runtime: str) -> nn.Module:
    """The form of the network that a runtime takes best.

    Args:
        model: Network in evaluation mode.
        runtime: One of `RUNTIMES`.

    Returns:
        A copy with its norms folded (`wavevit.fuse`). For OpenVINO the network itself: it folds
        BatchNorms too, and a LayerNorm without weights loses it two digits (2026.4).
    """
    return model if runtime == "openvino" else fuse(model)


def with_runtime(model: nn.Module, runtime: str = "eager") -> Forward:
    """A function that runs the network on images (B, C, H, W), without gradients.

    All but "eager" are built at the first batch, which takes seconds to minutes, and again for
    images of another size or a larger batch. A smaller batch is filled up with zeros, and gets a
    form of its own the fourth time that it comes.

    Args:
        model: Network in evaluation mode on its device, best after `prepare`; its outputs are
            tensors whose first dimension is the batch.
        runtime: "eager"; "compiled" = `torch.compile`; "cuda-graphs" = compiled and replayed from
            CUDA graphs, which pays for small batches on a GPU; "openvino" = OpenVINO in fp32 on
            the CPU (`pip install "wavevit[export]"`), for networks that return one tensor.

    Raises:
        ValueError: Unknown runtime, one that does not run on the network's device, a network in
            training mode; from the function, that the network cannot be compiled here.
        ImportError: OpenVINO is missing.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"expected a runtime of {', '.join(RUNTIMES)}, got {runtime!r}")
    if model.training:
        raise ValueError("a runtime is for inference: call model.eval() first")
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    if runtime == "cuda-graphs" and device != "cuda":
        raise ValueError(f'runtime "cuda-graphs" needs a CUDA device, got {device}; use "compiled"')
    if runtime == "openvino":
        if device != "cpu":
            raise ValueError(f'runtime "openvino" runs on the CPU, got {device}; use "compiled"')
        return _FixedBatch(_OpenVino(model))
    if runtime == "eager":
        return torch.inference_mode()(model.__call__)
    return _FixedBatch(_Compiled(model, "reduce-overhead" if runtime == "cuda-graphs" else None))


class _FixedBatch:
    """Fills a batch of a new size up to one that is built already, unless the size comes often.

    So the last batch of a data set costs no build, and single images after a large batch do not
    cost a large one for ever.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._built: dict[tuple[Any, ...], set[int]] = {}
        self._filled: Counter[tuple[Any, ...]] = Counter()

    def __call__(self, images: Tensor) -> Any:
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"expected images (B, C, H, W) with B >= 1, got {tuple(images.shape)}")
        count, kind = len(images), (images.shape[1:], images.dtype)
        built = self._built.setdefault(kind, set())
        size = min((size for size in built if size >= count), default=count)
        if size > count:
            self._filled[kind, count] += 1
            if self._filled[kind, count] > FILLED_AT_MOST:
                size = count
        built.add(size)
        if size == count:
            return self._forward(images)
        filled = torch.cat((images, images.new_zeros(size - count, *images.shape[1:])))
        return tree_map(lambda output: output[:count], self._forward(filled))


class _Compiled:
    """`torch.compile`, its failures in one line."""

    def __init__(self, model: nn.Module, mode: str | None) -> None:
        self._forward = torch.compile(model, mode=mode, dynamic=False)
        self._copies = mode is not None  # the next replay overwrites what CUDA graphs return
        from torch._dynamo.exc import TorchDynamoException  # slow to import

        self._failure = TorchDynamoException

    def __call__(self, images: Tensor) -> Any:
        try:
            with torch.inference_mode():
                outputs = self._forward(images)
                return tree_map(torch.clone, outputs) if self._copies else outputs
        except self._failure as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f'the network cannot be compiled here ({reason}); use runtime "eager", or on a CPU '
                "install a C++ compiler (g++)"
            ) from error


class _OpenVino:
    """Runs a network with OpenVINO, one compiled form per shape of the input."""

    def __init__(self, model: nn.Module) -> None:
        try:
            self._forms = OpenVinoForms(self._convert)
        except ImportError as error:
            raise ImportError(f'runtime "openvino" needs {error}') from error
        self._model = model

    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype != torch.float32:
            raise ValueError(f'runtime "openvino" takes float32 images, got {images.dtype}')
        return self._forms(images)[0]

    def _convert(self, images: Tensor) -> Any:
        # Of two images and any batch, even where one is to be run: in a graph of one image
        # OpenVINO (2026.4) mistakes the layout of maps and takes twice as long.
        example = images.detach() if len(images) > 1 else images.detach().repeat(2, 1, 1, 1)
        with torch.inference_mode():
            outputs = self._model(example)  # what the network itself cannot take, it says here
        if not isinstance(outputs, Tensor):
            raise ValueError(
                'runtime "openvino" is for networks that return one tensor, got '
                f'{type(outputs).__name__}; use "compiled"'
            )
        batch = torch.export.Dim("batch", min=1, max=1 << 20)
        with torch.no_grad():
            try:
                program = torch.export.export(
                    self._model, (example,), dynamic_shapes=({0: batch},), strict=False
                )
            except (torch._dynamo.exc.UserError, ValueError) as error:
                raise ValueError(
                    'runtime "openvino" needs a network that torch.export takes with any batch '
                    f'({str(error).strip().splitlines()[0]}); use "compiled" or "eager"'
                ) from error
        try:
            return converted(program)
        except ValueError as error:
            raise ValueError(f'{error}; use "compiled" or "eager"') from error
