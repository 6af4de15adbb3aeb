"""Label maps stand beside their images, in the right place, colour and strength."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wavevit.pictures.label_maps import MapExample, draw_label_maps, overlay

BLUE, ORANGE, GREY = (47, 111, 181), (224, 129, 47), (139, 149, 161)
NAMES = ["cat", "dog", "$\\frac{1}{0}$ costs $5", "日本語\nقطة", "n" * 400, *"abcdefghijkl"]


def example(
    classes: list[list[int]], probability: float = 1.0, size: tuple[int, int] = (90, 60)
) -> MapExample:
    cells = np.array(classes)
    image = Image.new("RGB", size, "black")
    return MapExample(image, "cat", cells, np.full(cells.shape, probability))


def read(path: Path) -> np.ndarray:
    """(H, W, 3) pixels of a picture, with nothing beside it in its folder."""
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_cells_lie_where_they_are_in_the_image() -> None:
    """Two rows, three columns: nothing is transposed, and each cell covers its own part."""
    shown = example([[0, 0, 1], [1, 1, 1]])
    pixels = np.asarray(overlay(shown.image, shown, {0: "#ff0000", 1: "#0000ff"}))
    assert pixels.shape == (60, 90, 3)
    red = pixels[..., 0] > pixels[..., 2]
    expected = np.zeros((60, 90), bool)
    expected[:30, :60] = True
    np.testing.assert_array_equal(red, expected)


def test_the_surer_the_stronger() -> None:
    """Without any certainty the pale picture is left; classes without a colour are grey."""
    pale, half, full = (
        np.asarray(overlay(shown.image, shown, {0: "#ff0000"})).astype(int)[0, 0]
        for shown in (example([[0]], p) for p in (0.0, 0.5, 1.0))
    )
    assert len(set(pale.tolist())) == 1
    assert pale[0] - pale[1] < half[0] - half[1] < full[0] - full[1]
    shown = example([[3]], 1.0)
    grey = np.asarray(overlay(shown.image, shown, {0: "#ff0000"})).astype(int)[0, 0]
    assert grey.max() - grey.min() < 40
    shown = example([[0]], float("nan"))  # of a damaged map: as if unsure
    np.testing.assert_array_equal(np.asarray(overlay(shown.image, shown, {0: "#f00"}))[0, 0], pale)


def test_the_picture_has_images_maps_and_a_legend(tmp_path: Path) -> None:
    examples = [example([[0, 1], [0, 0]]), example([[1]], size=(7, 300)), example([[2, 3, 4]])]
    draw_label_maps(examples, NAMES, tmp_path / "maps.png", title="maps of ↯ a teacher")
    pixels = read(tmp_path / "maps.png")
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge > 250).all()
    for color in (BLUE, ORANGE):  # pure only in the legend
        found = (np.abs(pixels.astype(int) - color).max(axis=2) <= 2).sum()
        assert 100 <= found <= 200
    assert (pixels < 5).all(axis=2).any()  # the black images themselves


def test_beyond_twelve_classes_the_rest_shares_a_grey(tmp_path: Path) -> None:
    draw_label_maps([example([list(range(15))])], NAMES, tmp_path / "maps.png", columns=3)
    pixels = read(tmp_path / "maps.png").astype(int)
    assert (np.abs(pixels - GREY).max(axis=2) <= 2).sum() >= 100


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        draw_label_maps([], NAMES, tmp_path / "maps.png")
    with pytest.raises(ValueError, match="expected classes 0 to 1, got 0 to 2"):
        draw_label_maps([example([[0, 2]])], NAMES[:2], tmp_path / "maps.png")
    assert not list(tmp_path.iterdir())
