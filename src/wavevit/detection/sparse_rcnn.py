"""Sparse R-CNN (Sun et al. 2021, arXiv 2011.12450): a fixed set of learned proposals, no NMS.

Legend: B images of a batch, P proposals of an image, C channels, K classes, G ground truths of an
image, H W rows and columns of an image in pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, sigmoid_focal_loss

from wavevit.detection.box_coder import DeltaBoxCoder
from wavevit.detection.detector import Detection, Detector
from wavevit.detection.dynamic_head import DynamicHead
from wavevit.detection.fpn import FPN
from wavevit.detection.hungarian import HungarianMatcher, Matching
from wavevit.detection.losses import giou_loss, mean_over_processes
from wavevit.detection.preprocess import ImageBatch, Preprocess
from wavevit.detection.roi_pooling import RoIPooling, join_regions
from wavevit.detection.targets import Target
from wavevit.models.option_checks import check_share, check_whole
from wavevit.models.pyramid_backbone import PyramidBackbone

ROI_SIZE = 7
CLS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 2.0, 5.0, 2.0


class StageOutput(NamedTuple):
    """What one stage says of the proposals.

    Attributes:
        logits: ``(B, P, K)``, one sigmoid a class.
        boxes: fp32 ``(B, P, 4)``, xyxy in pixels; may reach over the border.
        features: ``(B, P, C)`` of the proposals, which the next stage takes.
    """

    logits: Tensor
    boxes: Tensor
    features: Tensor


class PyramidFeatures(nn.Module):
    """Backbone and neck: tensors in, tensors out.

    Args:
        backbone: Maps of images, finest first.
        neck: Levels of one width from these maps.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, images: Tensor) -> list[Tensor]:
        """Levels ``(B, C, H, W)``, finest first.

        Args:
            images: Normalised and padded ``(B, 3, H, W)``.
        """
        return self.neck(self.backbone(images))


