"""Tar shards: the same data set as the folder they came from, and no damage goes unnoticed."""

import multiprocessing
import os
import pickle
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from wavevit.data.check import check_dataset
from wavevit.data.classification import ClassificationSplits, open_classification
from wavevit.data.image_files import ImageFileDataset, PathTable
from wavevit.data.images import UnreadableImageError
from wavevit.data.loader import TrainView, eval_loader, strict, train_loader
from wavevit.data.samplers import TrainSampler
from wavevit.data.shards.dataset import ShardDataset
from wavevit.data.shards.store import ShardStore
from wavevit.data.shards.writer import write_shards
from wavevit.data.shared_array import SharedArray
from wavevit.data.transforms import eval_transform, train_transform

NORMAL: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
EVAL = eval_transform((32, 32), crop_pct=0.96, interpolation="bicubic", **NORMAL)
AUGMENT = train_transform(
    (32, 32),
    crop_scale=(0.2, 1.0),
    crop_ratio=(0.75, 1.33),
    hflip=0.5,
    vflip=0.0,
    rand_augment=None,
    color_jitter=0.3,
    random_erasing=0.5,
    interpolation="random",
    **NORMAL,
)
WriteImages = Callable[..., None]


@pytest.fixture
def source(tmp_path: Path, write_images: WriteImages) -> Path:
    root = tmp_path / "folder"
    write_images(root, *(f"train/{c}/{i}.png" for c in ("cat", "dog", "eel") for i in range(5)))
    write_images(root, *(f"val/{c}/{i}.bmp" for c in ("cat", "dog") for i in range(2)), seed=1)
    return root


@pytest.fixture
def shards(source: Path, tmp_path: Path) -> Path:
    return shard(source, tmp_path / "shards")


def shard(source: Path, out: Path, **changes: Any) -> Path:
    splits = open_classification(source, val_fraction=0)
    parts = {name: splits.parts[name] for name in ("train", "val") if name in splits.parts}
    settings = {"samples_per_shard": 4, "bytes_per_shard": 10**9, "shuffle_seed": 0, **changes}
    write_shards(parts, splits.class_names, out, **settings)  # type: ignore[arg-type]
    return out


def contents(splits: ClassificationSplits) -> dict[str, list[tuple[str, int, bytes]]]:
    return {
        name: [
            (part.sample_id(i), int(part.labels[i]), part.load(i).tobytes())
            for i in range(len(part))
        ]
        for name, part in splits.parts.items()
    }


