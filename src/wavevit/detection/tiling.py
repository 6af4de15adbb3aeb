"""Detection in pictures too large for one pass: in overlapping tiles, whose objects are merged.

An object no larger than the overlap is whole in one tile at least. Larger ones are cut by borders
of tiles; their parts are recognised by what two tiles see in common, and put together.

Legend: N objects, T tiles, H W rows and columns of the picture.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torchvision.ops import batched_nms

from wavevit.detection.inference import FoundObjects
from wavevit.detection.object_mask import ObjectMask

# Gives the objects in each picture (3, H, W) of a list; a `DetectionPredictor` is one.
Predict = Callable[[Sequence[Tensor]], list[FoundObjects]]

# A box that ends within this share of a tile's side from the tile's border is taken for cut by it.
_BORDER_SHARE = 0.01
_MIN_BORDER = 2.0  # pixels
# Detectors resize tiles and whole pictures to about one size: so much smaller objects may get.
_MOST_SHRUNK = 2
# Where a box is not cut it ends: another part of the object reaches no further than by this share
# of the tile's side.
_END_SHARE = 0.1
# So much of a cut box in a whole one, or of what two tiles see of two cut ones, is the same object.
_SAME = 0.5
# A whole box replaces a cut one only if it is not much less certain.
_LEAST_CERTAINTY = 0.5
_PAIRS_AT_ONCE = 2**21


class Window(NamedTuple):
    """A part of a picture, in pixels.

    Attributes:
        top: First row.
        left: First column.
        height: Rows.
        width: Columns.
    """

    top: int
    left: int
    height: int
    width: int


class TiledPredictor:
    """Finds objects of any size in a picture of any size, tile by tile.

    Memory holds the picture, one batch of tiles, and what was found.

    Args:
        predict: Finds the objects in a list of pictures. A tile is a picture to it: a
            `DetectionPredictor` resizes each as it would any other.
        tile: Side of the square tiles, pixels. Tiles as large as the images of the training set
            show objects at the size that the detector knows.
        overlap: Least share of a tile's side that it has in common with the next one, in [0, 0.9].
            Objects up to that size are whole in some tile.
        batch_size: Tiles at once.
        nms_threshold: Of two objects of a class whose boxes overlap more, the more certain stays.
        with_whole: Whether the whole picture is looked at too, for objects larger than a tile. None
            does so where its longer side is at most twice a tile's: its objects are then no smaller
            than half of what they are in tiles, an octave at most. Further down, where groups of
            objects have the size of one, large false ones outweigh the large true ones, and these
            are put together from tiles anyway.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        predict: Predict,
        *,
        tile: int,
        overlap: float = 0.25,
        batch_size: int = 1,
        nms_threshold: float = 0.5,
        with_whole: bool | None = None,
    ) -> None:
        if tile < 32 or batch_size < 1:
            raise ValueError(
                "expected tiles of at least 32 pixels and a batch of at least 1, got "
                f"{tile} and {batch_size}"
            )
        if not 0 <= overlap <= 0.9 or not 0 < nms_threshold <= 1:
            raise ValueError(
                "expected an overlap in [0, 0.9] and an NMS threshold in (0, 1], got "
                f"{overlap} and {nms_threshold}"
            )
        self.predict = predict
        self.tile = tile
        self.overlap = overlap
        self.batch_size = batch_size
        self.nms_threshold = nms_threshold
        self.with_whole = with_whole

    def __call__(self, image: Tensor) -> FoundObjects:
        """What is in the picture, most certain first.

        Args:
            image: ``(3, H, W)``, as `predict` takes it.

        Raises:
            ValueError: Not such a picture.
        """
        H, W = image.shape[-2:]
        windows = tile_windows((H, W), self.tile, self.overlap)
        if len(windows) == 1:
            return self.predict([image])[0]
        parts: list[FoundObjects] = []
        for start in range(0, len(windows), self.batch_size):
            batch = windows[start : start + self.batch_size]
            tiles = [image[:, y : y + h, x : x + w] for y, x, h, w in batch]
            parts += map(_in_picture, self.predict(tiles), batch, [(H, W)] * len(batch))
        if self._takes_whole(H, W):
            whole = self.predict([image])[0]
            sides = (whole.boxes_xyxy[:, 2:] - whole.boxes_xyxy[:, :2]).amax(dim=1)
            # Smaller ones are seen better in the tiles; here, groups of them pass for one.
            parts.append(whole.take((sides > self.tile).nonzero().flatten()))
            windows = [*windows, Window(0, 0, H, W)]
        return merge_tiles(parts, windows, nms_threshold=self.nms_threshold)

    def _takes_whole(self, height: int, width: int) -> bool:
        if self.with_whole is None:
            return max(height, width) <= _MOST_SHRUNK * self.tile
        return self.with_whole


