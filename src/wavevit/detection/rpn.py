"""Region proposal network (Ren et al. 2015, arXiv 1506.01497, section 3.1) on a feature pyramid.

Legend: B images of a batch, C channels, H W rows and columns of a level's map, A anchors of a cell,
L levels, N anchors of an image, P proposals of an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from wavevit.detection.anchors import AnchorGenerator, inside_image
from wavevit.detection.box_coder import DeltaBoxCoder
from wavevit.detection.dense_head import flatten_map, map_sizes
from wavevit.detection.max_iou_assigner import NEGATIVE, MaxIoUAssigner
from wavevit.detection.preprocess import ImageBatch
from wavevit.detection.proposal_sampler import RandomSampler
from wavevit.detection.targets import Target

ANCHOR_SCALES = (8.0,)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)


class Pyramid(NamedTuple):
    """What the network of a two-stage detector makes of a batch of images.

    Attributes:
        features: Maps ``(B, C, H, W)`` of each level, finest first.
        objectness: Logits ``(B, A, H, W)`` of each level.
        deltas: Box deltas ``(B, 4 A, H, W)`` of each level.
    """

    features: list[Tensor]
    objectness: list[Tensor]
    deltas: list[Tensor]


class RPNHead(nn.Module):
    """A 3x3 convolution, then objectness and box deltas of each anchor; shared by all levels.

    Args:
        channels: Channels C of the maps.
        num_anchors: Anchors A of a cell.
    """

    def __init__(self, channels: int, num_anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.objectness = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.deltas = nn.Conv2d(channels, 4 * num_anchors, kernel_size=1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, features_per_level: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness logits ``(B, A, H, W)`` and box deltas ``(B, 4 A, H, W)`` of each level.

        Args:
            features_per_level: Maps ``(B, C, H, W)``.
        """
        objectness, deltas = [], []
        for features in features_per_level:
            hidden = F.relu(self.conv(features), inplace=True)
            objectness.append(self.objectness(hidden))
            deltas.append(self.deltas(hidden))
        return objectness, deltas