def damage(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            yield info.name, file.read()


def test_shards_hold_the_same_data_set_as_the_folder(source: Path, shards: Path) -> None:
    folder, sharded = open_classification(source), open_classification(shards)
    assert sharded.class_names == folder.class_names == ["cat", "dog", "eel"]
    assert contents(sharded) == contents(folder)
    assert sharded.train.labels.dtype == np.int64
    assert [list(p.sample_ids()) for p in sharded.parts.values()] == [  # type: ignore[attr-defined]
        list(p.sample_ids())  # type: ignore[attr-defined]
        for p in folder.parts.values()
    ]
    assert sharded.description == f"5 tar shards in {shards} (images: train 15, val 4)"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_of_the_folder(source: Path, shards: Path, num_workers: int) -> None:
    batches = []
    for path in (source, shards):
        data = open_classification(path).train
        sampler = TrainSampler(len(data), 4, seed=3, start=2, stop=7)
        batches.append(list(train_loader(data, AUGMENT, sampler, num_workers=num_workers)))
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
        assert torch.equal(one.indices, two.indices)


def test_the_images_held_out_are_those_of_the_folder(
    tmp_path: Path, write_images: WriteImages
) -> None:
    source = tmp_path / "folder"
    write_images(source, *(f"{c}/{i}.png" for c in "abc" for i in range(9)))
    out = shard(source, tmp_path / "shards")
    for settings in ({}, {"val_fraction": 0.3, "split_seed": 7}, {"val_fraction": 0.0}):
        sharded = open_classification(out, **settings)  # type: ignore[arg-type]
        folder = open_classification(source, **settings)  # type: ignore[arg-type]
        assert contents(sharded) == contents(folder)
        assert sharded.held_out == folder.held_out


def test_labels_follow_the_classes_of_a_trained_model(source: Path, shards: Path) -> None:
    names = ["eel", "fox", "dog", "cat"]
    sharded = open_classification(shards, class_names=names)
    assert sharded.class_names == names
    assert contents(sharded) == contents(open_classification(source, class_names=names))
    with pytest.raises(ValueError, match=r"not among the 2 known classes \(cat, dog\): eel"):
        open_classification(shards, class_names=["cat", "dog"])


def test_odd_file_names_survive_and_keys_have_no_dots(
    tmp_path: Path, write_images: WriteImages
) -> None:
    source = tmp_path / "folder"
    names = ["a/v1.2 final.png", "a/same.png", "a/same.bmp", "b/löwe 獅子.PNG", "b/__x__.png"]
    write_images(source, *names, "b/.hidden.png")
    os.rename(source / "b/__x__.png", os.fsencode(source / "b") + b"/\xff.png")
    out = shard(source, tmp_path / "shards")
    sharded = open_classification(out, val_fraction=0)
    assert contents(sharded) == contents(open_classification(source, val_fraction=0))
    found = {name for tar in out.glob("*.tar") for name, _ in members(tar)}
    assert found == {
        f"00000000{i}.{e}"
        for i, own in enumerate(["bmp", "png", "png", "png", "png"])
        for e in (own, "cls")
    }


def test_a_csv_keeps_its_paths_labels_and_splits(tmp_path: Path, write_images: WriteImages) -> None:
    write_images(tmp_path, "x/1.png", "x/2.png", "y/3.png", "4.png")
    (tmp_path / "x/1.png").rename(tmp_path / "x/1")
    elsewhere = tmp_path / "4.png"
    table = tmp_path / "set.csv"
    table.write_text(
        f"path,label,split\nx/2.png,10,train\nx/1,9,train\n{elsewhere},10,val\ny/3.png,9,val\n"
    )
    out = shard(table, tmp_path / "shards")
    expected, found = contents(open_classification(table)), contents(open_classification(out))
    assert {n: found[n] for n in ("train", "val")} == {n: expected[n] for n in ("train", "val")}
    assert sorted(found["all"]) == sorted(expected["all"])
    assert any(name.endswith(".img") for tar in out.glob("*.tar") for name, _ in members(tar))


def test_tar_files_are_in_the_webdataset_layout(source: Path, shards: Path) -> None:
    data = open_classification(source).train
    seen = []
    for tar in sorted(shards.glob("train-*.tar")):
        entries = list(members(tar))
        assert len(entries) <= 8
        for (name, content), (label_name, label) in zip(entries[::2], entries[1::2], strict=True):
            key, _, extension = name.partition(".")
            index = int(key)
            assert (extension, label_name) == ("png", f"{key}.cls")
            assert content == (source / data.sample_id(index)).read_bytes()
            assert int(label) == data.labels[index]
            seen.append(index)
    assert sorted(seen) == list(range(15))
    assert seen != sorted(seen)  # mixed, for readers that go through a tar from its start


def test_tar_files_are_the_same_wherever_and_whenever_they_are_written(
    source: Path, shards: Path, tmp_path: Path
) -> None:
    os.utime(source / "train/cat/0.png", (1, 1))
    again = shard(source, tmp_path / "again")
    assert {p.name: p.read_bytes() for p in shards.iterdir()} == {
        p.name: p.read_bytes() for p in again.iterdir()
    }
    in_order = shard(source, tmp_path / "in_order", shuffle_seed=None, samples_per_shard=99)
    keys = [name for name, _ in members(in_order / "train-000000.tar")][::2]
    assert keys == sorted(keys)


def test_shards_keep_to_their_size(source: Path, tmp_path: Path) -> None:
    limit = 40_000
    out = shard(source, tmp_path / "out", bytes_per_shard=limit, samples_per_shard=1000)
    sizes = [path.stat().st_size for path in out.glob("train-*.tar")]
    assert len(sizes) > 2
    assert max(sizes) <= limit
    alone = shard(source, tmp_path / "alone", bytes_per_shard=1)
    assert len(list(alone.glob("train-*.tar"))) == 15


def test_shards_can_be_written_from_shards(source: Path, shards: Path, tmp_path: Path) -> None:
    out = shard(shards, tmp_path / "again", samples_per_shard=100)
    assert contents(open_classification(out)) == contents(open_classification(source))


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda path: path.unlink(), "is missing, expected 30,720 bytes"),
        (lambda path: os.truncate(path, 9_000), "has 9,000 bytes, expected 30,720"),
        (lambda path: path.write_bytes(bytes(31_000)), "has 31,000 bytes, expected 30,720"),
    ],
)
def test_a_wrong_shard_is_refused_at_opening(
    shards: Path, breakage: Callable[[Path], object], message: str
) -> None:
    breakage(shards / "train-000001.tar")
    with pytest.raises(ValueError, match=rf"train-000001\.tar {message}.*; copy it again") as error:
        open_classification(shards)
    assert "\n" not in str(error.value)
    (shards / "val-000000.tar").unlink()
    with pytest.raises(ValueError, match=r"train-000001\.tar .* \(and 1 more shards are wrong\)"):
        open_classification(shards)


