"""Indexing WebDataset tar files made by others."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wavevit.data.classification import open_classification
from wavevit.data.shards.dataset import ShardDataset
from wavevit.data.shards.foreign_tars import find_tars, index_tars

Member = tuple[str, bytes]


def picture(seed: int, image_format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, image_format)
    return stream.getvalue()


def write_tar(path: Path, members: Sequence[Member], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample(key: str, label: object, seed: int = 0) -> list[Member]:
    return [(f"{key}.png", picture(seed)), (f"{key}.cls", str(label).encode())]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    root = tmp_path / "tars"
    write_tar(root / "train-0.tar", [*sample("a", 2), *sample("b", 10, 1)])
    write_tar(root / "train-1.tar", [*sample("a", 10, 2), *sample("c", 2, 3)])
    write_tar(root / "val-0.tar", sample("x", 10, 4))
    return root


def test_tars_become_a_data_set(tars: Path) -> None:
    before = {path.name: path.read_bytes() for path in tars.iterdir()}
    index_tars(tars)
    splits = open_classification(tars)
    assert splits.class_names == ["2", "10"]
    train = splits.train
    assert isinstance(train, ShardDataset)
    assert list(train.sample_ids()) == [
        "train-0.tar/a.png",
        "train-0.tar/b.png",
        "train-1.tar/a.png",
        "train-1.tar/c.png",
    ]
    assert train.labels.tolist() == [0, 1, 1, 0]
    assert [train.read_bytes(i) for i in range(4)] == [picture(i) for i in range(4)]
    assert splits.val.labels.tolist() == [1]
    after = {path.name: path.read_bytes() for path in tars.iterdir()}
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {
        "shards.json",
        "train-index.safetensors",
        "val-index.safetensors",
    }


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_other_ways_to_write_such_tars_are_read(tmp_path: Path, style: int) -> None:
    deep = "/".join(["folder.with.dots", "ü" * 30, "k" * 60])
    write_tar(
        tmp_path / "imagenet-train-00.tar",
        [
            ("__info__.json", b"{}"),
            (f"./{deep}/one.JPEG", picture(0, "JPEG")),
            (f"./{deep}/one.json", json.dumps({"label": 1, "width": 40}).encode()),
            (f"./{deep}/one.txt", b"a caption"),
            ("two.seg.png", b"not the image"),
            ("two.json", b'{"cls": "0"}'),
            ("two.jpg", picture(1, "JPEG")),
            (".hidden.jpg", b""),
            ("__meta__.cls", b"7"),
            ("README", b"text"),
        ],
        format=style,
    )
    write_tar(tmp_path / "imagenet-validation-00.tar", sample("v", 1))
    with tarfile.open(tmp_path / "imagenet-validation-00.tar", "a") as tar:
        folder = tarfile.TarInfo("some.folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    index_tars(tmp_path)
    train = open_classification(tmp_path).train
    assert isinstance(train, ShardDataset)
    assert list(train.sample_ids()) == [
        f"imagenet-train-00.tar/{deep}/one.jpeg",
        "imagenet-train-00.tar/two.jpg",
    ]
    assert train.labels.tolist() == [1, 0]
    assert train.read_bytes(1) == picture(1, "JPEG")


def test_labels_may_be_names_or_numbers_into_a_list(tmp_path: Path) -> None:
    names = tmp_path / "names"
    write_tar(names / "train.tar", [*sample("a", "dog"), *sample("b", "cat"), *sample("c", "dog")])
    index_tars(names)
    assert open_classification(names, val_fraction=0).class_names == ["cat", "dog"]
    index_tars(names, class_names=["dog", "eel", "cat"], overwrite=True)
    data = open_classification(names, val_fraction=0).train
    assert data.class_names == ["dog", "eel", "cat"]
    assert data.labels.tolist() == [0, 2, 0]
    numbers = tmp_path / "numbers"
    write_tar(numbers / "val.tar", [*sample("a", 1), *sample("b", 0)])
    index_tars(numbers, class_names=["zero", "one"])
    assert open_classification(numbers).val.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"not among the 1 classes \(zero, ...\): 1; expected"):
        index_tars(numbers, class_names=["zero"], overwrite=True)


def test_a_class_that_training_does_not_have_is_refused(tars: Path) -> None:
    write_tar(tars / "val-1.tar", sample("y", 3))
    with pytest.raises(ValueError, match=r"not among the 2 classes \(2, 10, ...\): 3"):
        index_tars(tars)
    assert not list(tars.glob("*.json"))


def test_splits_are_told_by_names(tmp_path: Path) -> None:
    for name in ("train-1", "x_test-0", "valid-0", "retrain", "validation_0"):
        write_tar(tmp_path / f"{name}.tar", sample("a", 0))
    found = find_tars(tmp_path)
    assert {split: [p.name for p in paths] for split, paths in found.items()} == {
        "train": ["train-1.tar"],
        "val": ["valid-0.tar"],
    }
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_tars(tmp_path / "missing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "images.tar").touch()
    with pytest.raises(FileNotFoundError, match=r"no tar files named train\*\.tar.*images\.tar"):
        find_tars(tmp_path / "other")


def cut(path: Path) -> None:
    os.truncate(path, 2000)


def cut_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = content.index(b"b.png")
    content[start + 150] ^= 1  # in the header's checksum
    path.write_bytes(content)


def compress(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def compress_and_rename(path: Path) -> None:
    compress(path)
    path.rename(f"{path}.gz")


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (cut, r"train-0\.tar is no complete tar file \(unexpected end of data\); copy it again"),
        (cut_header, r"train-0\.tar is damaged after [\d,]+ bytes"),
        (compress, r"train-0\.tar is compressed: .* unpack it"),
        (compress_and_rename, r"train-0\.tar\.gz is compressed"),
        (lambda path: path.write_bytes(b""), r"train-0\.tar is no complete tar file"),
        (lambda path: path.write_bytes(bytes(10240)), r"train-0\.tar has no samples"),
        (
            lambda path: write_tar(path, [("a.png", b"x"), ("b.cls", b"1")]),
            r"the sample 'a' has no label; expected a\.cls, or a\.json with",
        ),
        (
            lambda path: write_tar(path, [("a.png", b"x"), ("a.json", b"[]")]),
            "the sample 'a' has no label",
        ),
        (
            lambda path: write_tar(path, [("a.npy", b"x"), ("a.cls", b"1")]),
            r"expected one image for the sample 'a', got files \.npy, \.cls",
        ),
        (
            lambda path: write_tar(path, [("a.png", b"x"), ("a.jpg", b"x"), ("a.cls", b"1")]),
            r"expected one image for the sample 'a'",
        ),
        (
            lambda path: write_tar(path, [*sample("a", 1), *sample("b", 1), *sample("a", 1)]),
            "the sample 'a' is there twice",
        ),
    ],
)
def test_what_cannot_be_indexed_is_one_clear_error(
    tars: Path, breakage: Callable[[Path], None], message: str
) -> None:
    breakage(tars / "train-0.tar")
    with pytest.raises(ValueError, match=message) as error:
        index_tars(tars)
    assert "\n" not in str(error.value)
    assert not (tars / "shards.json").exists()


def test_an_index_is_replaced_only_when_asked_to(tars: Path) -> None:
    index_tars(tars)
    with pytest.raises(FileExistsError, match=r"shards\.json is there already; pass --overwrite"):
        index_tars(tars)
    write_tar(tars / "train-2.tar", sample("d", 2, 9))
    index_tars(tars, overwrite=True)
    assert len(open_classification(tars).train) == 5
