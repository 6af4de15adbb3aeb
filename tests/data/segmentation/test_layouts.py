"""Where images and masks may lie, how their names belong together, and what is wrong with them."""

from pathlib import Path
from typing import Any

import pytest

from wavevit.data.segmentation.layouts import (
    PairPattern,
    files_beside_splits,
    find_segmentation_layout,
    is_segmentation,
)
from wavevit.data.segmentation.pairs import find_pairs
from wavevit.data.segmentation.problems import SegmentationProblem


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    return root


def found(root: Path, **pattern: Any) -> dict[str, list[tuple[str, str]]]:
    """Images and masks of each split."""
    layout = find_segmentation_layout(root, PairPattern(**pattern))
    pairs = {name: find_pairs(layout.root, split) for name, split in layout.splits.items()}
    assert all(problems == [] for _, problems in pairs.values())
    return {
        name: list(zip(files.images, files.masks, strict=True))
        for name, (files, _) in pairs.items()
    }


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (("images/training/x.jpg", "annotations/training/x.png"), "validation"),
        (("images/train/x.jpg", "labels/train/x.png"), "valid"),
        (("images/train/a/b/x.JPG", "masks/train/a/b/x.png"), "val"),
        (("img_dir/train/x.tif", "ann_dir/train/x.png"), "val"),
        (("train/images/x.jpg", "train/masks/x.png"), "val"),
        (("Train/imgs/a/x.jpg", "Train/labels/a/x.PNG"), "Validation"),
    ],
)
def test_splits(tmp_path: Path, train: tuple[str, str], val: str) -> None:
    split = next(part for part in train[0].split("/") if part.lower().startswith("train"))
    other = tuple(path.replace(split, val) for path in train)
    touch(tmp_path, *train, *other)
    assert found(tmp_path) == {"train": [train], "val": [other]}
    assert is_segmentation(tmp_path)


def test_images_without_splits_in_nested_folders(tmp_path: Path) -> None:
    touch(tmp_path, "images/b/1.jpg", "images/2.jpg", "masks/2.png", "masks/b/1.png")
    assert found(tmp_path) == {
        "all": [("images/2.jpg", "masks/2.png"), ("images/b/1.jpg", "masks/b/1.png")]
    }


def test_cityscapes_has_several_pictures_for_each_image(tmp_path: Path) -> None:
    for split in ("train", "val"):
        name = f"{split}/ulm/ulm_01_02"
        kinds = ("labelTrainIds.png", "labelIds.png", "color.png", "polygons.json")
        touch(tmp_path, f"leftImg8bit/{name}_leftImg8bit.png")
        touch(tmp_path, *(f"gtFine/{name}_gtFine_{kind}" for kind in kinds))
    touch(tmp_path, "leftImg8bit/test/bonn/bonn_leftImg8bit.png")
    mask = "gtFine/{0}/ulm/ulm_01_02_gtFine_labelTrainIds.png"
    image = "leftImg8bit/{0}/ulm/ulm_01_02_leftImg8bit.png"
    assert found(tmp_path) == {
        split: [(image.format(split), mask.format(split))] for split in ("train", "val")
    }
    assert "without masks: leftImg8bit/test" in find_segmentation_layout(tmp_path).description
    other = found(tmp_path, mask_suffix="_gtFine_labelIds.png")
    assert other["val"][0][1].endswith("labelIds.png")
    for path in tmp_path.rglob("*TrainIds.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"ends in '_gtFine_labelTrainIds.png'; choose another"):
        find_segmentation_layout(tmp_path)


def test_folders_and_endings_of_any_name(tmp_path: Path) -> None:
    touch(tmp_path, "data/rgb/train/7_rgb.jpg", "data/rgb/train/7_depth.png")
    touch(tmp_path, "truth/train/7_id.png", "truth/train/7_colour.png")
    pattern = {
        "image_folder": "data/rgb",
        "mask_folder": "truth",
        "image_suffix": "_rgb.jpg",
        "mask_suffix": "_id.png",
    }
    pair = ("data/rgb/train/7_rgb.jpg", "truth/train/7_id.png")
    assert found(tmp_path, **pattern) == {"train": [pair]}
    assert not is_segmentation(tmp_path)


@pytest.mark.parametrize("image_suffix", [None, ".png"])
def test_images_and_masks_in_one_folder(tmp_path: Path, image_suffix: str | None) -> None:
    touch(tmp_path, "train/1.png", "train/1_mask.png", "val/2.png", "val/2_mask.png")
    pattern = {"image_folder": ".", "mask_folder": ".", "mask_suffix": "_mask.png"}
    assert found(tmp_path, **pattern, image_suffix=image_suffix) == {
        "train": [("train/1.png", "train/1_mask.png")],
        "val": [("val/2.png", "val/2_mask.png")],
    }


def test_a_test_split_measures_where_nothing_else_does(tmp_path: Path) -> None:
    for split in ("train", "test"):
        touch(tmp_path, f"images/{split}/{split}.jpg", f"masks/{split}/{split}.png")
    assert list(found(tmp_path)) == ["train", "val"]
    assert "val: images/test with masks/test" in find_segmentation_layout(tmp_path).description
    touch(tmp_path, "images/val/v.jpg", "masks/val/v.png")
    assert list(found(tmp_path)) == ["train", "val", "test"]


def test_pairs_that_do_not_fit_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "images/b.png", "images/d/e.jpg")
    touch(tmp_path, "masks/b.png", "masks/c.png", "masks/d/e.png")
    layout = find_segmentation_layout(tmp_path)
    pairs, problems = find_pairs(layout.root, layout.split("all"))
    assert list(pairs.images) == ["images/b.jpg", "images/d/e.jpg"]
    assert problems == [
        SegmentationProblem(
            "duplicate_name", "images/b.png", "the same name as images/b.jpg, up to the ending"
        ),
        SegmentationProblem("missing_mask", "images/a.jpg", "no mask masks/a.png"),
        SegmentationProblem("orphan_mask", "masks/c.png", "no image images/c.jpg or another image"),
    ]


