"""The tensor-only parts of a model: what is exported, and what stays Python around it.

A classifier or a segmenter is one part. A detector is its network, and each head that sees pooled
regions; anchors, decoding, pooling and suppression stay what they are.

Legend: B images of a batch, H W rows and columns of an image, R regions of a batch, P proposals of
an image, C channels, S side of a pooled square.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from wavevit.detection.atss import ATSS
from wavevit.detection.cascade_mask_rcnn import CascadeMaskRCNN
from wavevit.detection.detector import Detector
from wavevit.detection.fpn import FPN
from wavevit.detection.gfl import GFL
from wavevit.detection.mask_rcnn import MaskRCNN
from wavevit.detection.retinanet import RetinaNet
from wavevit.detection.roi_pooling import RoIPooling
from wavevit.detection.rpn import Pyramid, RPNNetwork
from wavevit.detection.sparse_rcnn import SparseRCNN
from wavevit.segmentation.segmenter import Segmenter

_SIDES = (224, 288)  # of the example: above 128 and not equal, so that no side becomes a constant
_EXAMPLE_REGIONS = 5

Axes = dict[int, str]
# Of tensors and lists of tensors that a network returns without names of its own.
_DENSE_OUTPUTS = {
    RetinaNet: ("cls_logits", "box_deltas"),
    ATSS: ("cls_logits", "box_deltas", "centerness"),
    GFL: ("cls_logits", "box_distributions"),
}


@dataclass(frozen=True)
class Part:
    """A module of a model that is exported as one graph.

    Attributes:
        path: Of the module in the model; "" is the model itself.
        inputs: Names of the arguments.
        outputs: Names of the results; each is a tensor or a list of them.
        example: Arguments of the kind and number of dimensions that come.
        axes: Name of each axis of each argument that may have any length.
    """

    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: tuple[Tensor, ...]
    axes: tuple[Axes, ...]

    @property
    def name(self) -> str:
        """Of its files, without an ending."""
        return self.path.replace(".", "_") or "network"


def parts_of(model: nn.Module, image_size: tuple[int, int]) -> list[Part]:
    """The parts of a model.

    Args:
        model: Detector, segmenter or classifier, in evaluation mode.
        image_size: H and W that a classifier is made for, pixels.
    """
    if isinstance(model, Detector):
        return [_images("network", _outputs(model), _SIDES, model), *_region_parts(model)]
    if isinstance(model, Segmenter):
        return [_images("network", ("logits",), _SIDES, model)]
    H, W = image_size
    return [_images("", ("logits",), (H, W + 32), model)]


def with_fixed_size(part: Part, image_size: tuple[int, int]) -> Part:
    """The part for images of one size, which some networks insist on.

    Args:
        part: Takes images.
        image_size: H and W, pixels.
    """
    H, W = image_size
    example = part.example[0].new_zeros(2, 3, H, W)
    return replace(part, example=(example,), axes=({0: "batch"},))


def _images(path: str, outputs: tuple[str, ...], size: tuple[int, int], model: nn.Module) -> Part:
    device = next(model.parameters()).device
    example = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    axes = {0: "batch", 2: "height", 3: "width"}
    return Part(path, ("images",), outputs, (example.to(device),), (axes,))


def _outputs(detector: Detector) -> tuple[str, ...]:
    for kind, names in _DENSE_OUTPUTS.items():
        if isinstance(detector, kind):
            return names
    return ("features",) if isinstance(detector, SparseRCNN) else Pyramid._fields


def _region_parts(detector: Detector) -> list[Part]:
    """Of the heads behind the pooling."""
    if isinstance(detector, SparseRCNN):
        return _proposal_parts(detector)
    if isinstance(detector, MaskRCNN):
        box_heads = ["box_head"]
        mask_heads = [] if detector.mask_head is None else ["mask_head"]
    elif isinstance(detector, CascadeMaskRCNN):
        box_heads = [f"box_heads.{i}" for i in range(len(detector.box_heads))]
        mask_heads = [f"mask_heads.{i}" for i in range(len(detector.mask_heads))]
    else:
        return []
    boxes = _pooled(detector, detector.box_pooling)
    masks = _pooled(detector, detector.mask_pooling)
    labels = masks.new_zeros(len(masks), dtype=torch.int64)
    rows = {0: "regions"}
    return [
        *(Part(path, ("pooled",), ("logits", "deltas"), (boxes,), (rows,)) for path in box_heads),
        *(
            Part(path, ("pooled", "labels"), ("mask_logits",), (masks, labels), (rows, rows))
            for path in mask_heads
        ),
    ]


def _proposal_parts(detector: SparseRCNN) -> list[Part]:
    of_image = detector.proposals.features[None].detach()
    features = torch.cat([of_image, of_image])  # (B, P, C)
    pooled = _pooled(detector, detector.pooling)[:1].repeat(features[..., 0].numel(), 1, 1, 1)
    return [
        Part(
            f"heads.{i}",
            ("features", "pooled"),
            ("logits", "deltas", "new_features"),
            (features, pooled),
            ({0: "batch"}, {0: "regions"}),
        )
        for i in range(len(detector.heads))
    ]


def _pooled(detector: Detector, pooling: RoIPooling) -> Tensor:
    """Regions ``(R, C, S, S)``."""
    weight = next(detector.network.parameters())
    neck = detector.network.neck
    assert isinstance(neck, FPN)
    C, S = neck.out_channels, pooling.output_size
    return torch.randn(_EXAMPLE_REGIONS, C, S, S, generator=torch.Generator().manual_seed(0)).to(
        weight.device
    )


class Flat(nn.Module):
    """A part whose results are one tuple of tensors.

    Args:
        module: The part.
        names: Of its results, each a tensor or a list of them.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The tensors, in the order of their names.

        Args:
            *inputs: Of the part.
        """
        return tuple(tensor for _, tensor in self.named(*inputs))

    def named(self, *inputs: Tensor) -> list[tuple[str, Tensor]]:
        """Each tensor with its name; those of a list are numbered: "cls_logits_0".

        Args:
            *inputs: Of the part.
        """
        results = self.module(*inputs)
        if len(self.names) == 1:
            results = (results,)
        found: list[tuple[str, Tensor]] = []
        for name, result in zip(self.names, results, strict=True):
            if isinstance(result, Tensor):
                found.append((name, result))
            else:
                found += [(f"{name}_{i}", tensor) for i, tensor in enumerate(result)]
        return found


def restored(kind: type[nn.Module], names: Sequence[str], tensors: Sequence[Tensor]) -> Any:
    """The results of a part as the part itself returns them.

    Args:
        kind: Of the part.
        names: From `Flat.named`.
        tensors: In the same order.
    """
    results: list[Any] = []
    last = None
    for name, tensor in zip(names, tensors, strict=True):
        group, _, number = name.rpartition("_")
        if not number.isdigit():
            results.append(tensor)
        elif group == last:
            results[-1].append(tensor)
        else:
            results.append([tensor])
        last = group
    if issubclass(kind, RPNNetwork):
        return Pyramid(*results)
    return results[0] if len(results) == 1 else tuple(results)
