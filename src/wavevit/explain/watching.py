"""A model run to be looked at, and left as it was.

Legend: B images, H W rows and columns.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wavevit.detection.detector import Detector


def plain(model: nn.Module) -> nn.Module:
    """The network inside of `torch.compile`'s wrapper, which calls no hooks; else the model.

    Args:
        model: Any network.
    """
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; then every module is in its own again.

    Args:
        model: Any network.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def differentiating(model: nn.Module) -> Iterator[None]:
    """Inside, gradients can be taken, also within `torch.no_grad` and `torch.inference_mode`.

    Args:
        model: The network.

    Raises:
        ValueError: Its parameters were made in inference mode and can have no gradients.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "the model was made inside torch.inference_mode(), so gradients cannot pass through "
            "it; build or load it outside"
        )
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def outputs_of(*modules: nn.Module) -> Iterator[list[list[Any]]]:
    """Inside, what the modules return is kept.

    Args:
        *modules: Of a model that will be run.

    Yields:
        A list for each module, with its output at each call.
    """
    kept: list[list[Any]] = [[] for _ in modules]
    with ExitStack() as stack:
        for module, outputs in zip(modules, kept, strict=True):
            stack.enter_context(hooked(module, _keeper(outputs)))
        yield kept


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Inside, a forward hook is called.

    Args:
        module: Where.
        hook: As of `register_forward_hook`.
    """
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def look(model: nn.Module, images: Tensor) -> None:
    """Runs a model in evaluation mode, without gradients, for its hooks' sake.

    Args:
        model: Any network.
        images: ``(B, C, H, W)``.

    Raises:
        ValueError: Not four dimensions, or no images.
    """
    with torch.no_grad(), evaluating(model):
        inputs = own_images(model, images)
        model(list(inputs) if isinstance(model, Detector) else inputs)


def own_images(model: nn.Module, images: Tensor) -> Tensor:
    """A copy of images on the model's device, which gradients can pass through.

    Args:
        model: Whose device it is.
        images: ``(B, C, H, W)``.

    Raises:
        ValueError: Not four dimensions, or no images.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or 0 in images.shape:
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"expected normalised images (B, 3, H, W), got {shape}; one image is images[None]"
        )
    reference = next(model.parameters(), None)
    device = images.device if reference is None else reference.device
    return images.detach().to(device, copy=True)


def _keeper(outputs: list[Any]) -> Callable[..., None]:
    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        outputs.append(output)

    return keep
