"""Whether all that the layers of a detector gave for an image was finite.

Detections do not tell: a score of NaN is above no threshold, and the image would look empty.

Legend: B images of a batch, R regions of the batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wavevit.detection.detector import Detector
from wavevit.detection.roi_pooling import RoIPooling


class FiniteOutputs:
    """Collects, while a detector runs, which images of the batch got a number that is not finite.

    It looks at the network and at every head after it. Their outputs have a row for each image, or
    one for each of the regions that were pooled last.
    """

    def __init__(self) -> None:
        self._bad_images: list[Tensor] = []
        self._num_images = 0
        self._image_of_region: Tensor | None = None

    def per_image(self) -> list[bool]:
        """For each image of the batch, whether all was finite."""
        if not self._bad_images:
            return []
        found: list[bool] = torch.stack(self._bad_images).any(dim=0).logical_not().tolist()
        return found

    def look_at_network(self, module: nn.Module, arguments: Any, outputs: Any) -> None:
        """A forward hook of the network, which runs first and whose outputs are ``(B, ...)``.

        Args:
            module: The network.
            arguments: Its arguments.
            outputs: What it gave.
        """
        tensors = _tensors(outputs)
        self._num_images = len(tensors[0])
        self._bad_images.append(torch.stack([_is_bad(t) for t in tensors]).any(dim=0))

    def look_at_regions(self, module: nn.Module, arguments: Any, outputs: Any) -> None:
        """A forward hook of a pooling: the heads that follow see these regions.

        Args:
            module: A `RoIPooling`.
            arguments: The maps, and ``(R, 5)`` regions with their image's index in front.
            outputs: Not looked at; of finite maps they are finite.
        """
        self._image_of_region = arguments[1][:, 0].long()

    def look_at_head(self, module: nn.Module, arguments: Any, outputs: Any) -> None:
        """A forward hook of a head, whose outputs are ``(B, ...)`` or ``(R, ...)``.

        Args:
            module: The head.
            arguments: Its arguments.
            outputs: What it gave.
        """
        for tensor in _tensors(outputs):
            is_bad = _is_bad(tensor)
            if len(is_bad) != self._num_images:
                assert self._image_of_region is not None
                count = is_bad.new_zeros(self._num_images, dtype=torch.float32)
                is_bad = count.index_add(0, self._image_of_region, is_bad.float()) > 0
            self._bad_images.append(is_bad)


@contextmanager
def finite_outputs(detector: Detector) -> Iterator[FiniteOutputs]:
    """Watches one pass of a detector in evaluation mode, run inside.

    Args:
        detector: As it was, afterwards.

    Yields:
        What knows, after the pass, which images got only finite numbers.
    """
    watch = FiniteOutputs()
    handles = [detector.network.register_forward_hook(watch.look_at_network)]
    for child in detector.children():
        for module in child if isinstance(child, nn.ModuleList) else [child]:
            if isinstance(module, RoIPooling):
                handles.append(module.register_forward_hook(watch.look_at_regions))
            elif module is not detector.network and _has_weights(module):
                handles.append(module.register_forward_hook(watch.look_at_head))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def _has_weights(module: nn.Module) -> bool:
    """Whether it computes with weights, be they in an exported file."""
    return hasattr(module, "stands_for_weights") or next(module.parameters(), None) is not None


def _is_bad(tensor: Tensor) -> Tensor:
    """bool, for each row: whether something in it is not finite."""
    sums = tensor.flatten(1).sum(dim=1, dtype=torch.float32)
    return sums.isfinite().logical_not()


def _tensors(nested: Any) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    return [tensor for part in nested for tensor in _tensors(part)]
