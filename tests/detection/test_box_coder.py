"""Encoding and decoding boxes are each other's inverse."""

import math

import pytest
import torch
from torch import Tensor

from wavevit.detection.box_coder import DeltaBoxCoder, DistanceBoxCoder, box_centres


@pytest.fixture
def boxes() -> Tensor:
    corners = torch.rand(50, 2, 2, generator=torch.Generator().manual_seed(0)) * 100
    low, high = corners.amin(1), corners.amax(1)
    return torch.cat((low, high + 1), dim=1)


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)])
def test_decoding_deltas_undoes_encoding(boxes: Tensor, stds: tuple[float, ...]) -> None:
    coder = DeltaBoxCoder(stds)
    references = boxes.flip(0)
    torch.testing.assert_close(
        coder.decode(references, coder.encode(references, boxes)), boxes, rtol=1e-5, atol=1e-4
    )


def test_known_deltas() -> None:
    """A box moved by half a width and twice as high, with standard deviations of 0.5 and 0.1."""
    coder = DeltaBoxCoder((0.5, 0.5, 0.1, 0.1))
    reference, box = torch.tensor([0.0, 0, 10, 20]), torch.tensor([5.0, -10, 15, 30])
    expected = torch.tensor([1.0, 0.0, 0.0, math.log(2) / 0.1])
    torch.testing.assert_close(coder.encode(reference, box), expected)


def test_sizes_grow_by_a_bounded_factor() -> None:
    """The logarithm of a ratio is bounded by log(1000 / 16), 4.135, in both directions."""
    huge = DeltaBoxCoder().decode(torch.tensor([0.0, 0, 2, 2]), torch.tensor([0.0, 0, 50, -50]))
    width, height = huge[2] - huge[0], huge[3] - huge[1]
    assert width.item() == pytest.approx(2 * 62.5, rel=1e-5)
    assert height.item() == pytest.approx(2 / 62.5, rel=1e-4)


def test_decoded_boxes_are_clipped_only_if_asked() -> None:
    coder, reference = DeltaBoxCoder(), torch.tensor([[0.0, 0, 100, 50]])
    deltas = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert coder.decode(reference, deltas).tolist() == [[50, 25, 150, 75]]
    assert coder.decode(reference, deltas, (60, 120)).tolist() == [[50, 25, 120, 60]]


def test_class_specific_deltas_share_a_reference(boxes: Tensor) -> None:
    coder, deltas = DeltaBoxCoder(), torch.randn(50, 3, 4) * 0.1
    decoded = coder.decode(boxes[:, None], deltas)
    assert decoded.shape == (50, 3, 4)
    torch.testing.assert_close(decoded[:, 1], coder.decode(boxes, deltas[:, 1]))


def test_half_precision_is_decoded_in_full(boxes: Tensor) -> None:
    deltas = torch.zeros(50, 4, dtype=torch.bfloat16)
    torch.testing.assert_close(DeltaBoxCoder().decode(boxes, deltas), boxes)


def test_decoding_distances_undoes_encoding(boxes: Tensor) -> None:
    coder, points = DistanceBoxCoder(), box_centres(boxes.flip(0))
    torch.testing.assert_close(coder.decode(points, coder.encode(points, boxes)), boxes)
    assert coder.encode(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1, 9, 6])).tolist() == [
        2,
        3,
        6,
        2,
    ]