class LearnedProposals(nn.Module):
    """Boxes and features that every image starts from.

    Args:
        num_proposals: P.
        channels: Width C of a proposal's feature.
    """

    def __init__(self, num_proposals: int, channels: int) -> None:
        super().__init__()
        # Centre and size over the image's; at first every proposal is the whole image.
        self.boxes = nn.Parameter(torch.tensor([[0.5, 0.5, 1.0, 1.0]]).repeat(num_proposals, 1))
        self.features = nn.Parameter(torch.randn(num_proposals, channels))

    def forward(self, sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Boxes fp32 ``(B, P, 4)``, xyxy in pixels, and features ``(B, P, C)``.

        Args:
            sizes: H and W of each image, pixels.
        """
        boxes = box_convert(self.boxes.float(), "cxcywh", "xyxy")
        boxes = boxes * _scales(sizes, boxes.device)[:, None]
        return boxes, self.features.expand(len(sizes), -1, -1)


class SparseRCNN(Detector):
    """Learned boxes and features, refined stage by stage; each ground truth takes one of them.

    As published, boxes are not clipped to the image: they may reach over its border, or lie beside
    it. Evaluation and `DetectionPredictor` clip them; the latter leaves out those of which nothing
    is left.

    Losses of each stage i: "loss_cls_i", "loss_box_i" (L1), "loss_giou_i".

    Args:
        backbone: Gives maps at strides 4, 8, 16, 32.
        num_classes: Classes K of objects.
        fpn_channels: Width C of the pyramid's levels and of the proposals' features.
        num_proposals: Proposals P of an image.
        num_stages: Refinements.
        num_heads: Heads of the attention among proposals.
        inner_channels: Inner width of the dynamic convolutions.
        ffn_channels: Hidden width of the feed-forward networks.
        dropout: Probability, in the attention and the feed-forward networks.
        detections_per_image: Best pairs of box and class of an image that are detections.

    Raises:
        ValueError: An option out of range.
    """

    def __init__(
        self,
        backbone: PyramidBackbone,
        num_classes: int,
        *,
        fpn_channels: int = 256,
        num_proposals: int = 300,
        num_stages: int = 6,
        num_heads: int = 8,
        inner_channels: int = 64,
        ffn_channels: int = 2048,
        dropout: float = 0.0,
        detections_per_image: int = 300,
    ) -> None:
        super().__init__(num_classes, Preprocess(backbone.mean, backbone.std))
        check_whole(1, fpn_channels=fpn_channels, num_heads=num_heads)
        check_whole(1, num_proposals=num_proposals, num_stages=num_stages)
        check_whole(1, inner_channels=inner_channels, ffn_channels=ffn_channels)
        check_share(dropout=dropout)
        check_whole(1, detections_per_image=detections_per_image)
        if fpn_channels % num_heads:
            raise ValueError(
                f"the option fpn_channels must be a multiple of num_heads, {num_heads}, got "
                f"{fpn_channels}"
            )
        self.detections_per_image = detections_per_image
        neck = FPN(backbone.channels, fpn_channels, num_levels=4, extra_levels="none")
        self.network = PyramidFeatures(backbone, neck)
        self.proposals = LearnedProposals(num_proposals, fpn_channels)
        self.pooling = RoIPooling(ROI_SIZE, backbone.strides, sampling_ratio=2)
        self.heads = nn.ModuleList(
            DynamicHead(
                fpn_channels,
                num_classes,
                num_heads=num_heads,
                inner_channels=inner_channels,
                ffn_channels=ffn_channels,
                roi_size=ROI_SIZE,
                dropout=dropout,
            )
            for _ in range(num_stages)
        )
        self.box_coder = DeltaBoxCoder((0.5, 0.5, 1.0, 1.0))
        self.matcher = HungarianMatcher(CLS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT)

    def refine(
        self, features_per_level: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[StageOutput]:
        """What each stage says, first one first.

        Args:
            features_per_level: Levels of the pyramid, ``(B, C, H, W)``.
            sizes: H and W of each image, pixels.
        """
        # Not detached: the learned boxes get their gradient through the first stage's decoding.
        boxes, features = self.proposals(sizes)
        outputs = []
        for head in self.heads:
            pooled = self.pooling(features_per_level, join_regions(boxes.detach().unbind()))
            logits, deltas, features = head(features, pooled)
            refined = self.box_coder.decode(boxes, deltas)
            outputs.append(StageOutput(logits, refined, features))
            boxes = refined.detach()
        return outputs

    def compute_losses(self, batch: ImageBatch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Losses by name: see the class.

        Args:
            batch: Normalised and padded images.
            targets: Checked targets, on the images' device.
        """
        outputs = self.refine(self.network(batch.tensor), batch.sizes)
        matchings = self.match(outputs, targets, batch.sizes)
        num_positive = mean_over_processes(
            outputs[0].boxes.new_tensor(float(sum(len(m.targets) for m in matchings[0])))
        ).clamp(min=1)
        losses: dict[str, Tensor] = {}
        for i, (output, of_stage) in enumerate(zip(outputs, matchings, strict=True)):
            parts = _stage_losses(output, of_stage, targets, batch.sizes)
            losses[f"loss_cls_{i}"] = CLS_WEIGHT * parts[0] / num_positive
            losses[f"loss_box_{i}"] = L1_WEIGHT * parts[1] / num_positive
            losses[f"loss_giou_{i}"] = GIOU_WEIGHT * parts[2] / num_positive
        return losses

    def match(
        self,
        outputs: Sequence[StageOutput],
        targets: Sequence[Target],
        sizes: Sequence[tuple[int, int]],
    ) -> list[list[Matching]]:
        """The proposal of each ground truth, by stage and image.

        Args:
            outputs: What each stage says.
            targets: Ground truth of each image.
            sizes: H and W of each image, pixels.
        """
        costs = [
            self.matcher.cost(logits, boxes, target["labels"], target["boxes"], size)
            for output in outputs
            for logits, boxes, target, size in zip(
                output.logits, output.boxes, targets, sizes, strict=True
            )
        ]
        flat = self.matcher(costs)
        B = len(targets)
        return [flat[i * B : (i + 1) * B] for i in range(len(outputs))]

    def detect(self, batch: ImageBatch) -> list[Detection]:
        """Detections of every image, in its own pixels.

        Args:
            batch: Normalised and padded images.
        """
        last = self.refine(self.network(batch.tensor), batch.sizes)[-1]
        scores = last.logits.float().sigmoid().flatten(1)
        scores, index = scores.topk(min(self.detections_per_image, scores.shape[1]), dim=1)
        proposal, labels = index // self.num_classes, index % self.num_classes
        boxes = last.boxes.gather(1, proposal[..., None].expand(-1, -1, 4))
        return [
            {"boxes": b, "labels": c, "scores": s}
            for b, c, s in zip(boxes, labels, scores, strict=True)
        ]


def _scales(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Width, height, width, height of each image, fp32 ``(B, 4)``."""
    rows = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=torch.float32)
    return rows.to(device, non_blocking=True)


def _stage_losses(
    output: StageOutput,
    matchings: Sequence[Matching],
    targets: Sequence[Target],
    sizes: Sequence[tuple[int, int]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the focal loss, of the L1 distance over the image's size, and of the GIoU loss."""
    image = torch.cat([torch.full_like(m.predictions, i) for i, m in enumerate(matchings)])
    proposal = torch.cat([m.predictions for m in matchings])
    gt_boxes = torch.cat([t["boxes"][m.targets] for t, m in zip(targets, matchings, strict=True)])
    labels = torch.cat([t["labels"][m.targets] for t, m in zip(targets, matchings, strict=True)])
    logits = output.logits.float()
    is_class = torch.zeros_like(logits)
    is_class[image, proposal, labels] = 1
    # Unmatched proposals are background: negatives of every class.
    focal = sigmoid_focal_loss(logits, is_class, alpha=0.25, gamma=2.0, reduction="sum")
    boxes = output.boxes[image, proposal]
    scale = _scales(sizes, boxes.device)[image]
    distance = F.l1_loss(boxes / scale, gt_boxes / scale, reduction="sum")
    return focal, distance, giou_loss(boxes, gt_boxes).sum()