def tile_windows(size: tuple[int, int], tile: int, overlap: float) -> list[Window]:
    """Tiles that cover a picture, row after row, all of one size and as few as possible.

    Args:
        size: H and W of the picture.
        tile: Side of a tile, pixels; less where the picture is smaller.
        overlap: Least share of a tile's side in common with the next one, below 1.
    """
    starts = [_starts(length, tile, overlap) for length in size]
    height, width = (min(tile, length) for length in size)
    return [Window(top, left, height, width) for top, left in product(*starts)]


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    if length <= tile:
        return [0]
    shared = min(math.ceil(tile * overlap), tile - 1)
    count = math.ceil((length - shared) / (tile - shared))
    # Spread evenly: no step is longer than tile - shared.
    last = length - tile
    return [i * last // (count - 1) for i in range(count)]


def _in_picture(found: FoundObjects, window: Window, size: tuple[int, int]) -> FoundObjects:
    shift = torch.tensor([window.left, window.top] * 2, dtype=torch.float32)
    masks = found.masks
    if masks is not None:
        masks = tuple(mask.moved(window.top, window.left) for mask in masks)
    return FoundObjects(
        size, found.boxes_xyxy + shift, found.labels, found.scores, masks, found.is_finite
    )


def merge_tiles(
    parts: Sequence[FoundObjects], windows: Sequence[Window], *, nms_threshold: float = 0.5
) -> FoundObjects:
    """The objects of a picture, of which its tiles show some twice and some in parts.

    * A box that reaches no inner border of its tile is whole. Of whole ones, NMS by class.
    * A cut box that lies mostly in a whole one of its class shows a part of it, and goes.
    * Two cut boxes of a class belong together if what their tiles both see of them is the same, and
      neither goes on beyond an end of the other that is not cut; all that hang together become one
      box and one mask, with the highest score.
    * NMS by class over what is left.

    Args:
        parts: What was found in each of the T tiles, in the pixels of the picture.
        windows: T tiles.
        nms_threshold: Of two objects of a class whose boxes overlap more, the more certain stays.
    """
    found = _joined(parts)
    tile = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
    limits = torch.tensor([(x, y, x + w, y + h) for y, x, h, w in windows], dtype=torch.float32)
    cut_sides = _cut_sides(found, limits[tile])
    is_cut = cut_sides.any(dim=1)
    whole = (~is_cut).nonzero().flatten()
    whole = whole[_nms(found.take(whole), nms_threshold)]
    cut = is_cut.nonzero().flatten()
    cut = cut[~_lies_in_whole(found.take(cut), found.take(whole))]
    groups = _same_object(found.take(cut), cut_sides[cut], tile[cut], limits)
    merged = _joined([found.take(whole), *(_union(found.take(cut[group])) for group in groups)])
    return merged.take(_nms(merged, nms_threshold))


def _joined(parts: Sequence[FoundObjects]) -> FoundObjects:
    masks: tuple[ObjectMask, ...] | None = None
    if all(part.masks is not None for part in parts):
        masks = tuple(mask for part in parts for mask in part.masks or ())
    return FoundObjects(
        parts[0].size,
        torch.cat([part.boxes_xyxy for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.scores for part in parts]),
        masks,
        all(part.is_finite for part in parts),
    )


def _nms(found: FoundObjects, threshold: float) -> Tensor:
    """Indices of the objects that stay, most certain first."""
    kept: Tensor = batched_nms(found.boxes_xyxy, found.scores, found.labels, threshold)
    return kept


def _cut_sides(found: FoundObjects, limits: Tensor) -> Tensor:
    """bool ``(N, 4)``, where a box ends at a border of its tile that is not the picture's.

    Args:
        found: N objects.
        limits: ``(N, 4)`` the tile of each, xyxy.
    """
    H, W = found.size
    border = ((limits[:, 2:] - limits[:, :2]) * _BORDER_SHARE).clamp(min=_MIN_BORDER)
    first, last = found.boxes_xyxy[:, :2], found.boxes_xyxy[:, 2:]
    cut_before = (limits[:, :2] > 0) & (first <= limits[:, :2] + border)
    is_inner = limits[:, 2:] < torch.tensor([W, H])
    cut_after = is_inner & (last >= limits[:, 2:] - border)
    return torch.cat([cut_before, cut_after], dim=1)


def _lies_in_whole(cut: FoundObjects, whole: FoundObjects) -> Tensor:
    """bool ``(N,)``, whether a cut object is a part of a whole one."""
    is_part = torch.zeros(len(cut), dtype=torch.bool)
    for rows in torch.arange(len(cut)).split(max(_PAIRS_AT_ONCE // max(len(whole), 1), 1)):
        boxes = cut.boxes_xyxy[rows]
        shared = _areas(_intersections(boxes[:, None], whole.boxes_xyxy))
        is_same = shared >= _SAME * _areas(boxes)[:, None]
        is_same &= cut.labels[rows, None] == whole.labels
        is_same &= whole.scores >= _LEAST_CERTAINTY * cut.scores[rows, None]
        is_part[rows] = is_same.any(dim=1)
    return is_part


def _same_object(
    cut: FoundObjects, cut_sides: Tensor, tile: Tensor, limits: Tensor
) -> list[Tensor]:
    """Cut objects that belong together: indices, most certain first; single ones too.

    Args:
        cut: N objects.
        cut_sides: bool ``(N, 4)``, which sides of each are cut.
        tile: int64 ``(N,)`` tile of each.
        limits: ``(T, 4)`` tiles, xyxy.
    """
    N = len(cut)
    if N == 0:
        return []
    side = (limits[:, 2:] - limits[:, :2]).amax(dim=1)[tile, None]
    # How far the rest of each object may reach, outwards along -x, -y, x, y.
    outwards = cut.boxes_xyxy * torch.tensor([-1.0, -1, 1, 1])
    reach = torch.where(cut_sides, torch.inf, outwards + _END_SHARE * side)
    pairs = []
    for rows in torch.arange(N).split(max(_PAIRS_AT_ONCE // N, 1)):
        # What both tiles see: their common part of each of the two boxes.
        seen = _intersections(limits[tile[rows], None], limits[tile])
        one = _intersections(cut.boxes_xyxy[rows, None], seen)
        other = _intersections(cut.boxes_xyxy, seen)
        shared = _areas(_intersections(one, other))
        is_same = shared >= _SAME * (_areas(one) + _areas(other) - shared)
        is_same &= (shared > 0) & (tile[rows, None] != tile)
        is_same &= cut.labels[rows, None] == cut.labels
        is_same &= (outwards <= reach[rows, None]).all(dim=2)
        is_same &= (outwards[rows, None] <= reach).all(dim=2)
        pairs.append(is_same.nonzero() + torch.stack([rows[0], rows[0] * 0]))
    first, second = torch.cat(pairs).numpy().T
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(N, N))
    _, component = connected_components(graph, directed=False)
    groups = torch.from_numpy(component).long()
    order = cut.scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    return list(order.split(groups.bincount().tolist()))


def _union(group: FoundObjects) -> FoundObjects:
    """The parts of one object as that object, with the class and score of the first."""
    if len(group) == 1:
        return group
    boxes = group.boxes_xyxy
    return FoundObjects(
        group.size,
        torch.cat([boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)])[None],
        group.labels[:1],
        group.scores[:1],
        None if group.masks is None else (ObjectMask.union(group.masks),),
        group.is_finite,
    )


def _intersections(boxes: Tensor, others: Tensor) -> Tensor:
    """Common parts of boxes ``(..., 4)``; without area where there is none."""
    first = torch.maximum(boxes[..., :2], others[..., :2])
    last = torch.minimum(boxes[..., 2:], others[..., 2:])
    return torch.cat([first, last], dim=-1)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)
