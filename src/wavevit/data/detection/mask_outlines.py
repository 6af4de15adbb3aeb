"""Outlines of masks, for formats that have no run lengths.

The outline runs along the edges of pixels, so drawing it gives the same mask. Shape legend: H rows,
W columns, P points of a ring.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wavevit.data.detection.segment_table import Polygons

# Steps along an edge in the order of right turns, in image coordinates (y down).
_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
_MAX_PAIRS = 1e6
_RIGHT, _DOWN, _LEFT, _UP = range(4)


def mask_outline(mask: NDArray[np.uint8]) -> Polygons:
    """The rings around the parts of a mask, and around its holes.

    Args:
        mask: (H, W), 0 outside.

    Returns:
        Rings (P, 2) of corners x, y in pixels, without the last point repeated. A part's ring is
        clockwise as seen on the screen, a hole's is counter-clockwise; pixels that touch at a
        corner only are different parts.
    """
    inside = np.pad(mask != 0, 1)
    here = inside[1:-1, 1:-1]
    # Every edge between a pixel inside and one outside, walked with the inside on the right.
    edges = (
        (_RIGHT, here & ~inside[:-2, 1:-1], (0, 0)),
        (_DOWN, here & ~inside[1:-1, 2:], (1, 0)),
        (_LEFT, here & ~inside[2:, 1:-1], (1, 1)),
        (_UP, here & ~inside[1:-1, :-2], (0, 1)),
    )
    outgoing: dict[tuple[int, int], list[int]] = {}
    for direction, is_edge, (dx, dy) in edges:
        rows, columns = np.nonzero(is_edge)
        for corner in zip((columns + dx).tolist(), (rows + dy).tolist(), strict=True):
            outgoing.setdefault(corner, []).append(direction)
    rings = []
    for corner in sorted(outgoing):
        while outgoing[corner]:
            rings.append(_walk(corner, outgoing))
    return rings


def joined_rings(rings: Polygons) -> NDArray[np.float64]:
    """One ring through all of them, with bridges that are walked there and back.

    Where rings do not overlap, filling it by the even-odd rule, as COCO's drawing does, gives the
    parts without their holes.

    Args:
        rings: One or more rings of (P, 2) points.

    Returns:
        (P, 2) points.
    """
    joined = rings[0]
    for ring in rings[1:]:
        # Of long rings only some points are compared: a bridge need not be the shortest.
        step = math.ceil(math.sqrt(len(joined) * len(ring) / _MAX_PAIRS))
        squared = ((joined[::step, None] - ring[None, ::step]) ** 2).sum(-1)
        here, there = (step * i for i in divmod(int(squared.argmin()), squared.shape[1]))
        detour = np.concatenate([ring[there:], ring[: there + 1]])
        joined = np.concatenate([joined[: here + 1], detour, joined[here:]])
    return joined


def _walk(
    start: tuple[int, int], outgoing: dict[tuple[int, int], list[int]]
) -> NDArray[np.float64]:
    """Follows edges from a corner until they come back to it, and removes them."""
    corner, direction = start, outgoing[start].pop()
    first_direction, points = direction, [start]
    while True:
        corner = corner[0] + int(_STEPS[direction][0]), corner[1] + int(_STEPS[direction][1])
        choices = outgoing[corner]
        if corner == start and not _goes_on(choices, direction):
            break
        # The right turn first: it stays with the pixel that the walk is around.
        turned = next(d for d in _by_turn(direction) if d in choices)
        choices.remove(turned)
        if turned != direction:
            points.append(corner)
        direction = turned
    if direction == first_direction:
        points = points[1:]  # the start lies on a straight line
    return np.array(points, np.float64)


def _goes_on(choices: Sequence[int], direction: int) -> bool:
    """Whether a walk that is back at its start has another part of the same object to go round."""
    return (direction + 1) % 4 in choices


def _by_turn(direction: int) -> tuple[int, int, int]:
    return (direction + 1) % 4, direction, (direction + 3) % 4
