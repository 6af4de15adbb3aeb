"""Names and colours of classes: what a classes.txt may look like, and generated palettes."""

from pathlib import Path

import numpy as np
import pytest

from wavevit.data.segmentation.class_list import (
    check_same,
    listed_classes,
    numbered_classes,
    read_class_list,
)
from wavevit.data.segmentation.masks import LabelRule
from wavevit.data.segmentation.palette import class_palette, generated_palette, is_colourful


def write(folder: Path, text: str) -> Path:
    path = folder / "classes.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "names", "colours", "first"),
    [
        ("sky\ntraffic light\n", ["sky", "traffic light"], None, None),
        ("0\tsky\n1\ttraffic light\n", ["sky", "traffic light"], None, 0),
        ("1: sky\n2: traffic light", ["sky", "traffic light"], None, 1),
        ("sky 1 2 3\ncar 4 5 6", ["sky", "car"], [[1, 2, 3], [4, 5, 6]], None),
        ("0,sky,1,2,3\r\n1,car,4,5,255\r\n", ["sky", "car"], [[1, 2, 3], [4, 5, 255]], 0),
        ("\ufeffsky\n\n  7 wonders \n", ["sky", "7 wonders"], None, None),
        ("route 1 2 3\ncar", ["route 1 2 3", "car"], None, None),
        ("1\n2\n", ["1", "2"], None, None),
    ],
)
def test_forms_of_a_class_list(
    tmp_path: Path, text: str, names: list[str], colours: object, first: int | None
) -> None:
    found = read_class_list(write(tmp_path, text))
    assert (found.names, found.colours, found.first) == (names, colours, first)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n", "expected a name of a class per line, got none"),
        ("a\nb\na\n", "the name 'a' is there more than once"),
        ("0 a\n2 b\n", r"numbers from 0 or 1 that count up, got \[0, 2\]"),
        ("7 a\n8 b\n", r"numbers from 0 or 1 that count up, got \[7, 8\]"),
        ("a 0 0 0\nb 0 0 256\n", r"red, green and blue in \[0, 255\]"),
    ],
)
def test_faulty_lists_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_class_list(write(tmp_path, text))


def test_numbers_in_a_list_are_those_of_the_masks(tmp_path: Path) -> None:
    zero = LabelRule(reduce_zero_label=True)
    from_zero = write(tmp_path, "0 other\n1 wall\n2 sky\n3 void\n")
    assert listed_classes(from_zero, LabelRule()).names == ["other", "wall", "sky", "void"]
    assert listed_classes(from_zero, zero).names == ["wall", "sky", "void"]
    assert listed_classes(from_zero, LabelRule(3)).names == ["other", "wall", "sky"]
    assert listed_classes(from_zero, LabelRule(3, True)).names == ["wall", "sky"]
    # Only the last one can be left out without other labels changing.
    assert len(listed_classes(from_zero, LabelRule(1)).names) == 4
    from_one = write(tmp_path, "1 wall\n2 sky\n")
    assert listed_classes(from_one, zero).names == ["wall", "sky"]
    with pytest.raises(ValueError, match=r"numbered from 1; .* or set reduce_zero_label"):
        listed_classes(from_one, LabelRule())
    plain = write(tmp_path, "wall\nsky\nvoid\n")
    assert listed_classes(plain, zero).names == ["wall", "sky", "void"]
    assert listed_classes(plain, LabelRule(2)).names == ["wall", "sky"]
    assert listed_classes(plain, LabelRule(3)).names == ["wall", "sky", "void"]


def test_a_class_that_seems_to_be_none_is_noticed(tmp_path: Path) -> None:
    classes = listed_classes(write(tmp_path, "wall\nsky\nUnlabelled\n"), LabelRule())
    assert classes.suspect(LabelRule()) == (
        "the class 2 is called 'Unlabelled', but is not ignored; see ignore_index=2"
    )
    assert classes.suspect(LabelRule(ignore_index=2)) is None


def test_classes_of_a_model_have_to_be_those_of_the_data() -> None:
    classes = numbered_classes(3, "by num_classes")
    assert classes.names == ["class_0", "class_1", "class_2"]
    check_same(classes, ["class_0", "class_1", "class_2"], "set")
    with pytest.raises(ValueError, match="set has 3 classes by num_classes, but the model has 2"):
        check_same(classes, ["a", "b"], "set")
    with pytest.raises(ValueError, match="the class 1 is 'class_1', but 'car' for the model"):
        check_same(classes, ["class_0", "car", "class_2"], "set")
    for number in (1, 256):
        with pytest.raises(ValueError, match=f"expected 2 to 255 classes, got {number}"):
            numbered_classes(number, "set")


def test_generated_colours_can_be_told_apart() -> None:
    """The least distance of two colours, in levels of RGB; it shrinks as there are more."""
    for count, least in ((2, 200), (20, 45), (255, 15)):
        palette = np.array(generated_palette(count), float)
        assert palette.shape == (count, 3)
        distances = np.linalg.norm(palette[:, None] - palette, axis=2)
        assert distances[~np.eye(count, dtype=bool)].min() >= least
        assert (np.ptp(palette, axis=1) > 20).all()  # no greys
        luminance = (palette / 255) ** 2.2 @ (0.2126, 0.7152, 0.0722)
        assert luminance.min() > 0.09  # none is lost on dark asphalt
    assert generated_palette(20) == generated_palette(255)[:20]


def test_colours_are_pinned() -> None:
    """Pictures of two versions are compared: other colours would mislead."""
    assert generated_palette(4) == [[68, 136, 221], [204, 85, 0], [102, 204, 102], [187, 85, 170]]
    assert class_palette(["Background", "b"]) == [[0, 0, 0], [68, 136, 221]]
    assert class_palette(["a", "b"])[0] == [68, 136, 221]
    assert not is_colourful([[0, 0, 0], [1, 1, 1]])
    assert not is_colourful([[9, 0, 0], [9, 0, 0]])
    assert is_colourful([[0, 0, 0], [9, 0, 0]])
    with pytest.raises(ValueError, match="1 to 255 classes, got 0"):
        generated_palette(0)
