"""Crops of label maps are RoIAlign of the dense map, along any affine."""

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from wavevit.data.geometry import View
from wavevit.data.label_maps.reader import LabelMap
from wavevit.data.token_labels import TokenLogits, crop_label_map

NUM_CLASSES = 40
WHOLE = np.array([[1.0, 0, 0], [0, 1, 0]])


def random_map(H: int, W: int, k: int = 5, seed: int = 0) -> LabelMap:
    rng = np.random.default_rng(seed)
    scores = rng.normal(5, 4, (k, H, W)).astype(np.float32)
    classes = rng.random((NUM_CLASSES, H, W)).argsort(0)[:k]
    return LabelMap(scores, classes.astype(np.int64))


def dense(label_map: LabelMap) -> np.ndarray:
    result = np.zeros((NUM_CLASSES, *label_map.scores.shape[1:]), np.float32)
    np.put_along_axis(result, label_map.classes, label_map.scores, 0)
    return result


def every_class(tokens: TokenLogits) -> np.ndarray:
    """``(1 + N, K)``, zeros for classes not listed."""
    result = np.zeros((len(tokens.logits), NUM_CLASSES), np.float32)
    result[:, tokens.classes] = tokens.logits
    return result


def upright(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return np.array([[x2 - x1, 0, x1], [0, y2 - y1, y1]])


def torchvision_crop(
    label_map: LabelMap, box: np.ndarray, grid: tuple[int, int], **options: Any
) -> np.ndarray:
    """The official recipe: dense map, boxes in cells, once for the whole and once for the grid."""
    features = torch.from_numpy(dense(label_map))[None].double()
    boxes = [torch.from_numpy(box)[None]]
    whole, cells = (roi_align(features, boxes, size, **options)[0] for size in ((1, 1), grid))
    return torch.cat([whole.flatten(1), cells.flatten(1)], 1).T.numpy()


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((18, 18), (7, 7)),
        ((18, 18), (12, 12)),
        ((9, 14), (3, 7)),
        ((14, 6), (5, 2)),
        ((5, 7), (7, 4)),
        ((1, 1), (2, 3)),
        ((1, 9), (4, 4)),
    ],
)
def test_upright_crops_equal_torchvision(size: tuple[int, int], grid: tuple[int, int]) -> None:
    H, W = size
    rng = np.random.default_rng(1)
    label_map = random_map(H, W, seed=2)
    boxes = [np.array([0.0, 0, 1, 1])]
    for _ in range(120):
        (x1, x2), (y1, y2) = np.sort(rng.random((2, 2)), axis=1)
        boxes.append(np.array([x1, y1, x2, y2]))
    official = 0
    for box in boxes:
        found = every_class(crop_label_map(label_map, View(upright(*box)), grid))
        cells = box * [W, H, W, H]
        expected = torchvision_crop(label_map, cells, grid, aligned=True)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        if min(cells[2] - cells[0], cells[3] - cells[1]) >= 1:
            official += 1
            expected = torchvision_crop(label_map, cells - 0.5, grid, aligned=False)
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert official > 30 or 1 in size


@pytest.mark.parametrize("reach", [0.02, 0.3, 2.0])
def test_border_rule_is_that_of_torchvision(reach: float) -> None:
    """Crops that reach out of the map, as translations make them."""
    rng = np.random.default_rng(3)
    label_map = random_map(6, 9)
    for _ in range(60):
        low, high = rng.uniform(-reach, 0.4, 2), rng.uniform(0.6, 1 + reach, 2)
        box = np.concatenate([low, high])
        found = every_class(crop_label_map(label_map, View(upright(*box)), (4, 5)))
        expected = torchvision_crop(label_map, box * [9, 6, 9, 6] - 0.5, (4, 5))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_x_and_y_are_not_swapped() -> None:
    """A class in the upper right corner is seen in the upper right of the whole view only."""
    label_map = LabelMap(np.zeros((1, 4, 8), np.float32), np.zeros((1, 4, 8), np.int64))
    label_map.scores[0, 0, 7], label_map.classes[0, 0, 7] = 6.0, 33
    tokens = crop_label_map(label_map, View(WHOLE), (4, 8))
    assert tokens.classes.tolist() == [0, 33]
    expected = np.zeros((4, 8))
    expected[0, 7] = 6
    np.testing.assert_allclose(tokens.logits[1:, 1].reshape(4, 8), expected, atol=1e-6)
    assert (tokens.logits[:, 0] == 0).all()
    right_half = crop_label_map(label_map, View(upright(0.5, 0, 1, 1)), (1, 1))
    assert right_half.logits[1, 1] > 0
    lower_half = crop_label_map(label_map, View(upright(0, 0.5, 1, 1)), (1, 1))
    assert lower_half.logits[1, 1] == 0


