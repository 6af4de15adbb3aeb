"""From the maps of a dense head to detections.

Legend: B images, A anchors of a cell, K classes, H W rows and columns of a level, D box values of
an anchor, n candidates of an image, N detections of an image.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from wavevit.detection.dense_head import flatten_map
from wavevit.detection.detector import Detection

# From anchors (B, n, 4) xyxy, box values (B, n, D) and the level's stride to boxes (B, n, 4) xyxy.
Decode = Callable[[Tensor, Tensor, int], Tensor]


class DensePostProcess(nn.Module):
    """The best (anchor, class) pairs of every level, decoded, and thinned by NMS per class.

    Args:
        decode: Makes boxes of anchors and the head's values.
        num_classes: Classes, K.
        score_threshold: Pairs with a class probability up to this are dropped.
        nms_threshold: Of two boxes of a class that overlap more, the better one stays.
        candidates_per_level: Most pairs of a level that reach NMS.
        detections_per_image: Most detections of an image.
    """

    def __init__(
        self,
        decode: Decode,
        num_classes: int,
        *,
        score_threshold: float,
        nms_threshold: float,
        candidates_per_level: int,
        detections_per_image: int,
    ) -> None:
        super().__init__()
        self.decode = decode
        self.num_classes = num_classes
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.candidates_per_level = candidates_per_level
        self.detections_per_image = detections_per_image

    def forward(
        self,
        cls_maps: Sequence[Tensor],
        box_maps: Sequence[Tensor],
        quality_maps: Sequence[Tensor] | None,
        anchors_per_level: Sequence[Tensor],
        strides: Sequence[int],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Detection]:
        """Detections of every image, best first, clipped to it.

        Without gradients, unless someone wants to know what a score comes from.

        Args:
            cls_maps: Class logits ``(B, A * K, H, W)`` of every level.
            box_maps: Box values ``(B, A * D, H, W)`` of every level.
            quality_maps: Logits ``(B, A, H, W)`` of a factor of the score, or None. It counts
                after the threshold and the choice of candidates.
            anchors_per_level: Anchors ``(H * W * A, 4)`` of every level, xyxy.
            strides: Of every level.
            image_sizes: Height and width of every image, in pixels.
        """
        levels = [
            self._candidates(
                cls_maps[i],
                box_maps[i],
                None if quality_maps is None else quality_maps[i],
                anchors_per_level[i],
                strides[i],
            )
            for i in range(len(cls_maps))
        ]
        boxes, labels, scores, confident = (torch.cat(x, dim=1) for x in zip(*levels, strict=True))
        return [
            self._suppress(clip_boxes_to_image(boxes[i], size), labels[i], scores[i], confident[i])
            for i, size in enumerate(image_sizes)
        ]

    def _candidates(
        self,
        cls_map: Tensor,
        box_map: Tensor,
        quality_map: Tensor | None,
        anchors: Tensor,
        stride: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes, labels, scores of a level's best pairs, and which are above the threshold."""
        logits = flatten_map(cls_map, self.num_classes).flatten(1)
        count = min(self.candidates_per_level, logits.shape[1])
        # The best logits are the best scores; no need for the probabilities of all the others.
        best, pair = logits.topk(count, dim=1)
        index, labels = pair // self.num_classes, pair % self.num_classes
        class_scores = best.float().sigmoid()
        scores = class_scores
        if quality_map is not None:
            quality = flatten_map(quality_map, 1).squeeze(-1).gather(1, index)
            scores = scores * quality.float().sigmoid()
        num_values = box_map.shape[1] * self.num_classes // cls_map.shape[1]
        values = flatten_map(box_map, num_values)
        values = values.gather(1, index[..., None].expand(-1, -1, num_values)).float()
        boxes = self.decode(anchors[index], values, stride)
        return boxes, labels, scores, class_scores > self.score_threshold

    def _suppress(
        self, boxes: Tensor, labels: Tensor, scores: Tensor, confident: Tensor
    ) -> Detection:
        """NMS among the candidates of an image that are confident and have an area."""
        # Boxes outside the image have been clipped to nothing.
        usable = (confident & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)).nonzero().squeeze(1)
        boxes, labels, scores = boxes[usable], labels[usable], scores[usable]
        kept = batched_nms(boxes, scores, labels, self.nms_threshold)[: self.detections_per_image]
        return {"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]}
