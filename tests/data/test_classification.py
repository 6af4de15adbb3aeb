"""Class folders and the built-in set open as the splits one expects."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wavevit.data.classification import ClassificationDataset, open_classification
from wavevit.data.holdout import choose_val
from wavevit.data.image_files import ImageFileDataset, PathTable
from wavevit.data.images import UnreadableImageError
from wavevit.data.shapes import ShapesDataset

WriteImages = Callable[..., None]


def ids(dataset: ClassificationDataset) -> list[str]:
    return [dataset.sample_id(index) for index in range(len(dataset))]


def class_of(dataset: ClassificationDataset) -> dict[str, str]:
    return {
        dataset.sample_id(index): dataset.class_names[label]
        for index, label in enumerate(dataset.labels)
    }


def test_train_and_val_folders(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(
        tmp_path, "train/dog/1.png", "train/cat/b.jpg", "train/cat/a.webp", "val/dog/1.png"
    )
    splits = open_classification(tmp_path)
    assert splits.class_names == splits.train.class_names == splits.val.class_names
    assert class_of(splits.train) == {
        "train/cat/a.webp": "cat",
        "train/cat/b.jpg": "cat",
        "train/dog/1.png": "dog",
    }
    assert class_of(splits.val) == {"val/dog/1.png": "dog"}  # cat is missing there, which is fine
    assert ids(splits.get("all")) == ids(splits.train) + ids(splits.val)
    assert splits.train.labels.dtype == np.int64
    assert splits.train.load(0).size == (40, 36)
    assert splits.train.load(0).mode == "RGB"


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_synonyms_of_val(tmp_path: Path, write_images: WriteImages, name: str) -> None:
    write_images(tmp_path, "train/a/1.png", "train/b/1.png", f"{name}/a/1.png", f"{name}/b/2.png")
    splits = open_classification(tmp_path)
    assert ids(splits.val) == [f"{name}/a/1.png", f"{name}/b/2.png"]
    assert str(tmp_path / name) in splits.description


def test_the_first_synonym_wins_and_is_named(tmp_path: Path, write_images: WriteImages) -> None:
    paths = [f"{split}/{c}/1.png" for split in ("train", "valid", "test") for c in "ab"]
    write_images(tmp_path, *paths)
    splits = open_classification(tmp_path)
    assert ids(splits.val) == ["valid/a/1.png", "valid/b/1.png"]
    assert "not used: test" in splits.description


def test_nested_folders_belong_to_the_top_class(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, "cat/x/y/1.png", "cat/2.png", "dog/z/1.png", "dog/2.png")
    every = open_classification(tmp_path).get("all")
    assert class_of(every)["cat/x/y/1.png"] == "cat"
    assert class_of(every)["dog/z/1.png"] == "dog"


def test_hidden_and_other_files_are_not_used(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, "a/1.png", "b/1.png", "a/2.png", "b/2.png", ".cache/1.png", "a/.x.png")
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "__MACOSX" / "a").mkdir(parents=True)
    splits = open_classification(tmp_path)
    assert splits.class_names == ["a", "b"]
    assert sorted(ids(splits.get("all"))) == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]


def test_held_out_split_is_stratified_and_complete(
    tmp_path: Path, write_images: WriteImages
) -> None:
    counts = {"one": 1, "two": 2, "ten": 10, "forty": 40}
    write_images(tmp_path, *(f"{name}/{i}.bmp" for name, n in counts.items() for i in range(n)))
    splits = open_classification(tmp_path, val_fraction=0.2, split_seed=3)
    train, val = class_of(splits.train), class_of(splits.val)
    assert {name: list(val.values()).count(name) for name in counts} == {
        "one": 0,
        "two": 1,
        "ten": 2,
        "forty": 8,
    }
    assert not set(train) & set(val)
    assert set(train) | set(val) == set(ids(splits.get("all")))
    assert len(train) + len(val) == 53
    again = open_classification(tmp_path, val_fraction=0.2, split_seed=3)
    assert ids(again.val) == ids(splits.val)
    other = open_classification(tmp_path, val_fraction=0.2, split_seed=4)
    assert ids(other.val) != ids(splits.val)
    assert len(other.val) == len(splits.val)


def test_some_of_the_validation_images_are_kept_and_the_rest_of_the_data_stays(
    tmp_path: Path, write_images: WriteImages
) -> None:
    write_images(tmp_path, *(f"{name}/{number}.bmp" for name in "ab" for number in range(10)))
    splits = open_classification(tmp_path, val_fraction=0.3)
    fewer = splits.keep_validation(np.array([1, 4]))
    assert ids(fewer.val) == [ids(splits.val)[1], ids(splits.val)[4]]
    assert fewer.train is splits.train
    assert fewer.held_out
    assert len(splits.val) == 6


def test_held_out_split_ignores_other_classes_and_order(
    tmp_path: Path, write_images: WriteImages
) -> None:
    paths = [f"{name}/{number}.bmp" for name in ("b", "d") for number in range(20)]
    write_images(tmp_path / "first", *paths)
    write_images(tmp_path / "second", *reversed(paths))
    write_images(tmp_path / "second", *(f"{name}/{i}.bmp" for name in "ac" for i in range(5)))
    first = open_classification(tmp_path / "first")
    second = open_classification(tmp_path / "second")
    assert set(ids(first.val)) == {i for i in ids(second.val) if i[0] in "bd"}


def test_choice_of_val_is_pinned() -> None:
    """A change of these would move images from training to validation in users' old runs."""
    sample_ids = [f"cat/{number}.jpg" for number in range(10)]
    is_val = choose_val(sample_ids, np.zeros(10, np.int64), fraction=0.3, seed=0)
    assert np.flatnonzero(is_val).tolist() == [4, 5, 6]


