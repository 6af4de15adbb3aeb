"""How a network's cost grows with the size of its images.

The cost of an image of p pixels is fitted by a + b p + c p^2 with a, b, c >= 0: what every image
costs, what every pixel costs, and attention between all pairs of pixels. For counted FLOPs the fit
is exact wherever sizes are multiples of what the network pads to.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from torch import nn

from wavevit.profiling.counting import count

ROUNDING = 1e-9
"""A part that is smaller than this share of the largest image's cost is rounding."""


@dataclass(frozen=True)
class Scaling:
    """Cost of a square image by its size, in the unit of the costs that were fitted.

    Attributes:
        constant: Part that every image has.
        per_pixel: Factor of the number of pixels.
        per_pixel_pair: Factor of its square.
        worst_error: Largest relative difference between the fit and a cost that it was made from.
    """

    constant: float
    per_pixel: float
    per_pixel_pair: float
    worst_error: float

    def cost(self, size: float) -> float:
        """Fitted cost of an image.

        Args:
            size: Pixels along an edge.
        """
        pixels = size**2
        return self.constant + self.per_pixel * pixels + self.per_pixel_pair * pixels**2

    def quadratic_share(self, size: float) -> float:
        """Share of the cost that grows with the square of the number of pixels, in [0, 1].

        Args:
            size: Pixels along an edge.
        """
        return self.per_pixel_pair * size**4 / self.cost(size)

    def crossing(self, share: float = 0.5) -> float:
        """The size, in pixels along an edge, from which on the quadratic part has a share.

        Args:
            share: Of the whole cost, between 0 and 1.

        Returns:
            Infinity where nothing grows with the square.

        Raises:
            ValueError: The share is not between 0 and 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"expected a share between 0 and 1, got {share}")
        if self.per_pixel_pair == 0:
            return math.inf
        # quadratic = odds * (constant + linear), solved for the number of pixels.
        odds = share / (1 - share)
        half = odds * self.per_pixel / (2 * self.per_pixel_pair)
        pixels = half + math.sqrt(half**2 + odds * self.constant / self.per_pixel_pair)
        return math.sqrt(pixels)


def fit_scaling(sizes: Sequence[float], costs: Sequence[float]) -> Scaling:
    """The non-negative fit with the least squares of relative errors.

    Args:
        sizes: Pixels along an edge of square images, three different ones or more.
        costs: Cost of an image of each size, such as seconds; positive.

    Raises:
        ValueError: Too few sizes, or sizes or costs that are not positive.
    """
    edges, values = np.asarray(sizes, np.float64), np.asarray(costs, np.float64)
    if edges.shape != values.shape or len(set(edges.tolist())) < 3:
        raise ValueError(
            f"expected a cost for each of three sizes or more, got {len(costs)} costs for the "
            f"sizes {list(sizes)}"
        )
    if not (np.isfinite(values).all() and values.min() > 0 and edges.min() > 0):
        raise ValueError(f"expected positive sizes and costs, got {list(sizes)} and {list(costs)}")
    # In units of the largest image the three columns are of one magnitude.
    largest = float(edges.max()) ** 2
    pixels = edges**2 / largest
    columns = np.stack([np.ones_like(pixels), pixels, pixels**2], axis=1)
    factors, _ = nnls(columns / values[:, None], np.ones_like(values))
    factors[factors < ROUNDING * factors.sum()] = 0.0
    error = np.abs(columns @ factors / values - 1).max()
    constant, linear, quadratic = factors.tolist()
    return Scaling(constant, linear / largest, quadratic / largest**2, float(error))


def counted_scaling(build: Callable[[int], nn.Module], sizes: Sequence[int]) -> Scaling:
    """How the FLOPs of an image grow, counted and not timed.

    Args:
        build: The network for images of a size, best on the device "meta"; most networks are the
            same for all sizes.
        sizes: Pixels along an edge, three different ones or more, multiples of what the network
            pads to.

    Raises:
        ValueError: Too few sizes.
    """
    flops = [count(build(size), (3, size, size)).flops for size in sizes]
    return fit_scaling(sizes, flops)
