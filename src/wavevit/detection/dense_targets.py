"""What the cells of a batch are trained towards.

An image smaller than the batch's canvas has cells beyond its own padding; they are left out here,
so that losses need no weights for them.

Legend: B images, L levels, A anchors of a cell, N anchors of all images, P positives among them,
G objects of an image.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wavevit.detection.anchors import AnchorGenerator
from wavevit.detection.max_iou_assigner import Assignment
from wavevit.detection.preprocess import ImageBatch
from wavevit.detection.targets import Target

# Rows and columns in use, of every level.
Cells = list[tuple[int, int]]
# From the anchors (n, 4) of every level and ground-truth boxes (G, 4), both xyxy.
DenseAssigner = Callable[[Sequence[Tensor], Tensor], Assignment]


class DenseTruth(NamedTuple):
    """Targets of the anchors of a batch: image after image, level after level.

    Attributes:
        labels: int64 ``(N,)``: class, `NEGATIVE` or `IGNORED`.
        positives: int64 ``(P,)``: indices of the anchors with an object.
        anchors: fp32 ``(P, 4)``: the positive anchors, xyxy.
        strides: fp32 ``(P,)``: strides of their levels.
        boxes: fp32 ``(P, 4)``: the boxes of their objects, xyxy.
        num_positives: fp32 scalar: positives of the batch, an image without one counted as 1.
    """

    labels: Tensor
    positives: Tensor
    anchors: Tensor
    strides: Tensor
    boxes: Tensor
    num_positives: Tensor


def own_cells(maps: Sequence[Tensor], batch: ImageBatch, generator: AnchorGenerator) -> list[Cells]:
    """The cells of every image within its own padding, at the upper left of each map.

    Args:
        maps: A map ``(B, C, H, W)`` of every level.
        batch: The images.
        generator: Knows the levels' strides.
    """
    return [
        [
            (min(rows, m.shape[-2]), min(columns, m.shape[-1]))
            for (rows, columns), m in zip(generator.cells_inside(size), maps, strict=True)
        ]
        for size in batch.padded_sizes
    ]


def gather_cells(maps: Sequence[Tensor], cells_per_image: Sequence[Cells], channels: int) -> Tensor:
    """A head's values fp32 ``(N, channels)``, in the order of `DenseTruth`.

    Args:
        maps: A map ``(B, A * channels, H, W)`` of every level.
        cells_per_image: The cells to take of every image.
        channels: Values of an anchor.
    """
    # Taken apart at once: the gradient of every single index would be as large as the whole map.
    images_per_level = [features.unbind() for features in maps]
    parts = []
    for image, cells in enumerate(cells_per_image):
        for images, size in zip(images_per_level, cells, strict=True):
            features = images[image]
            if features.shape[1:] != size:
                features = features[:, : size[0], : size[1]]
            parts.append(features.permute(1, 2, 0).reshape(-1, channels))
    return torch.cat(parts).float()


def match_cells(
    generator: AnchorGenerator,
    assigner: DenseAssigner,
    cells_per_image: Sequence[Cells],
    targets: Sequence[Target],
) -> DenseTruth:
    """Assigns objects to the anchors of a batch.

    Args:
        generator: Makes the anchors.
        assigner: Decides which anchor answers for which object.
        cells_per_image: The cells of every image that take part.
        targets: Objects of every image.
    """
    device = targets[0]["boxes"].device
    anchors_of: dict[tuple[tuple[int, int], ...], list[Tensor]] = {}
    all_anchors, all_matched, first_object = [], [], 0
    counts = []
    for cells, target in zip(cells_per_image, targets, strict=True):
        key = tuple(cells)
        if key not in anchors_of:
            anchors_of[key] = generator(cells, device)
        matched = assigner(anchors_of[key], target["boxes"]).matched
        counts.append((matched >= 0).sum().clamp(min=1))
        all_matched.append(torch.where(matched >= 0, matched + first_object, matched))
        all_anchors += anchors_of[key]
        first_object += len(target["boxes"])
    matched = torch.cat(all_matched)
    objects = torch.cat([target["labels"] for target in targets])
    boxes = torch.cat([target["boxes"] for target in targets])
    positives = (matched >= 0).nonzero().squeeze(1)
    positive_objects = matched[positives]
    labels = matched.clone()
    labels[positives] = objects[positive_objects]
    strides = torch.cat(
        [
            anchors.new_full((len(anchors),), stride)
            for anchors, stride in zip(all_anchors, generator.strides * len(targets), strict=True)
        ]
    )
    return DenseTruth(
        labels=labels,
        positives=positives,
        anchors=torch.cat(all_anchors)[positives],
        strides=strides[positives],
        boxes=boxes[positive_objects],
        num_positives=torch.stack(counts).sum().float(),
    )
