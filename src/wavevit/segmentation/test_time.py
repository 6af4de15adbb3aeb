"""Test-time augmentation: several views of a picture, whose probabilities are averaged.

As mmsegmentation does it: the picture at several sizes, each also as its mirror image; of each view
the logits are enlarged to the picture's size, and their softmax is averaged.

Legend: K classes, H W rows and columns of the picture, V views.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wavevit.segmentation.logit_maps import (
    HELD_BYTES,
    LabelMap,
    LogitMap,
    Part,
    Size,
    empty_label_map,
    parts,
)

# Looks at a view when it is its turn.
OpenView = Callable[[], LogitMap]

_NUMBER_BYTES = 4


@dataclass(frozen=True)
class TestTimeAugmentation:
    """Which views of a picture are looked at.

    Attributes:
        ratios: Sizes, as multiples of the usual one.
        flip: Whether each is looked at as its mirror image, too.
    """

    __test__ = False  # no test case, whatever its name says

    ratios: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    flip: bool = True

    def __post_init__(self) -> None:
        if not self.ratios or not all(0.1 <= ratio <= 10 for ratio in self.ratios):
            raise ValueError(
                "expected at least one size ratio for test-time augmentation, each in [0.1, 10], "
                f"got {list(self.ratios)}"
            )


def average_views(
    views: Sequence[OpenView], num_classes: int, size: Size, *, with_confidence: bool = False
) -> LabelMap:
    """The class of each pixel whose probability, averaged over views, is greatest.

    The probabilities of a picture of ordinary size are summed view after view. Those of a large one
    never exist as a whole: the views are open side by side, and read in stripes. The result is the
    same to the bit.

    Args:
        views: V of the same picture, at any sizes.
        num_classes: K.
        size: H and W of the picture.
        with_confidence: Whether the averaged probabilities are wanted too.
    """
    found = empty_label_map(size, with_confidence)
    if _NUMBER_BYTES * num_classes * math.prod(size) > HELD_BYTES:
        for part, blocks in parts([view() for view in views], size):
            total = torch.zeros_like(blocks[0])
            for block in blocks:
                total += block.softmax(dim=0)
            _fill(found, part, total, len(views))
        return found
    whole: Tensor | None = None
    for view in views:
        whole = _add_view(whole, view(), size)
    assert whole is not None, "there are views"
    _fill(found, Part(slice(None), slice(None)), whole, len(views))
    return found


def _add_view(total: Tensor | None, logits: LogitMap, size: Size) -> Tensor:
    """The sum ``(K, H, W)`` with the probabilities of one more view, in place."""
    for part, (block,) in parts([logits], size):
        if total is None:
            total = block.new_zeros((len(block), size[0], size[1]))
        total[:, part.rows, part.columns] += block.softmax(dim=0)
    assert total is not None, "a picture has pixels"
    return total


def _fill(found: LabelMap, part: Part, total: Tensor, num_views: int) -> None:
    """Labels of a part from the sums of its probabilities."""
    best, labels = total.max(dim=0)
    found.labels[part] = labels.to(torch.uint8).cpu()
    if found.confidence is not None:
        found.confidence[part] = (best / num_views).float().cpu()
