"""Label maps cropped to what an augmented image shows (spec section 4.1).

Legend: k entries per cell of a label map, H W its rows and columns, N tokens, U distinct classes.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wavevit.data.geometry import View
from wavevit.data.label_maps.reader import LabelMap

_ROUNDING = 1e-6  # of an exact ratio such as 14 cells over 7 tokens, after a few affine steps


@dataclass
class TokenLogits:
    """A teacher's logits for one view of an image; classes not listed have logit 0.

    Attributes:
        logits: float32 ``(1 + N, U)``: for the view as a whole, then for its cells, row by row.
        classes: Class indices, distinct, int64 ``(U,)``.
    """

    logits: NDArray[np.float32]
    classes: NDArray[np.int64]


def crop_label_map(label_map: LabelMap, view: View, grid: tuple[int, int]) -> TokenLogits:
    """What the map says of an augmented image: RoIAlign along the image's own way to its source.

    For an upright crop this is torchvision's ``roi_align`` with ``aligned=True`` on the dense map
    (zeros outside of the k classes of a cell), the boxes being the crop in cells. The official
    recipe's boxes, moved by -0.5 and with ``aligned=False``, give the same for crops of at least
    one cell; smaller ones it widens to a cell, to the lower right, away from what the image shows.
    Under flips, rotation, shear and translation the same sampling points go through the affine.
    Points count as 0 for every class where the view shows fill colour, and beyond half a cell
    outside of the map.

    Args:
        label_map: Scores and classes of the whole source image.
        view: What the augmented image shows of that source.
        grid: Rows and columns of the tokens of the view.
    """
    k, H, W = label_map.scores.shape
    weights = [_pooling(view, (1, 1), (H, W)), _pooling(view, grid, (H, W))]
    classes, column = np.unique(label_map.classes, return_inverse=True)
    U = len(classes)
    cell = np.tile(np.arange(H * W), k)
    scores = label_map.scores.ravel()
    dense = np.bincount(cell * U + column.ravel(), scores, H * W * U).reshape(H * W, U)
    logits = np.concatenate(weights) @ dense
    return TokenLogits(logits.astype(np.float32), classes)


def _pooling(view: View, grid: tuple[int, int], size: tuple[int, int]) -> NDArray[np.float64]:
    """``(rows * columns, H * W)``: what each cell of the map adds to each token."""
    (rows, columns), (H, W) = grid, size
    to_cells = view.to_source * [[W], [H]]
    to_cells[:, 2] -= 0.5  # of the cells' centres, as RoIAlign counts
    # RoIAlign's adaptive ratio: at least one sampling point per cell of the map and axis.
    per_row = max(1, math.ceil(np.hypot(*to_cells[:, 1]) / rows - _ROUNDING))
    per_column = max(1, math.ceil(np.hypot(*to_cells[:, 0]) / columns - _ROUNDING))
    i, j = np.arange(rows * per_row)[:, None], np.arange(columns * per_column)
    v, u = (i + 0.5) / i.size, (j + 0.5) / j.size
    token = (i // per_row * columns + j // per_column).ravel()
    points = np.ones((3, i.size * j.size))
    points[0], points[1] = np.tile(u, i.size), np.repeat(v, j.size)
    x, y = to_cells @ points
    inside = (x >= -1) & (x <= W) & (y >= -1) & (y <= H)
    in_windows = np.reshape(view.windows, (-1, 3)) @ points  # x and y of each, one below another
    inside &= ((in_windows >= 0) & (in_windows <= 1)).all(0)
    share = inside / (per_row * per_column)

    x, y = x.clip(0, W - 1), y.clip(0, H - 1)
    left, top = x.astype(np.int64), y.astype(np.int64)
    right, bottom = np.minimum(left + 1, W - 1), np.minimum(top + 1, H - 1)
    x, y = x - left, y - top
    first = token * (H * W)
    cells = [first + row * W + column for row in (top, bottom) for column in (left, right)]
    parts = [share * b * a for b in (1 - y, y) for a in (1 - x, x)]
    summed = np.bincount(np.concatenate(cells), np.concatenate(parts), rows * columns * H * W)
    # numpy's stubs take every bincount for one of integers.
    return summed.reshape(rows * columns, H * W).astype(np.float64, copy=False)