def test_flips_and_quarter_turns_permute_the_tokens() -> None:
    label_map = random_map(9, 14)
    to_source = upright(0.1, 0.25, 0.8, 0.9)
    plain = every_class(crop_label_map(label_map, View(to_source), (3, 4)))
    grid = plain[1:].reshape(3, 4, -1)
    ways = {
        (3, 4): [
            ([[-1, 0, 1], [0, 1, 0]], grid[:, ::-1]),
            ([[1, 0, 0], [0, -1, 1]], grid[::-1]),
            ([[-1, 0, 1], [0, -1, 1]], grid[::-1, ::-1]),
        ],
        (4, 3): [
            ([[0, 1, 0], [1, 0, 0]], grid.transpose(1, 0, 2)),
            ([[0, 1, 0], [-1, 0, 1]], grid.transpose(1, 0, 2)[:, ::-1]),
        ],
    }
    for size, cases in ways.items():
        for step, expected in cases:
            found = crop_label_map(label_map, View(to_source @ [*step, [0, 0, 1]]), size)
            np.testing.assert_allclose(every_class(found)[0], plain[0], atol=1e-5)
            found_grid = every_class(found)[1:].reshape(*size, -1)
            np.testing.assert_allclose(found_grid, expected, atol=1e-5)


def sampled(values: np.ndarray, x: float, y: float) -> np.ndarray:
    """Bilinear value of ``(K, H, W)`` at a point in cells, by RoIAlign's border rule."""
    H, W = values.shape[1:]
    if not (-1 <= x <= W and -1 <= y <= H):
        return np.zeros(len(values))
    x, y = min(max(x, 0), W - 1), min(max(y, 0), H - 1)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, W - 1), min(top + 1, H - 1)
    upper = values[:, top, left] * (1 - x + left) + values[:, top, right] * (x - left)
    lower = values[:, bottom, left] * (1 - x + left) + values[:, bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def test_any_view_equals_a_plain_loop_over_its_sampling_points() -> None:
    H, W, rows, columns = 7, 10, 3, 4
    label_map = random_map(H, W)
    values = dense(label_map)
    rng = np.random.default_rng(5)
    num_filled = 0
    for num_windows in [0, 1, 2, 3] * 4:
        to_source, *windows = rng.normal(
            [[0.7, 0, 0.2], [0, 0.7, 0.2]], 0.5, (1 + num_windows, 2, 3)
        )
        view = View(to_source, tuple(windows))
        found = every_class(crop_label_map(label_map, view, (rows, columns)))
        n_x = int(np.ceil(np.hypot(to_source[0, 0] * W, to_source[1, 0] * H) / columns))
        n_y = int(np.ceil(np.hypot(to_source[0, 1] * W, to_source[1, 1] * H) / rows))
        for row in range(rows):
            for column in range(columns):
                total = np.zeros(NUM_CLASSES)
                for i in range(n_y):
                    for j in range(n_x):
                        u = (column + (j + 0.5) / n_x) / columns
                        v = (row + (i + 0.5) / n_y) / rows
                        if any(not 0 <= place <= 1 for a in windows for place in a @ [u, v, 1]):
                            num_filled += 1
                            continue
                        x, y = to_source @ [u, v, 1]
                        total += sampled(values, x * W - 0.5, y * H - 0.5)
                expected = total / (n_x * n_y)
                np.testing.assert_allclose(found[1 + row * columns + column], expected, atol=1e-5)
    assert num_filled > 100


def test_only_the_classes_of_the_map_are_listed_once() -> None:
    label_map = random_map(6, 6, k=2)
    tokens = crop_label_map(label_map, View(upright(0.2, 0.1, 0.4, 0.5)), (2, 3))
    assert tokens.classes.tolist() == sorted(set(label_map.classes.ravel().tolist()))
    assert (tokens.logits.dtype, tokens.classes.dtype) == (np.float32, np.int64)
    assert tokens.logits.shape == (7, len(tokens.classes))


def test_fill_is_zero_even_where_the_affine_leads_to_the_middle_of_the_map() -> None:
    """The right half of the view was lost on the way, and so was its share of the class token."""
    label_map = LabelMap(np.full((1, 6, 8), 3.0, np.float32), np.full((1, 6, 8), 9))
    view = View(upright(0.2, 0.2, 0.6, 0.8), (WHOLE, upright(0.5, 0, 1.5, 1), WHOLE))
    logits = crop_label_map(label_map, view, (2, 4)).logits[:, 0]
    np.testing.assert_allclose(logits, [1.5, *[3, 3, 0, 0] * 2], atol=1e-6)


def test_a_view_of_nothing_but_fill_is_zero_and_keeps_the_affine() -> None:
    to_source = upright(1.5, 0.0, 2.5, 1.0)
    before = to_source.copy()
    assert (crop_label_map(random_map(6, 6), View(to_source), (2, 2)).logits == 0).all()
    assert np.array_equal(to_source, before)
