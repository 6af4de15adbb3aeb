"""Anchor boxes on the cells of every pyramid level.

Ren et al. 2015, arXiv 1506.01497, section 3.1.1.

Legend: H W rows and columns of a level's map, A anchors of a cell, N anchors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def octave_scales(base: float, per_octave: int) -> tuple[float, ...]:
    """Scales that divide an octave evenly: ``base * 2**(i / per_octave)`` (Lin et al. 2017).

    Args:
        base: The first scale, in strides.
        per_octave: Number of scales.
    """
    return tuple(base * 2 ** (i / per_octave) for i in range(per_octave))


class AnchorGenerator:
    """Anchors of all levels, xyxy in pixels of the padded image.

    The anchors of cell ``(row, column)`` are centred at ``(column * stride, row * stride)``: the
    cell's corner, not its middle. Their order is rows, columns, ratios, scales: the order in which
    a head's output channels are read.

    Args:
        strides: Pixels between cells, of every level.
        scales: Sides of square anchors, in strides.
        ratios: Heights over widths.

    Attributes:
        num_per_cell: Anchors of a cell, A.
    """

    num_per_cell: int

    def __init__(
        self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float]
    ) -> None:
        self.strides = tuple(strides)
        self.num_per_cell = len(scales) * len(ratios)
        self._cell_anchors = [_cell_anchors(stride, scales, ratios) for stride in strides]
        self._on_device: dict[torch.device, list[Tensor]] = {}

    def cell_anchors(self, device: torch.device | str = "cpu") -> list[Tensor]:
        """The anchors of a cell at the origin, fp32 ``(A, 4)`` of every level.

        Args:
            device: Where they shall live; kept there, since every copy would wait for the device.
        """
        device = torch.device(device)
        if device not in self._on_device:
            self._on_device[device] = [anchors.to(device) for anchors in self._cell_anchors]
        return self._on_device[device]

    def __call__(
        self, map_sizes: Sequence[tuple[int, int]], device: torch.device | str = "cpu"
    ) -> list[Tensor]:
        """The anchors of every level, fp32 ``(H * W * A, 4)``.

        Args:
            map_sizes: Rows and columns ``(H, W)`` of every level's map.
            device: Where the anchors shall live.
        """
        anchors_per_level = []
        for (H, W), stride, base in zip(
            map_sizes, self.strides, self.cell_anchors(device), strict=True
        ):
            xs = torch.arange(W, device=device, dtype=torch.float32) * stride
            ys = torch.arange(H, device=device, dtype=torch.float32) * stride
            grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
            corners = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1)
            anchors_per_level.append((corners[:, :, None] + base).reshape(-1, 4))
        return anchors_per_level

    def cells_inside(self, padded_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Rows and columns of every level's map that an image's own padding reaches.

        Cells beyond belong to the batch's canvas only and take no part in training.

        Args:
            padded_size: Height and width of the image after its own padding, in pixels.
        """
        height, width = padded_size
        return [(-(-height // stride), -(-width // stride)) for stride in self.strides]


def _cell_anchors(stride: int, scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    # In fp32 and in this order of operations, so that they equal the published ones to the bit.
    scale = torch.tensor(scales, dtype=torch.float32)
    height_ratio = torch.tensor(ratios, dtype=torch.float32).sqrt()
    width_ratio = 1 / height_ratio
    widths = (stride * width_ratio[:, None] * scale).flatten()
    heights = (stride * height_ratio[:, None] * scale).flatten()
    return torch.stack((-0.5 * widths, -0.5 * heights, 0.5 * widths, 0.5 * heights), dim=-1)


def inside_image(anchors: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Which anchors ``(N, 4)`` lie wholly within an image; bool ``(N,)``.

    Args:
        anchors: Boxes, xyxy in pixels.
        image_size: Height and width of the image before padding, in pixels.
    """
    height, width = image_size
    x1, y1, x2, y2 = anchors.unbind(dim=-1)
    return (x1 >= 0) & (y1 >= 0) & (x2 < width) & (y2 < height)