def test_damage_during_a_run_names_shard_and_sample(shards: Path) -> None:
    data = open_classification(shards).train
    assert isinstance(data, ShardDataset)
    path = shards / data.place(7).shard.file
    name = data.sample_id(7)
    assert data.load(7).size == (40, 36)
    damage(path, data.place(7).offset + 200)
    with pytest.raises(UnreadableImageError, match=rf"{name} in .*{path.name}.*CRC-32") as error:
        data.load(7)
    assert pickle.loads(pickle.dumps(error.value)).path == error.value.path
    os.truncate(path, data.place(7).offset + 10)
    with pytest.raises(UnreadableImageError, match=r"cut short: 10 of [\d,]+ bytes are there"):
        data.load(7)
    path.unlink()
    with pytest.raises(UnreadableImageError, match=rf"{name} in .*{path.name}.*the shard is gone"):
        data.load(7)
    with pytest.raises(IndexError, match="index 15 out of range"):
        data.load(15)


def test_an_image_that_was_broken_before_is_told_by_its_decoder(
    source: Path, tmp_path: Path
) -> None:
    (source / "train/cat/3.png").write_bytes(b"no picture")
    data = open_classification(shard(source, tmp_path / "shards")).train
    with pytest.raises(
        UnreadableImageError, match=r"train/cat/3\.png in .*the content is no image"
    ):
        data.load(3)


def test_training_replaces_what_is_damaged_and_evaluation_refuses(shards: Path) -> None:
    splits = open_classification(shards)
    train, val = splits.train, splits.val
    assert isinstance(train, ShardDataset)
    assert isinstance(val, ShardDataset)
    damage(shards / train.place(2).shard.file, train.place(2).offset)
    sample = TrainView(train, AUGMENT)[(2, 11)]
    assert list(sample.unreadable) == [train.sample_id(2)]
    assert "train-00000" in sample.unreadable[train.sample_id(2)]
    damage(shards / val.place(1).shard.file, val.place(1).offset)
    with pytest.raises(ValueError, match=r"evaluation does not skip .*val/cat/1\.bmp in .*\.tar"):
        list(strict(eval_loader(val, EVAL, batch_size=4, num_workers=0)))


def test_a_replaced_shard_is_seen_after_a_fault(shards: Path) -> None:
    data = open_classification(shards).train
    assert isinstance(data, ShardDataset)
    path = shards / data.place(0).shard.file
    good = path.read_bytes()
    damage(path, data.place(0).offset)
    with pytest.raises(UnreadableImageError):
        data.load(0)
    (shards / "new").write_bytes(good)
    os.replace(shards / "new", path)
    assert data.load(0).size == (40, 36)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs a list of open files")
