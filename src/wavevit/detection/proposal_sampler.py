"""A random, bounded choice of positives and negatives to learn from.

Legend: N candidates (anchors or proposals) of one image, P Q chosen positives and negatives.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """Indices of the candidates chosen in one image, each ascending.

    Attributes:
        positive: int64 ``(P,)``.
        negative: int64 ``(Q,)``.
    """

    positive: Tensor
    negative: Tensor


class RandomSampler:
    """Chooses up to ``num`` candidates of an image, few enough positives among them.

    Faster R-CNN (arXiv 1506.01497, section 3.1.3): at most ``num * positive_fraction`` positives,
    drawn uniformly; negatives fill up to ``num``, drawn uniformly too.

    Args:
        num: Candidates of an image.
        positive_fraction: Largest share of positives, in (0, 1].

    Raises:
        ValueError: A number outside its range.
    """

    def __init__(self, num: int, positive_fraction: float) -> None:
        if num < 1 or not 0 < positive_fraction <= 1:
            raise ValueError(
                "a sampler needs num >= 1 and positive_fraction in (0, 1], "
                f"got {num} and {positive_fraction}"
            )
        self.num = num
        self.positive_fraction = positive_fraction

    def __call__(self, is_positive: Tensor, is_negative: Tensor) -> Sample:
        """The chosen candidates of one image.

        Args:
            is_positive: bool ``(N,)``.
            is_negative: bool ``(N,)``; candidates that are neither are never chosen.
        """
        positive = _draw(is_positive, int(self.num * self.positive_fraction))
        return Sample(positive, _draw(is_negative, self.num - len(positive)))


def _draw(candidates: Tensor, most: int) -> Tensor:
    """Ascending indices of at most ``most`` of the marked candidates."""
    indices = candidates.nonzero().flatten()
    if len(indices) <= most:
        return indices
    chosen = torch.randperm(len(indices), device=indices.device)[:most]
    return indices[chosen].sort().values
