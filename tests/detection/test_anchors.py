"""Anchors lie where the published detectors have them."""

import json
from pathlib import Path

import pytest
import torch

from wavevit.detection.anchors import AnchorGenerator, inside_image, octave_scales

GENERATORS = {
    "retinanet_s": AnchorGenerator((8, 16, 32, 64, 128), octave_scales(4, 3), (0.5, 1.0, 2.0)),
    "mask_rcnn_s": AnchorGenerator((4, 8, 16, 32, 64), (8,), (0.5, 1.0, 2.0)),
    "gfl_s": AnchorGenerator((8, 16, 32, 64, 128), (8,), (1.0,)),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_anchors_equal_the_recorded_ones_to_the_bit(name: str, golden: Path) -> None:
    facts = json.loads((golden / "detection" / "facts.json").read_text())[name]
    generator = GENERATORS[name]
    assert [list(a.shape) for a in generator.cell_anchors()] == [[generator.num_per_cell, 4]] * 5
    for anchors, recorded in zip(
        generator.cell_anchors(), facts["base_anchors_per_level"], strict=True
    ):
        assert torch.equal(anchors, torch.tensor(recorded))
    first = generator([(3, 4)] * 5)[0]
    assert torch.equal(first, torch.tensor(facts["grid_3x4_first_level"]))


def test_cells_and_anchors_run_over_rows_then_columns() -> None:
    anchors = AnchorGenerator((4, 8), (1, 2), (1.0,))([(2, 3), (1, 2)])
    assert [len(a) for a in anchors] == [2 * 3 * 2, 1 * 2 * 2]
    centres = (anchors[0][::2, :2] + anchors[0][::2, 2:]) / 2
    assert centres.tolist() == [[0, 0], [4, 0], [8, 0], [0, 4], [4, 4], [8, 4]]
    sides = anchors[1][:, 2:] - anchors[1][:, :2]
    assert sides.tolist() == [[8, 8], [16, 16]] * 2


def test_ratios_are_heights_over_widths_at_one_area() -> None:
    (wide, tall) = AnchorGenerator((10,), (2,), (0.25, 4.0)).cell_anchors()[0]
    torch.testing.assert_close(wide, torch.tensor([-20.0, -5.0, 20.0, 5.0]))
    torch.testing.assert_close(tall, torch.tensor([-5.0, -20.0, 5.0, 20.0]))


def test_cells_of_an_image_cover_its_padding() -> None:
    generator = AnchorGenerator((8, 128), (1,), (1.0,))
    assert generator.cells_inside((192, 256)) == [(24, 32), (2, 2)]


def test_inside_is_strict_at_the_right_and_bottom() -> None:
    boxes = torch.tensor(
        [[0, 0, 9, 19], [0, 0, 10, 19], [0, 0, 9, 20], [-1, 0, 9, 19], [0, -1, 9, 19]]
    )
    assert inside_image(boxes, (20, 10)).tolist() == [True, False, False, False, False]