class RPNNetwork(nn.Module):
    """Backbone, neck and proposal head: tensors in, tensors out.

    Args:
        backbone: Maps of images, finest first.
        neck: Levels of one width from these maps.
        rpn_head: Objectness and box deltas of the levels.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module, rpn_head: RPNHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.rpn_head = rpn_head

    def forward(self, images: Tensor) -> Pyramid:
        """Levels, objectness and box deltas.

        Args:
            images: Normalised and padded ``(B, 3, H, W)``.
        """
        features = self.neck(self.backbone(images))
        return Pyramid(features, *self.rpn_head(features))


class ProposalSettings(NamedTuple):
    """How proposals are chosen among the anchors.

    Attributes:
        num_before_nms: Best anchors of each level that are looked at.
        num_after_nms: Best proposals of an image that are kept.
        nms_iou: A box that overlaps a better one of its level by more than this is dropped.
    """

    num_before_nms: int = 1000
    num_after_nms: int = 1000
    nms_iou: float = 0.7


class Proposals(NamedTuple):
    """The proposals of one image, best first.

    Attributes:
        boxes: fp32 ``(P, 4)``, xyxy in pixels, inside the image.
        scores: fp32 ``(P,)``, probability of an object.
    """

    boxes: Tensor
    scores: Tensor


class RegionProposer:
    """From the head's output to losses and proposals; has no parameters.

    Args:
        strides: Pixels per cell of every level.
        for_training: Choice of proposals in training.
        for_testing: Choice of proposals in evaluation.
        assigner: Which anchors answer for which ground truth.
        sampler: Which anchors are learned from.
        only_inside: Anchors that reach over the image's border are not learned from.
        smooth_l1_beta: Where the box loss turns from quadratic to linear; 0 is L1.
    """

    def __init__(
        self,
        strides: Sequence[int],
        *,
        for_training: ProposalSettings,
        for_testing: ProposalSettings,
        assigner: MaxIoUAssigner,
        sampler: RandomSampler,
        only_inside: bool = False,
        smooth_l1_beta: float = 0.0,
    ) -> None:
        self.anchors = AnchorGenerator(strides, ANCHOR_SCALES, ANCHOR_RATIOS)
        self.coder = DeltaBoxCoder()
        self.for_training = for_training
        self.for_testing = for_testing
        self.assigner = assigner
        self.sampler = sampler
        self.only_inside = only_inside
        self.smooth_l1_beta = smooth_l1_beta

    def losses(
        self, pyramid: Pyramid, batch: ImageBatch, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Binary cross-entropy and box loss of the sampled anchors, both over their number.

        Args:
            pyramid: Output of the network.
            batch: The images.
            targets: Ground truth of each image.
        """
        sizes = map_sizes(pyramid.objectness)
        anchors = torch.cat(self.anchors(sizes, batch.tensor.device))
        positive: list[Tensor] = []
        negative: list[Tensor] = []
        wanted: list[Tensor] = []
        for image, target in enumerate(targets):
            valid = self._valid_anchors(anchors, sizes, batch, image)
            candidates = anchors if valid is None else anchors[valid]
            matched = self.assigner(candidates, target["boxes"]).matched
            sample = self.sampler(matched >= 0, matched == NEGATIVE)
            gt_boxes = target["boxes"][matched[sample.positive]]
            wanted.append(self.coder.encode(candidates[sample.positive], gt_boxes))
            for places, indices in ((positive, sample.positive), (negative, sample.negative)):
                # Among the anchors of the whole batch, image after image.
                of_image = indices if valid is None else valid[indices]
                places.append(of_image + image * len(anchors))
        sampled = torch.cat(positive + negative)
        num_positive = sum(len(of_image) for of_image in positive)
        logits = _of_batch(pyramid.objectness, 1)[sampled].squeeze(1).float()
        deltas = _of_batch(pyramid.deltas, 4)[sampled[:num_positive]].float()
        is_object = torch.zeros_like(logits)
        is_object[:num_positive] = 1
        cls_loss = F.binary_cross_entropy_with_logits(logits, is_object, reduction="sum")
        box_loss = F.smooth_l1_loss(
            deltas, torch.cat(wanted), reduction="sum", beta=self.smooth_l1_beta
        )
        # Both over all sampled anchors, as published, not over the positives alone.
        count = max(len(sampled), 1)
        return {"loss_rpn_cls": cls_loss / count, "loss_rpn_box": box_loss / count}

    def _valid_anchors(
        self, anchors: Tensor, sizes: Sequence[tuple[int, int]], batch: ImageBatch, image: int
    ) -> Tensor | None:
        """Indices of the anchors that one image may learn from; None stands for all.

        Those on cells beyond the image's own padding belong to the batch's canvas only.
        """
        valid = None
        reached = self.anchors.cells_inside(batch.padded_sizes[image])
        if reached != list(sizes):
            per_level = zip(reached, sizes, strict=True)
            valid = torch.cat([self._first_cells(*level, anchors.device) for level in per_level])
        if self.only_inside:
            inside = inside_image(anchors, batch.sizes[image])
            valid = inside if valid is None else inside & valid
        return None if valid is None else valid.nonzero().flatten()

    def _first_cells(
        self, cells: tuple[int, int], size: tuple[int, int], device: torch.device
    ) -> Tensor:
        """Which anchors of a map of this size lie on its first so many rows and columns; bool."""
        in_rows = torch.arange(size[0], device=device) < cells[0]
        in_columns = torch.arange(size[1], device=device) < cells[1]
        on_cells = (in_rows[:, None] & in_columns).flatten()
        return on_cells.repeat_interleave(self.anchors.num_per_cell)

    @torch.no_grad()
    def proposals(
        self, pyramid: Pyramid, image_sizes: Sequence[tuple[int, int]], *, training: bool
    ) -> list[Proposals]:
        """The proposals of each image.

        In training an image on which none is left proposes itself, so that what follows sees at
        least one region of every image on every process.

        Args:
            pyramid: Output of the network.
            image_sizes: H and W of each image, pixels.
            training: Takes the settings of training.
        """
        settings = self.for_training if training else self.for_testing
        anchors = self.anchors(map_sizes(pyramid.objectness), pyramid.objectness[0].device)
        logits, boxes, levels = [], [], []
        for level, (objectness, deltas) in enumerate(
            zip(pyramid.objectness, pyramid.deltas, strict=True)
        ):
            of_level = flatten_map(objectness, 1).squeeze(2).float()
            num = min(settings.num_before_nms, of_level.shape[1])
            best, index = of_level.topk(num, dim=1)
            # Only the best are decoded: one anchor in fifty of the finest level.
            chosen = flatten_map(deltas, 4).gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(self.coder.decode(anchors[level][index], chosen))
            logits.append(best)
            levels.append(torch.full_like(index[0], level))
        scores = torch.cat(logits, dim=1).sigmoid()
        level_of = torch.cat(levels)
        found = [
            _suppress(clip_boxes_to_image(b, size), s, level_of, settings)
            for b, s, size in zip(torch.cat(boxes, dim=1), scores, image_sizes, strict=True)
        ]
        if training:
            found = [
                of_image if len(of_image.boxes) else _whole_image(of_image, size)
                for of_image, size in zip(found, image_sizes, strict=True)
            ]
        return found


def _of_batch(maps: Sequence[Tensor], channels: int) -> Tensor:
    """Values ``(B * N, channels)`` of all anchors, image after image, level after level."""
    return torch.cat([flatten_map(m, channels) for m in maps], dim=1).flatten(0, 1)


def _suppress(
    boxes: Tensor, scores: Tensor, levels: Tensor, settings: ProposalSettings
) -> Proposals:
    """What is left of one image's clipped boxes ``(P, 4)``."""
    usable = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero().flatten()
    boxes, scores = boxes[usable], scores[usable]
    kept = batched_nms(boxes, scores, levels[usable], settings.nms_iou)[: settings.num_after_nms]
    return Proposals(boxes[kept], scores[kept])


def _whole_image(empty: Proposals, size: tuple[int, int]) -> Proposals:
    H, W = size
    return Proposals(empty.boxes.new_tensor([[0, 0, W, H]]), empty.scores.new_zeros(1))