def test_images_beside_the_splits_are_noticed(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/a.jpg", "masks/train/a.png", "images/lost.jpg")
    layout = find_segmentation_layout(tmp_path)
    assert files_beside_splits(layout) == [tmp_path / "images/lost.jpg"]


def test_what_may_be_meant_otherwise_is_asked(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "masks/a.png", "labels/a.png", "imgs/a.jpg")
    with pytest.raises(ValueError, match=r"'images' or 'imgs' .* choose by image_folder"):
        find_segmentation_layout(tmp_path)
    with pytest.raises(ValueError, match=r"'labels' or 'masks' .* choose by mask_folder"):
        find_segmentation_layout(tmp_path, PairPattern(image_folder="images"))
    assert is_segmentation(tmp_path)  # so that checking it asks, too
    pattern = {"image_folder": "images", "mask_folder": "labels"}
    assert found(tmp_path, **pattern) == {"all": [("images/a.jpg", "labels/a.png")]}
    touch(tmp_path, "imgs/train/a.jpg", "imgs/training/a.jpg", "labels/train/a.png")
    with pytest.raises(ValueError, match="are both the split 'train'"):
        find_segmentation_layout(tmp_path, PairPattern("imgs", "labels"))


def test_other_data_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/a.jpg", "labels/train/a.txt", "cat/1.jpg")
    assert not is_segmentation(tmp_path)
    assert not is_segmentation(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"no images with masks in .* expected images and masks"):
        find_segmentation_layout(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_segmentation_layout(tmp_path / "missing")
    with pytest.raises(ValueError, match="is a file: name the folder"):
        find_segmentation_layout(tmp_path / "cat/1.jpg")
    with pytest.raises(ValueError, match=r"no file in .* ends in '_x.png'"):
        find_segmentation_layout(tmp_path, PairPattern(mask_folder="labels", mask_suffix="_x.png"))
    touch(tmp_path, "labels/train/a.png")
    with pytest.raises(ValueError, match=r"^no split 'val' in '[^ ]*'; has 'train'$"):
        find_segmentation_layout(tmp_path).split("val")


@pytest.mark.parametrize("folder", ["", "/data", "../other"])
def test_patterns_stay_inside_of_the_data(folder: str) -> None:
    with pytest.raises(ValueError, match="mask_folder is a path inside of the data"):
        PairPattern(mask_folder=folder)
    with pytest.raises(ValueError, match="image_suffix is the end of a file's name"):
        PairPattern(image_suffix="")
