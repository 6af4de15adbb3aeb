"""Pasted masks are what bilinear sampling of the small mask at the pixels' centres gives."""

import resource
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wavevit.detection import mask_paste
from wavevit.detection.mask_paste import paste_masks

SIZE = (40, 55)

# The accelerator's way runs on the CPU as well.
WAYS = [mask_paste._paste_boxes, mask_paste._paste_together]


def sampled(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The definition, in fp64: one grid as large as the image for every mask."""
    H, W = size
    x1, y1, x2, y2 = boxes.double().unbind(dim=1)
    ys = (torch.arange(H).double() + 0.5 - y1[:, None]) / (y2 - y1)[:, None] * 2 - 1
    xs = (torch.arange(W).double() + 0.5 - x1[:, None]) / (x2 - x1)[:, None] * 2 - 1
    grid = torch.stack([xs[:, None].expand(-1, H, W), ys[:, :, None].expand(-1, H, W)], dim=3)
    return F.grid_sample(masks[:, None].double(), grid, align_corners=False)[:, 0]


@pytest.fixture
def boxes() -> Tensor:
    return torch.tensor(
        [
            [3.0, 4, 30, 36],
            [10.3, 7.9, 17.2, 29.4],
            [-20.5, -13, 30, 22],  # over the border
            [30, 20, 90, 70],
            [0, 0, 55, 40],  # everything
            [12, 13, 13, 14],  # one pixel
            [12.6, 13.2, 12.9, 13.4],  # less
            [-30, 5, -10, 9],  # outside
            [60, 50, 80, 90],
        ]
    )


@pytest.mark.parametrize("paste", WAYS)
def test_pasting_equals_sampling(paste: Callable[..., Tensor], boxes: Tensor) -> None:
    masks = torch.rand(len(boxes), 28, 28, generator=torch.Generator().manual_seed(0))
    pasted = paste(masks, boxes, SIZE)
    assert pasted.dtype == torch.float32
    torch.testing.assert_close(pasted.double(), sampled(masks, boxes, SIZE), rtol=0, atol=1e-5)


@pytest.mark.parametrize("paste", WAYS)
def test_a_full_mask_covers_its_box(paste: Callable[..., Tensor]) -> None:
    pasted = paste(torch.ones(1, 28, 28), torch.tensor([[5.0, 6, 25, 16]]), SIZE)[0]
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[6:16, 5:25] = True
    assert torch.equal(pasted >= 0.5, expected)


@pytest.mark.parametrize("paste", WAYS)
def test_a_box_without_area_is_no_error(paste: Callable[..., Tensor]) -> None:
    flat = torch.tensor([[5.0, 6, 5, 16], [7, 7, 7, 7], [9, 9, 3, 3]])
    assert paste(torch.ones(3, 28, 28), flat, SIZE).isfinite().all()


def test_no_masks_and_half_precision() -> None:
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE).shape == (0, *SIZE)
    box = torch.tensor([[3.0, 4, 30, 36]])
    with torch.autocast("cpu", torch.bfloat16):
        pasted = paste_masks(torch.ones(1, 28, 28).bfloat16(), box, SIZE)
    torch.testing.assert_close(pasted, paste_masks(torch.ones(1, 28, 28), box, SIZE))


def test_memory_beside_the_result_is_small() -> None:
    """A hundred small objects in a large picture: 1.6 GB of masks, hardly any of them touched."""
    corner = torch.rand(100, 2, generator=torch.Generator().manual_seed(0)) * 1900
    boxes = torch.cat([corner, corner + 40], dim=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pasted = paste_masks(torch.ones(100, 28, 28), boxes, (2000, 2000))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert pasted.shape == (100, 2000, 2000)
    # In kilobytes; pages of 2 MB may be handed out for every mask that is touched.
    assert grown < 600_000
