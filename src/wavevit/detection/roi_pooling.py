"""Features of boxes, cut from the pyramid level that suits each box's size.

Legend: B batch, C channels, H W rows and columns of a map, L levels, R regions (RoIs) of the batch,
S side of the pooled square.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from wavevit.detection.separable_roi_align import separable_roi_align

# A box of this side, in pixels, is the smallest that goes to the second level, halved: FPN
# (arXiv 1612.03144, equation 1) with 224 / 4.
FINEST_SCALE = 56.0
_FARTHEST = 1e6  # pixels: no image reaches so far


def assign_levels(
    boxes_xyxy: Tensor, num_levels: int, finest_scale: float = FINEST_SCALE
) -> Tensor:
    """The pyramid level of every box, int64 ``(R,)`` (FPN, arXiv 1612.03144, equation 1).

    Args:
        boxes_xyxy: ``(R, 4)`` pixels.
        num_levels: Levels to choose from; larger and smaller boxes go to the last and first.
        finest_scale: Square root of the area, pixels; boxes below twice of it go to level 0.
    """
    widths, heights = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).float().clamp(min=0).unbind(dim=1)
    scale = (widths * heights).sqrt()
    levels = torch.log2(scale / finest_scale + 1e-6).floor()
    return levels.clamp(min=0, max=num_levels - 1).long()


def join_regions(boxes_per_image: Sequence[Tensor]) -> Tensor:
    """All boxes with their image's index in front, ``(R, 5)``: index, x1, y1, x2, y2.

    Args:
        boxes_per_image: ``(N_i, 4)`` xyxy pixels, one tensor an image.
    """
    return torch.cat(
        [
            torch.cat([boxes.new_full((len(boxes), 1), image), boxes], dim=1)
            for image, boxes in enumerate(boxes_per_image)
        ]
    )


class RoIPooling(nn.Module):
    """RoIAlign (arXiv 1703.06870, section 3) of each box on one level of a pyramid.

    Args:
        output_size: Side S of the pooled square.
        strides: Pixels per cell of each level, finest first.
        sampling_ratio: Sampling points a bin along each axis; 0 takes as many as a bin has cells.
        finest_scale: Square root of the area, pixels; boxes below twice of it go to level 0.
    """

    def __init__(
        self,
        output_size: int,
        strides: Sequence[int],
        sampling_ratio: int = 0,
        finest_scale: float = FINEST_SCALE,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.strides = tuple(strides)
        self.sampling_ratio = sampling_ratio
        self.finest_scale = finest_scale

    def forward(self, features_per_level: Sequence[Tensor], regions: Tensor) -> Tensor:
        """Pooled features ``(R, C, S, S)`` in the maps' dtype.

        Coordinates and sampling are in fp32 whatever the maps' dtype: half precision places a
        box to the nearest pixel only.

        Args:
            features_per_level: Maps ``(B, C, H, W)`` of the levels, as many as strides; more,
                coarser ones are left alone.
            regions: ``(R, 5)``: image index, x1, y1, x2, y2 in pixels.
        """
        features_per_level = features_per_level[: len(self.strides)]
        # A network that diverges is to be told by its loss, not by an index error here.
        regions = regions.float().nan_to_num(0.0).clamp(-_FARTHEST, _FARTHEST)
        levels = assign_levels(regions[:, 1:], len(self.strides), self.finest_scale)
        # Level by level, then back to the order of the regions by one gather.
        order = torch.argsort(levels, stable=True)
        counts = torch.bincount(levels, minlength=len(self.strides)).tolist()
        pooled = [
            _pool(features.float(), of_level, self.output_size, 1 / stride, self.sampling_ratio)
            for features, of_level, stride in zip(
                features_per_level, regions[order].split(counts), self.strides, strict=True
            )
        ]
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        return torch.cat(pooled)[inverse].to(features_per_level[0].dtype)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, strides={self.strides}, "
            f"sampling_ratio={self.sampling_ratio}"
        )


def _pool(features: Tensor, regions: Tensor, size: int, scale: float, sampling: int) -> Tensor:
    if features.device.type == "cpu":
        return separable_roi_align(features, regions, size, scale, sampling)
    return roi_align(features, regions, size, scale, sampling, aligned=True)