def test_the_number_of_open_files_is_bounded(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wavevit.data.shards.store._MAX_OPEN_FILES", 3)
    data = open_classification(shard(source, tmp_path / "s", samples_per_shard=1)).train
    before = len(os.listdir("/proc/self/fd"))
    for index in range(15):
        data.load(index)
    assert len(os.listdir("/proc/self/fd")) == before + 3
    del data
    assert len(os.listdir("/proc/self/fd")) == before


# Manifest and index


def test_what_is_no_manifest_is_refused(shards: Path) -> None:
    path = shards / "shards.json"
    good = path.read_text()
    for content, message in [
        (good[:200], "is damaged, expected JSON"),
        ("[]", "is no manifest of tar shards"),
        (good.replace('"version": 1', '"version": 9'), "has version 9, this wavevit reads"),
        (good.replace("train-000000.tar", "../secret.tar"), "expected the plain name of a file"),
        (good.replace('"num_samples": 15', '"num_samples": 16'), "the shards hold another number"),
        (good.replace('"splits"', '"parts"'), "is damaged"),
        (good.replace('"val"', '"test"'), "expected the splits 'train', 'val' or both"),
    ]:
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            open_classification(shards)


def test_a_damaged_index_is_refused(shards: Path) -> None:
    path = shards / "train-index.safetensors"
    size = path.stat().st_size
    damage(path, size - 3)
    with pytest.raises(ValueError, match=r"train-index\.safetensors is damaged, or does not"):
        open_classification(shards)
    os.truncate(path, 100)
    with pytest.raises(ValueError, match=rf"expected {size:,} bytes .* found 100"):
        open_classification(shards)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-index\.safetensors"):
        open_classification(shards)


# Locations


def in_memory(shards: Path, name: str) -> str:
    system = fsspec.filesystem("memory")
    for path in shards.iterdir():
        system.pipe_file(f"/{name}/{path.name}", path.read_bytes())
    return f"memory://{name}"


@pytest.mark.parametrize("kind", ["file", "local", "memory", "simplecache", "filecache"])
def test_urls_give_the_same_data_set(
    source: Path, shards: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "simplecache", {"cache_storage": str(tmp_path / "c")})
    monkeypatch.setitem(fsspec.config.conf, "filecache", {"cache_storage": str(tmp_path / "c")})
    url = {
        "file": shards.as_uri(),
        "local": f"local://{shards}/",
        "memory": in_memory(shards, "urls"),
    }.get(kind, f"{kind}::file://{shards}")
    sharded = open_classification(url)
    assert contents(sharded) == contents(open_classification(source))
    again = pickle.loads(pickle.dumps(sharded.train))
    assert again.load(3).tobytes() == sharded.train.load(3).tobytes()
    assert url.rstrip("/") in sharded.description
    copies = [path for path in tmp_path.glob("c/*") if path.suffix != ".lock"]
    assert len(copies) == (5 if kind in ("simplecache", "filecache") else 0)


def test_forked_workers_read_from_urls(shards: Path) -> None:
    url = in_memory(shards, "forked")
    for location in (url, f"simplecache::{url}"):
        data = open_classification(location).val
        loader = eval_loader(data, EVAL, batch_size=2, num_workers=2)
        assert torch.cat([batch.indices for batch in strict(loader)]).tolist() == [0, 1, 2, 3]


def test_copies_that_will_not_last_are_announced(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"simplecache::file://{shards}"
    monkeypatch.delitem(fsspec.config.conf, "simplecache", raising=False)
    data = open_classification(url).train
    assert "lasting one in FSSPEC_SIMPLECACHE_CACHE_STORAGE" in caplog.text
    assert isinstance(data, ShardDataset)
    copy = pickle.loads(pickle.dumps(data))
    copy.load(0)
    assert copy.store.cache_folder == data.store.cache_folder  # one folder for all workers
    caplog.clear()
    monkeypatch.setitem(fsspec.config.conf, "simplecache", {"cache_storage": str(tmp_path / "c")})
    open_classification(url)
    assert caplog.text == ""


def test_a_damaged_or_missing_shard_at_a_url_names_it(shards: Path) -> None:
    url = in_memory(shards, "damaged")
    system = fsspec.filesystem("memory")
    data = open_classification(url).train
    assert isinstance(data, ShardDataset)
    name = data.place(0).shard.file
    whole = system.cat_file(f"/damaged/{name}")
    system.pipe_file(f"/damaged/{name}", whole[: data.place(0).offset + 5])
    with pytest.raises(UnreadableImageError, match=rf"in {url}/{name}.*cut short: 5 of"):
        data.load(0)
    with pytest.raises(ValueError, match=rf"{url}/{name} has [\d,]+ bytes, expected"):
        open_classification(url)
    system.rm(f"/damaged/{name}")
    with pytest.raises(UnreadableImageError, match=rf"in {url}/{name}.*the shard is gone"):
        data.load(0)
    with pytest.raises(ValueError, match=rf"{url}/{name} is missing"):
        open_classification(url)
    with pytest.raises(FileNotFoundError, match=r"expected memory://nothing/shards\.json"):
        open_classification("memory://nothing")


def test_a_cached_copy_of_a_wrong_size_is_fetched_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setitem(fsspec.config.conf, "simplecache", {"cache_storage": str(cache)})
    url = f"simplecache::file://{shards}"
    first = open_classification(url).train
    expected = [first.load(i).tobytes() for i in range(len(first))]
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:1000])  # as after a kill in the middle of a copy
    data = open_classification(url).train
    assert [data.load(i).tobytes() for i in range(len(data))] == expected
    assert isinstance(data, ShardDataset)
    for path in cache.iterdir():
        if path.suffix != ".lock":
            path.write_bytes(bytes(path.stat().st_size))
    data.store.reopen()
    with pytest.raises(UnreadableImageError, match=rf"CRC-32.*{cache} may be of an older data set"):
        data.load(0)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for url in ("s3://bucket/set", "simplecache::s3://bucket/set"):
        with pytest.raises(ValueError, match=rf"cannot read '{url}': Install s3fs"):
            open_classification(url)
    with pytest.raises(ValueError, match="Protocol not known: nowhere"):
        open_classification("nowhere://set")


