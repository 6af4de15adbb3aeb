"""Masks survive every way of writing them, and are those of faster-coco-eval and pycocotools."""

from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as library
from numpy.typing import NDArray
from PIL import Image

from wavevit.data.detection.mask_outlines import joined_rings, mask_outline
from wavevit.data.detection.object_masks import (
    check_code,
    code_to_counts,
    decode_masks,
    encode_counts,
    encode_mask,
    encode_polygons,
    read_instance_map,
)
from wavevit.data.detection.segment_table import SegmentTableBuilder
from wavevit.data.images import UnreadableImageError


def random_masks() -> list[NDArray[np.uint8]]:
    """Masks of many sizes: noise, blobs, full, empty, and single pixels in the corners."""
    rng = np.random.default_rng(0)
    masks = []
    for number in range(60):
        H, W = rng.integers(1, 30, 2)
        noise = rng.random((H, W))
        if number % 2:  # blobs with holes
            noise = sum(np.roll(noise, (i, j), (0, 1)) for i in range(3) for j in range(3)) / 9
        masks.append((noise < rng.choice([0.05, 0.4, 0.5, 0.95])).astype(np.uint8))
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        mask = np.zeros((7, 5), np.uint8)
        mask[corner] = 1
        masks.append(mask)
    return [*masks, np.ones((4, 9), np.uint8), np.zeros((4, 9), np.uint8)]


def test_codes_are_those_of_the_library_and_come_back_as_the_mask() -> None:
    for mask in random_masks():
        H, W = mask.shape
        code = encode_mask(mask)
        assert code == library.encode(np.asfortranarray(mask))["counts"]
        check_code(code, H, W)
        np.testing.assert_array_equal(decode_masks([code], H, W)[0], mask)
        np.testing.assert_array_equal(library.decode({"size": [H, W], "counts": code}), mask)
        counts = code_to_counts(code)
        assert counts.sum() == H * W
        assert encode_counts(counts.tolist(), H, W) == code


def test_codes_and_polygons_are_those_of_pycocotools() -> None:
    reference = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(1)
    for mask in random_masks()[:20]:
        assert encode_mask(mask) == reference.encode(np.asfortranarray(mask))["counts"]
    for _ in range(20):
        rings = [rng.uniform(-1, 25, (int(rng.integers(3, 9)), 2)).round(2) for _ in range(2)]
        flat = [ring.ravel().tolist() for ring in rings]
        expected = reference.merge(reference.frPyObjects(flat, 20, 24))["counts"]
        assert encode_polygons(rings, 20, 24) == expected


def test_large_counts_need_several_characters() -> None:
    counts = [5_000_000, 3, 2_000_000, 4_000_000, 999_997]
    code = encode_counts(counts, 3000, 4000)
    assert code_to_counts(code).tolist() == counts


def test_masks_of_several_objects_come_in_order() -> None:
    masks = [mask for mask in random_masks() if mask.shape == (7, 5)]
    decoded = decode_masks([encode_mask(mask) for mask in masks], 7, 5)
    np.testing.assert_array_equal(decoded, np.stack(masks))
    assert decode_masks([], 7, 5).shape == (0, 7, 5)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (b"", "counts for 0 pixels, not 5 x 7"),
        (encode_mask(np.ones((5, 8), np.uint8)), "counts for 40 pixels, not 5 x 7"),
        (b"\x01\x02", "a character that is not used"),
        (b"5:d", "breaks off"),
        (b"ooooooooo0", "a count that is too large"),
        (b"51N6h0", "a negative count"),
    ],
)
def test_broken_codes_are_refused(code: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_code(code, 5, 7)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([5, 10, 21], "counts for 36 pixels, not 5 x 7"),
        ([5, -1, 31], "a negative count"),
        ([5, 10.0, 20], "no whole numbers"),
        ([5, None], "no whole numbers"),
    ],
)
def test_broken_counts_are_refused(counts: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        encode_counts(counts, 5, 7)


def test_outlines_drawn_again_give_the_mask_to_the_pixel() -> None:
    """Also holes, and several parts in one ring with bridges."""
    for mask in random_masks():
        H, W = mask.shape
        rings = mask_outline(mask)
        areas = [
            np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2
            for x, y in (ring.T for ring in rings)
        ]
        assert sum(areas) == mask.sum()
        assert all(np.any(ring != np.roll(ring, 1, 0), axis=1).all() for ring in rings)
        if mask.any():
            drawn = decode_masks([encode_polygons([joined_rings(rings)], H, W)], H, W)[0]
            np.testing.assert_array_equal(drawn, mask)


def test_rings_that_touch_at_a_corner_are_two() -> None:
    assert len(mask_outline(np.eye(2, dtype=np.uint8))) == 2
    assert len(mask_outline(1 - np.pad(np.eye(2, dtype=np.uint8), 1))) == 2


def test_segment_table_gives_back_what_was_added_in_any_order() -> None:
    builder = SegmentTableBuilder()
    square, triangle = [0.0, 0, 2, 0, 2, 2, 0, 2], [5.0, 5, 8, 5, 5, 9.5]
    code = encode_mask(np.eye(3, dtype=np.uint8))
    for segment in ([square], None, code, [triangle, square], 7):
        builder.append(segment)
    with pytest.raises(TypeError):
        builder.append([[1.0, "x"]])
    table = builder.build()
    assert len(table) == 5
    assert table.exists.tolist() == [True, False, True, True, True]
    np.testing.assert_allclose(table.polygon_areas(), [4, 0, 0, 4 + 3 * 4.5 / 2, 0])
    taken = table.take(np.array([4, 3, 2, 1]))
    assert taken[0] == 7
    assert taken[2] == code
    assert taken[3] is None
    rings = taken[1]
    assert isinstance(rings, list)
    assert [ring.ravel().tolist() for ring in rings] == [triangle, square]
    np.testing.assert_allclose(taken.polygon_areas(), [0, 4 + 3 * 4.5 / 2, 0, 0])


def test_pictures_of_object_numbers_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    numbers = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(numbers).save(path)
    np.testing.assert_array_equal(read_instance_map(path, (3, 4)), numbers)
    with pytest.raises(UnreadableImageError, match="4 x 5 pixels, got mode L, 4 x 3 pixels"):
        read_instance_map(path, (5, 4))
    Image.new("RGB", (4, 3)).save(path)
    with pytest.raises(UnreadableImageError, match="got mode RGB"):
        read_instance_map(path, (3, 4))
    path.write_bytes(b"rubbish")
    with pytest.raises(UnreadableImageError, match="cannot read image"):
        read_instance_map(path, (3, 4))