def test_lone_splits(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path / "t", *(f"train/{c}/{i}.png" for c in "ab" for i in range(4)))
    splits = open_classification(tmp_path / "t", val_fraction=0.25)
    assert (len(splits.train), len(splits.val)) == (6, 2)
    write_images(tmp_path / "v", "val/a/1.png", "val/b/1.png")
    splits = open_classification(tmp_path / "v")
    assert len(splits.val) == len(splits.get("all")) == 2
    with pytest.raises(ValueError, match=r"no split 'train' in this data set .*; has 'val'"):
        _ = splits.train


def test_nothing_held_out_on_request(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, "a/1.png", "b/1.png")
    splits = open_classification(tmp_path, val_fraction=0)
    assert len(splits.train) == len(splits.get("all")) == 2
    with pytest.raises(ValueError, match="no split 'val'"):
        _ = splits.val
    with pytest.raises(ValueError, match="no class has the two images"):
        open_classification(tmp_path)
    for fraction in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"part in \[0, 1\), got"):
            open_classification(tmp_path, val_fraction=fraction)


def test_class_names_of_a_trained_model(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, "val/zebra/1.png")
    splits = open_classification(tmp_path, class_names=["ant", "bee", "zebra"])
    assert splits.class_names == ["ant", "bee", "zebra"]
    assert splits.val.labels.tolist() == [2]
    with pytest.raises(ValueError, match=r"2 known classes \(ant, bee\): zebra; rename"):
        open_classification(tmp_path, class_names=["ant", "bee"])


def test_a_class_may_be_called_train(tmp_path: Path, write_images: WriteImages) -> None:
    paths = [f"{name}/{number}.png" for name in ("car", "train", "truck") for number in range(2)]
    write_images(tmp_path, *paths, "train/steam/3.png")
    assert open_classification(tmp_path).class_names == ["car", "train", "truck"]


def test_unlabelled_test_folder_beside_train(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, *(f"train/{c}/{i}.png" for c in "ab" for i in range(2)), "test/1.png")
    splits = open_classification(tmp_path)
    assert splits.class_names == ["a", "b"]
    assert len(splits.get("all")) == 4


def test_what_is_no_data_set_says_so(tmp_path: Path, write_images: WriteImages) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w"):
        pass
    write_images(tmp_path, "image.png", "flat/1.png", "flat/2.png", "single/only/1.png")
    write_images(tmp_path, "bare/train/1.png", "bare/val/1.png")
    write_images(tmp_path, "hollow/train/a/1.png", "hollow/train/b/1.png")
    (tmp_path / "hollow/train/c").mkdir()
    write_images(tmp_path, "novel/train/a/1.png", "novel/train/b/1.png", "novel/val/new/1.png")
    (tmp_path / "void").mkdir()
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "x.txt").touch()
    (tmp_path / "list.txt").touch()
    cases = {
        "data.zip": "is an archive: unpack it",
        "image.png": "is an image: name the folder",
        "list.txt": "is a file: name a folder",
        "flat": "expected class folders in .*, got 2 images directly in it",
        "single": "at least 2 classes, found only",
        "bare": "holds images directly; expected class folders",
        "hollow": "class folders without images in .*: c; add images or remove",
        "novel": r"not among the 2 known classes \(a, b\): new",
        "void": "is empty; expected a folder with train/",
        "texts": "no images found in the folders",
    }
    for name, text in cases.items():
        with pytest.raises(ValueError, match=text) as caught:
            open_classification(tmp_path / name)
        if name != "single":
            assert name in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*missing.*; expected a"):
        open_classification(tmp_path / "missing")


def test_unreadable_images_are_found_when_loaded(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png")
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"rubbish")
    train = open_classification(tmp_path).train
    with pytest.raises(UnreadableImageError, match=r"train/a/1\.png"):
        train.load(0)


def test_built_in_shapes() -> None:
    splits = open_classification("shapes", image_size=48)
    assert (len(splits.train), len(splits.val)) == (4000, 500)
    assert splits.train.load(0).size == (48, 48)
    assert len(splits.class_names) == 9
    with pytest.raises(ValueError, match="'shapes' has the classes disc-stripes"):
        open_classification("shapes", class_names=["cat", "dog"])
    with pytest.raises(ValueError, match="no split 'all'"):
        splits.get("all")


def test_both_kinds_are_classification_data_sets(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, "a/1.png")
    files = ImageFileDataset(tmp_path, PathTable(["a/1.png"]), np.zeros(1, np.int64), ["a"])
    sets: list[ClassificationDataset] = [files, ShapesDataset("val", num_images=9)]
    for dataset in sets:
        assert len(dataset) == len(dataset.labels) == len(set(ids(dataset)))
        assert dataset.load(0, min_size=8).mode == "RGB"
        copy = pickle.loads(pickle.dumps(dataset))
        assert ids(copy) == ids(dataset)
        assert copy.load(0).tobytes() == dataset.load(0).tobytes()
        with pytest.raises(IndexError, match="out of range"):
            dataset.load(len(dataset))


def test_path_table_holds_any_name_in_little_memory() -> None:
    names = ["a/b.png", "", "ä/日本.jpg", "bad\udcff.png"]
    table = PathTable(names)
    assert list(table) == names
    assert list(table.take(np.array([3, 0]))) == [names[3], names[0]]
    many = PathTable(f"class_{i % 1000:04d}/image_{i:08d}.jpeg" for i in range(20_000))
    assert len(pickle.dumps(many)) < 20_000 * (31 + 8) + 1000