def test_any_failure_of_a_server_is_an_os_error(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCredentialsError(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    url = in_memory(shards, "refused")
    data = open_classification(url).train
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", refuse)
    with pytest.raises(OSError, match=r"shards\.json': Unable to locate .*\(NoCredentialsError\)"):
        open_classification(url)
    with pytest.raises(UnreadableImageError, match="Unable to locate credentials"):
        data.load(0)


def test_paths_are_never_taken_for_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_classification(Path("a::b"))


def test_hints_for_folders_that_only_look_like_shards(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(ValueError, match="is the manifest of tar shards: name its folder"):
        open_classification(shards / "shards.json")
    (shards / "shards.json").unlink()
    with pytest.raises(ValueError, match=r"`wavevit shard .* --index-only`"):
        open_classification(shards)


# Memory


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_spawned_workers_share_the_arrays(source: Path, shards: Path, kind: str) -> None:
    """What the parent writes into the arrays afterwards is what the worker reads."""
    # It hands objects over as spawn does, but its workers need not each import torch.
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wavevit.data.shards.dataset"])
    if kind == "shards":
        sharded = open_classification(shards).train
        assert isinstance(sharded, ShardDataset)
        held = sharded._index.offsets.array.copy(), sharded._index.offsets.array
        look: Any = sharded.place
    else:
        files = open_classification(source).train
        assert isinstance(files, ImageFileDataset)
        look = files.sample_id
    loader: Any = DataLoader(
        [0] * 50 + [14],  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=look,
        num_workers=1,
        multiprocessing_context=context,
    )
    batches = iter(loader)
    first = next(batches)
    if kind == "shards":
        assert np.array_equal(*held)  # a view from before stays what it was
        sharded._index.offsets.array[14] = 12345
        assert first == sharded.place(0)
        assert list(batches)[-1].offset == 12345
    else:
        files._paths._buffer.array[-1] = ord("X")
        assert first == files.sample_id(0) == "train/cat/0.png"
        assert list(batches)[-1] == files.sample_id(14) == "train/eel/4.pnX"


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_data_sets_survive_plain_pickling(source: Path, shards: Path, kind: str) -> None:
    data = open_classification(source if kind == "files" else shards).train
    copy = pickle.loads(pickle.dumps(data))
    assert copy.labels.tolist() == data.labels.tolist()
    assert [copy.sample_id(i) for i in range(15)] == [data.sample_id(i) for i in range(15)]
    assert copy.load(4).tobytes() == data.load(4).tobytes()


@pytest.mark.parametrize("values", [np.arange(3, dtype=np.uint32), np.empty(0, np.int64)])
def test_shared_arrays_keep_type_and_values(values: Any) -> None:
    shared: SharedArray[Any] = SharedArray(values)
    copy = pickle.loads(pickle.dumps(shared))
    for one in (shared, copy):
        assert one.array.dtype == values.dtype
        assert one.array.tolist() == values.tolist()
        assert len(one) == len(values)


def test_a_table_of_no_paths_is_a_table() -> None:
    table = PathTable(())
    assert len(table) == 0
    assert list(table) == list(table.take(np.empty(0, np.int64))) == []


# Writing


def test_a_missing_or_empty_file_is_named_and_nothing_is_left(source: Path, tmp_path: Path) -> None:
    for number, (spoil, message) in enumerate(
        [
            (lambda path: path.write_bytes(b""), r"dog/2\.png'.*the file is empty"),
            (lambda path: path.unlink(), r"dog/2\.png'.*no such file"),
        ]
    ):
        splits = open_classification(source)
        spoil(source / "train/dog/2.png")
        out = tmp_path / "place" / f"out{number}"
        with pytest.raises(UnreadableImageError, match=message):
            write_shards(
                {"train": splits.train},  # type: ignore[dict-item]
                splits.class_names,
                out,
                samples_per_shard=2,
                bytes_per_shard=10**9,
                shuffle_seed=0,
            )
        assert list((tmp_path / "place").iterdir()) == []


def test_reading_a_file_whole_never_waits(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    names = ["folder.png", "missing.png"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        names.append("pipe.png")
    data = ImageFileDataset(tmp_path, PathTable(names), np.zeros(len(names), np.int64), ["a"])
    for index, message in enumerate(["not a regular file", "no such file", "not a regular file"]):
        if index < len(names):
            with pytest.raises(UnreadableImageError, match=message):
                data.read_bytes(index)


def test_writing_replaces_only_what_it_wrote(source: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="holds shards already; pass --overwrite"):
        shard(source, shards)
    shard(source, shards, overwrite=True, samples_per_shard=100)
    assert sorted(p.name for p in shards.glob("*.tar")) == ["train-000000.tar", "val-000000.tar"]
    (shards / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not all in it was written by `wavevit shard`"):
        shard(source, shards, overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        shard(source, tmp_path / "file")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_empty_folder_is_fine_and_a_failed_overwrite_keeps_the_old_shards(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    out = shard(source, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (source / "train/dog/2.png").write_bytes(b"")
    with pytest.raises(UnreadableImageError):
        shard(source, out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


# Checking


@pytest.mark.parametrize("num_workers", [0, 2])
def test_checking_lists_corrupt_samples_and_wrong_shards(shards: Path, num_workers: int) -> None:
    assert check_dataset(shards).problems == []
    data = open_classification(shards).train
    assert isinstance(data, ShardDataset)
    damage(shards / data.place(3).shard.file, data.place(3).offset + 9)
    gone = next(p for p in sorted(shards.glob("train-*")) if p.name != data.place(3).shard.file)
    lost = {data.sample_id(i) for i in range(15) if data.place(i).shard.file == gone.name}
    gone.unlink()
    report = check_dataset(shards, num_workers=num_workers)
    unreadable = {p.paths[0]: p.detail for p in report.problems if p.kind == "unreadable"}
    assert unreadable.keys() == lost | {data.sample_id(3)}
    assert f"CRC-32 of the index (in {data.place(3).shard.file})" in unreadable[data.sample_id(3)]
    assert [p.paths for p in report.problems if p.kind == "shard"] == [(gone.name,)]
    assert report.class_counts["train"] == {"cat": 5, "dog": 5, "eel": 5}
    assert report.class_counts["val"] == {"cat": 2, "dog": 2, "eel": 0}


def test_checking_finds_in_shards_what_it_finds_in_the_folder(source: Path, tmp_path: Path) -> None:
    (source / "val/dog/1.bmp").write_bytes((source / "train/cat/1.png").read_bytes())
    Image.new("RGB", (5, 50)).save(source / "train/eel/0.png")
    (source / "train/eel/1.png").write_bytes((source / "train/eel/2.png").read_bytes())
    found = [
        [(p.kind, p.paths, p.detail) for p in check_dataset(path).problems]
        for path in (source, shard(source, tmp_path / "out"))
    ]
    assert found[0] == found[1]
    assert {kind for kind, _, _ in found[0]} == {
        "extension",
        "conflict",
        "leakage",
        "duplicate",
        "tiny",
    }


def test_a_store_reads_no_further_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    store = ShardStore(str(tmp_path))
    assert store.read("x", 7, 100, 10) == b"789"
    assert store.read("x", 3, 0, 10) == b""
    assert store.sizes(["x", "y"]) == [10, -1]
    assert store.where("x") == str(tmp_path / "x")
    assert store.read_whole("x") == b"0123456789"
