"""The mask of a pooled region (Mask R-CNN, arXiv 1703.06870, section 3), its targets and loss.

Legend: B batch, R regions, C channels, S side of the pooled square, M = 2 S side of the mask,
K classes, G ground truths and N detections of an image, H W rows and columns of a map or an image.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from wavevit.detection.mask_paste import paste_masks
from wavevit.detection.regions import RegionSample
from wavevit.detection.roi_pooling import RoIPooling, join_regions
from wavevit.detection.targets import Target

_FLOAT_MASK_BYTES = 64 * 2**20  # of ground-truth masks that are float at once


class MaskHead(nn.Module):
    """Four 3x3 convolutions, one upsampling, one logit a class.

    Args:
        in_channels: Channels C of the pooled features.
        num_classes: Classes K.
        num_convs: 3x3 convolutions.
        conv_channels: Their width.
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, num_convs: int = 4, conv_channels: int = 256
    ) -> None:
        super().__init__()
        channels = [in_channels] + [conv_channels] * num_convs
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, kernel_size=3, padding=1) for c_in, c_out in pairwise(channels)
        )
        self.upsample = nn.ConvTranspose2d(channels[-1], conv_channels, kernel_size=2, stride=2)
        self.logits = nn.Conv2d(conv_channels, num_classes, kernel_size=1)
        for layer in (*self.convs, self.upsample, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mask logits of every class, ``(R, K, M, M)``, or of one a region, ``(R, M, M)``.

        Args:
            pooled: ``(R, C, S, S)``.
            labels: int64 ``(R,)`` in [0, K): the class of each region; the others' logits are not
                computed. None takes all classes.
        """
        features = self._features(pooled)
        if labels is None:
            return self.logits(features)
        weight = self.logits.weight.flatten(1)[labels]
        assert self.logits.bias is not None
        logits = torch.bmm(weight[:, None], features.flatten(2)).squeeze(1)
        logits = logits + self.logits.bias[labels, None]
        return logits.unflatten(1, features.shape[2:])

    def _features(self, pooled: Tensor) -> Tensor:
        for conv in self.convs:
            pooled = F.relu(conv(pooled), inplace=True)
        return F.relu(self.upsample(pooled), inplace=True)


def mask_targets(masks: Tensor, boxes_xyxy: Tensor, gt_index: Tensor, mask_size: int) -> Tensor:
    """What the mask of each region should be, float32 0 or 1, ``(R, M, M)``.

    The ground truth's mask is averaged over the cells of the box, and a cell counts from one half
    (Mask R-CNN, section 3: "the intersection between an RoI and its associated mask").

    Args:
        masks: uint8 or bool ``(G, H, W)``.
        boxes_xyxy: ``(R, 4)`` pixels; the part inside the image is taken.
        gt_index: int64 ``(R,)`` ground truth of each region.
        mask_size: M.
    """
    if len(boxes_xyxy) == 0:
        return boxes_xyxy.new_zeros((0, mask_size, mask_size), dtype=torch.float32)
    H, W = masks.shape[1:]
    limit = boxes_xyxy.new_tensor([W, H, W, H], dtype=torch.float32)
    boxes = torch.minimum(boxes_xyxy.float().clamp(min=0), limit)
    # Only masks that some region asks for become float, once each and few at a time: those of a
    # crowded image would be gigabytes.
    used, index = torch.unique(gt_index, return_inverse=True)
    count = max(_FLOAT_MASK_BYTES // (4 * H * W), 1)
    covered = boxes.new_empty(len(boxes), mask_size, mask_size)
    for start in range(0, len(used), count):
        chosen = (index // count == start // count).nonzero().flatten()
        of_chunk = index[chosen, None] - start
        regions = torch.cat([of_chunk.to(boxes.dtype), boxes[chosen]], dim=1)
        part = masks[used[start : start + count], None].float()
        covered[chosen] = roi_align(part, regions, mask_size, 1.0, 0, True)[:, 0]
    return (covered >= 0.5).float()


def mask_loss(
    head: nn.Module,
    pooling: RoIPooling,
    features_per_level: Sequence[Tensor],
    samples: Sequence[RegionSample],
    targets: Sequence[Target],
) -> Tensor:
    """Binary cross-entropy of the true class's mask, mean over the cells of all positive regions.

    Without any it is 0, and the head's gradients are zeros.

    Args:
        head: A `MaskHead`.
        pooling: Cuts their features out.
        features_per_level: Levels of the pyramid, ``(B, C, H, W)``.
        samples: Regions of each image.
        targets: Ground truth of each image, with masks.
    """
    regions = join_regions([sample.positive_boxes for sample in samples])
    labels = torch.cat([sample.labels[: sample.num_positive] for sample in samples])
    logits = head(pooling(features_per_level, regions), labels).float()
    expected = [
        mask_targets(target["masks"], sample.positive_boxes, sample.gt_index, logits.shape[-1])
        for sample, target in zip(samples, targets, strict=True)
    ]
    total = F.binary_cross_entropy_with_logits(logits, torch.cat(expected), reduction="sum")
    return total / max(logits.numel(), 1)


def add_masks(
    detections: Sequence[dict[str, Tensor]],
    heads: Iterable[nn.Module],
    pooling: RoIPooling,
    features_per_level: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
) -> None:
    """Gives each image's detections their "masks", float32 ``(N, H, W)`` probabilities.

    Args:
        detections: "boxes" and "labels" of each image.
        heads: `MaskHead` modules, whose probabilities are averaged.
        pooling: Cuts the features out.
        features_per_level: Levels of the pyramid, ``(B, C, H, W)``.
        sizes: H and W of each image, pixels.
    """
    boxes_per_image = [detection["boxes"] for detection in detections]
    labels = torch.cat([detection["labels"] for detection in detections])
    pooled = pooling(features_per_level, join_regions(boxes_per_image))
    of_heads = [head(pooled, labels).float().sigmoid() for head in heads]
    probabilities = torch.stack(of_heads).mean(dim=0).split([len(b) for b in boxes_per_image])
    for detection, of_image, size in zip(detections, probabilities, sizes, strict=True):
        detection["masks"] = paste_masks(of_image, detection["boxes"], size)
