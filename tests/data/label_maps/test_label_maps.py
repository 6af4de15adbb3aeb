"""Label maps: what is stored is what is read, and whatever is missing or damaged is named."""

import json
import logging
import multiprocessing
import pickle
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from wavevit.data.images import UnreadableImageError
from wavevit.data.label_maps import keys as label_map_keys
from wavevit.data.label_maps.keys import KeyLookup, KeyTable
from wavevit.data.label_maps.reader import (
    LabelMapError,
    LabelMaps,
    map_key,
    open_label_maps,
    read_shard_keys,
    shard_path,
    write_index,
    write_shard,
)

K, H, W = 3, 4, 5
KEYS = ["cat/1", "cat/2", "cat/x/3", "dog/1", "dog/ü 2", "dog/\udcff3", "eel/1"]
IDS = [f"train/{key}.JPEG" for key in KEYS]
NAMES = ["cat", "dog", "eel", "fox", "gnu"]


def numbers(count: int, num_classes: int = 5, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scores that float16 holds exactly, and classes."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((count, K, H, W)).astype(np.float16)
    return scores, rng.integers(0, num_classes, (count, K, H, W))


def class_names(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Seven maps in shards of 3, 3 and 1."""
    folder = tmp_path / "packed"
    folder.mkdir()
    scores, classes = numbers(len(KEYS))
    for number, start in enumerate(range(0, len(KEYS), 3)):
        rows = slice(start, start + 3)
        write_shard(folder, number, keys=KEYS[rows], scores=scores[rows], classes=classes[rows])
    write_index(folder, num_classes=5, class_names=NAMES, source="a test", num_shards=3)
    return folder


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """The same maps, a file each."""
    folder = tmp_path / "official"
    scores, classes = numbers(len(KEYS))
    for key, *halves in zip(KEYS, scores, classes, strict=True):
        save_official(folder, key, *halves)
    return folder


def save_official(folder: Path, key: str, scores: NDArray[Any], classes: NDArray[Any]) -> Path:
    path = folder / f"{key}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:  # torch takes no name that is not UTF-8
        torch.save(torch.from_numpy(np.stack([scores, classes]).astype(np.float16)), file)
    return path


def assert_equal_to(maps: LabelMaps, scores: NDArray[Any], classes: NDArray[Any]) -> None:
    for index in range(len(scores)):
        label_map = maps.load(index)
        assert (label_map.scores.dtype, label_map.classes.dtype) == (np.float32, np.int64)
        assert label_map.scores.shape == scores[index].shape
        assert np.array_equal(label_map.scores, scores[index])
        assert np.array_equal(label_map.classes, classes[index])


def change_file(path: Path, **changes: NDArray[Any]) -> None:
    """Writes a shard again with other tensors, as a faulty writer might have."""
    save_file(load_file(path) | changes, path)


def checksums(scores: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.uint32]:
    return np.array(
        [
            zlib.crc32(c.tobytes(), zlib.crc32(s.tobytes()))
            for s, c in zip(scores, classes, strict=True)
        ],
        np.uint32,
    )


# --- What is stored is what is read ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample_id", "key"),
    [
        ("train/cat/7.jpg", "cat/7"),
        ("validation/cat/a.b.JPEG", "cat/a.b"),
        ("cat/train/7.png", "cat/train/7"),
        ("training/cat/7.png", "training/cat/7"),
        ("shapes/train/disc-dots/000002", "shapes/train/disc-dots/000002"),
        ("7.png", "7"),
        ("train", "train"),
        ("../cat.d/7", "../cat.d/7"),
    ],
)
def test_keys_have_neither_split_folder_nor_extension(sample_id: str, key: str) -> None:
    assert map_key(sample_id) == key


@pytest.mark.parametrize("form", ["packed", "official"])
def test_every_image_gets_its_own_map(form: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(form)
    scores, classes = numbers(len(KEYS))
    order = np.random.default_rng(1).permutation(len(KEYS))
    maps = open_label_maps(folder, (IDS[i] for i in order), NAMES)
    assert (len(maps), maps.num_classes) == (7, 5)
    assert_equal_to(maps, scores[order], classes[order])
    for index in (-1, 7):
        with pytest.raises(IndexError, match="out of range for 7 label maps"):
            maps.load(index)


@pytest.mark.parametrize("form", ["packed", "official"])
def test_maps_of_other_images_are_ignored_and_logged(
    form: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    folder = request.getfixturevalue(form)
    caplog.set_level(logging.INFO)
    maps = open_label_maps(folder, IDS[3:5], NAMES)
    scores, classes = numbers(len(KEYS))
    assert_equal_to(maps, scores[3:5], classes[3:5])
    assert "5 label maps in" in caplog.text
    assert len(open_label_maps(folder, [], NAMES)) == 0


@pytest.mark.parametrize(("num_classes", "width"), [(3000, 2), (65_536, 2), (70_000, 4)])
def test_any_number_of_classes_is_exact_in_the_packed_form(
    tmp_path: Path, num_classes: int, width: int
) -> None:
    scores, classes = numbers(2, num_classes)
    classes[1, 0, 0, 0] = num_classes - 1
    path = write_shard(tmp_path, 0, keys=["a/1", "b/1"], scores=scores, classes=classes)
    write_index(tmp_path, num_classes=num_classes, class_names=None, source="", num_shards=1)
    assert load_file(path)["classes"].dtype.itemsize == width
    maps = open_label_maps(tmp_path, ["a/1.png", "b/1.png"], class_names(num_classes))
    assert maps.num_classes == num_classes
    assert_equal_to(maps, scores, classes)


def test_scores_are_rounded_to_float16_and_any_types_are_taken(tmp_path: Path) -> None:
    scores = np.full((1, K, H, W), 0.1)
    classes = np.arange(K * H * W, dtype=np.int16).reshape(1, K, H, W)
    write_shard(tmp_path, 0, keys=["a"], scores=scores[:, :, :, ::-1], classes=classes)
    write_index(tmp_path, num_classes=60, class_names=None, source="", num_shards=1)
    maps = open_label_maps(tmp_path, ["a.png"], class_names(60))
    assert_equal_to(maps, scores.astype(np.float16), classes)


def test_the_files_are_what_the_format_says(packed: Path) -> None:
    """Other programs may read them: names, types and the index are the format."""
    content = json.loads((packed / "label-maps.json").read_text())
    assert content == {
        "format": "wavevit-label-maps",
        "version": 1,
        "num_classes": 5,
        "class_names": NAMES,
        "source": "a test",
        "top_k": K,
        "map_size": [H, W],
        "shards": [
            {"file": "maps-00000.safetensors", "count": 3},
            {"file": "maps-00001.safetensors", "count": 3},
            {"file": "maps-00002.safetensors", "count": 1},
        ],
    }
    tensors = load_file(shard_path(packed, 1))
    types = {name: str(tensor.dtype) for name, tensor in tensors.items()}
    assert types == {
        "scores": "float16",
        "classes": "uint16",
        "crc32": "uint32",
        "names": "uint8",
        "name_ends": "int64",
    }
    assert tensors["names"].tobytes() == b"dog/1dog/\xc3\xbc 2dog/\xff3"
    assert tensors["name_ends"].tolist() == [5, 13, 19]
    assert np.array_equal(tensors["crc32"], checksums(tensors["scores"], tensors["classes"]))
    assert sorted(path.name for path in packed.iterdir()) == [
        "label-maps.json",
        *(f"maps-0000{number}.safetensors" for number in range(3)),
    ]


def read_in_process(maps: LabelMaps, queue: Any) -> None:
    queue.put([maps.load(index).scores.sum().item() for index in range(len(KEYS))])


@pytest.mark.parametrize("form", ["packed", "official"])
def test_maps_go_to_other_processes_without_what_is_open(
    form: str, request: pytest.FixtureRequest
) -> None:
    maps = open_label_maps(request.getfixturevalue(form), IDS, NAMES)
    scores, classes = numbers(len(KEYS))
    assert_equal_to(maps, scores, classes)
    content = pickle.dumps(maps)
    assert len(content) < 2000
    assert_equal_to(pickle.loads(content), scores, classes)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking beside threads, which hold no lock of ours
        process = context.Process(target=read_in_process, args=(maps, queue))
        process.start()
    process.join(60)
    assert process.exitcode == 0
    assert queue.get() == [maps.load(index).scores.sum().item() for index in range(len(KEYS))]


def test_only_positions_are_kept_per_image(tmp_path: Path) -> None:
    count = 2000
    scores = np.zeros((count, 1, 1, 1), np.float16)
    keys = [f"some folder/some image {number}" for number in range(count)]
    write_shard(tmp_path, 0, keys=keys, scores=scores, classes=np.zeros(scores.shape, int))
    write_index(tmp_path, num_classes=5, class_names=None, source="", num_shards=1)
    maps = open_label_maps(tmp_path, (f"train/{key}.png" for key in keys), NAMES)
    assert len(pickle.dumps(maps)) < 8 * count + 2000


# --- Before training starts -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["packed", "official"])
def test_missing_maps_are_counted_and_named(form: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(form)
    more = [f"train/fox/{number}.png" for number in range(5)]
    with pytest.raises(ValueError, match="5 of 12 training images have no label map") as caught:
        open_label_maps(folder, [*IDS, *more], NAMES)
    assert "'fox/0', 'fox/1', 'fox/2', ...;" in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "`wavevit label-maps create`" in str(caught.value)
    with pytest.raises(ValueError, match=r"1 of 1 .*: 'gnu/1' \(it has maps such as 'cat/1'\)"):
        open_label_maps(folder, ["train/gnu/1.png"], NAMES)
    # Names that are paths elsewhere must not be looked up there.
    with pytest.raises(ValueError, match="1 of 1 training images"):
        open_label_maps(folder, [f"{folder}/cat/1.png"], NAMES)


@pytest.mark.parametrize("form", ["packed", "official"])
def test_two_images_with_one_key_are_named(form: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(form)
    with pytest.raises(
        ValueError, match=r"'train/cat/2.JPEG' and 'cat/2.png' would share .*'cat/2"
    ):
        open_label_maps(folder, [*IDS, "cat/2.png"], NAMES)


def test_maps_of_other_classes_are_refused(packed: Path) -> None:
    with pytest.raises(ValueError, match="are of 5 classes, the data set has 4; make maps"):
        open_label_maps(packed, IDS, NAMES[:4])
    with pytest.raises(ValueError, match="class 3 is 'fox' there and 'yak' in the data"):
        open_label_maps(packed, IDS, [*NAMES[:3], "yak", "gnu"])


def test_one_map_too_many_is_refused(tmp_path: Path) -> None:
    scores, classes = numbers(1)
    for number in range(2):
        write_shard(tmp_path, number, keys=["cat/1"], scores=scores, classes=classes)
    write_index(tmp_path, num_classes=5, class_names=NAMES, source="", num_shards=2)
    with pytest.raises(LabelMapError, match="two label maps of the image 'cat/1'; make the maps"):
        open_label_maps(tmp_path, ["cat/1.png"], NAMES)


def test_what_is_no_folder_of_maps_is_refused(tmp_path: Path, packed: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder of label maps: .*nowhere"):
        open_label_maps(tmp_path / "nowhere", IDS, NAMES)
    with pytest.raises(ValueError, match=r"is a file; expected a folder with label-maps.json"):
        open_label_maps(packed / "label-maps.json", IDS, NAMES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no label maps in .*<class>/<image>.pt"):
        open_label_maps(tmp_path / "empty", IDS, NAMES)
    (packed / "label-maps.json").unlink()
    with pytest.raises(ValueError, match=r"unfinished: .*`wavevit label-maps create` again"):
        open_label_maps(packed, IDS, NAMES)


def test_official_maps_of_too_many_classes_are_refused(official: Path) -> None:
    open_label_maps(official, IDS, class_names(2048))
    with pytest.raises(ValueError, match="float16, exact only to 2048, and there are 2049 classes"):
        open_label_maps(official, IDS, class_names(2049))


# --- Damage ---------------------------------------------------------------------------------------


def test_damage_is_no_unreadable_image() -> None:
    """Training replaces an unreadable image by another one; a broken map must stop it."""
    assert not issubclass(LabelMapError, UnreadableImageError)
    error = pickle.loads(pickle.dumps(LabelMapError("text")))
    assert (type(error), str(error)) == (LabelMapError, "text")


@pytest.mark.parametrize("name", ["scores", "classes", "crc32"])
def test_a_changed_byte_is_found_and_only_its_map_is_lost(packed: Path, name: str) -> None:
    path = shard_path(packed, 1)
    tensor = load_file(path)[name].copy()
    tensor[1:2].reshape(-1).view(np.uint8)[0] ^= 1
    change_file(path, **{name: tensor})
    maps = open_label_maps(packed, IDS, NAMES)
    for index in (0, 1, 2, 3, 5, 6):
        maps.load(index)
    for _ in range(2):
        with pytest.raises(LabelMapError, match=r"image 'dog/ü 2' in .*maps-00001.safeten.*check"):
            maps.load(4)
    with pytest.raises(LabelMapError, match="image 'dog/ü 2'"):
        read_shard_keys(path)


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "a score is not a finite number"), (np.inf, "a score is not a finite number")],
)
def test_scores_that_are_no_numbers_are_refused(packed: Path, value: float, words: str) -> None:
    tensors = load_file(shard_path(packed, 0))
    scores = tensors["scores"].copy()
    scores[2, 0, 0, 0] = value
    crc32 = checksums(scores, tensors["classes"])
    change_file(shard_path(packed, 0), scores=scores, crc32=crc32)
    maps = open_label_maps(packed, IDS, NAMES)
    with pytest.raises(LabelMapError, match=f"'cat/x/3' in .*{words}"):
        maps.load(2)


def test_classes_that_do_not_exist_are_refused(packed: Path) -> None:
    tensors = load_file(shard_path(packed, 0))
    classes = tensors["classes"].copy()
    classes[1, 2, 3, 4] = 5
    crc32 = checksums(tensors["scores"], classes)
    change_file(shard_path(packed, 0), classes=classes, crc32=crc32)
    with pytest.raises(LabelMapError, match=r"'cat/2' in .*names class 5, expected 0 to 4"):
        open_label_maps(packed, IDS, NAMES).load(1)


def test_a_truncated_or_extended_shard_is_refused_before_training(packed: Path) -> None:
    path = shard_path(packed, 1)
    content = path.read_bytes()
    for length in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(LabelMapError, match=r"maps-00001.safetensors is incomplete or damaged"):
            open_label_maps(packed, IDS, NAMES)
        with pytest.raises(LabelMapError, match=r"maps-00001.safetensors is incomplete or damaged"):
            read_shard_keys(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(LabelMapError, match=f"expected {len(content):,} bytes, got"):
        open_label_maps(packed, IDS, NAMES)


def test_a_shard_that_goes_or_shrinks_later_is_refused(packed: Path) -> None:
    maps = open_label_maps(packed, IDS, NAMES)
    content = shard_path(packed, 1).read_bytes()
    shard_path(packed, 1).write_bytes(content[:-1])
    with pytest.raises(LabelMapError, match=r"maps-00001.safetensors is incomplete or damaged"):
        maps.load(4)
    shard_path(packed, 1).unlink()
    with pytest.raises(LabelMapError, match=r"cannot read .*00001.safetensors, which label-maps"):
        maps.load(4)
    with pytest.raises(LabelMapError, match=r"cannot read .*00001.safetensors, which label-maps"):
        open_label_maps(packed, IDS, NAMES)


def test_a_shard_of_another_set_is_refused(packed: Path) -> None:
    scores, classes = numbers(3)
    write_shard(packed, 1, keys=KEYS[3:6], scores=scores[..., :2], classes=classes[..., :2])
    with pytest.raises(LabelMapError, match=r"\(3, 3, 4, 2\), label-maps.json says \(3, 3, 4, 5\)"):
        open_label_maps(packed, IDS, NAMES)
    with pytest.raises(ValueError, match=r"one size: .*00000.* has \(3, 4, 5\).* has \(3, 4, 2\)"):
        write_index(packed, num_classes=5, class_names=None, source="", num_shards=3)


def test_no_changed_byte_of_a_shard_goes_unnoticed(packed: Path) -> None:
    """Wherever a bit flips: an error of ours, or all maps as they were."""
    path = shard_path(packed, 0)
    content = path.read_bytes()
    scores, classes = numbers(len(KEYS))
    header_length = 8 + int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(0)
    places = [*range(header_length), *rng.integers(header_length, len(content), 150).tolist()]
    found: list[str] = []
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            assert_equal_to(open_label_maps(packed, IDS, NAMES), scores, classes)
        except LabelMapError as error:
            found.append(str(error))
    assert not any("\n" in message for message in found)
    assert len(found) > 0.7 * len(places)  # the rest: spaces, and metadata that nobody needs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "damaged"),
        ({"version": 2}, "newer version of wavevit"),
        ({"num_classes": "5"}, "damaged"),
        ({"num_classes": True}, "damaged"),
        ({"map_size": [4]}, "damaged"),
        ({"map_size": 4}, "damaged"),
        ({"class_names": ["cat"]}, "expected 5 class names"),
        ({"shards": []}, "damaged"),
        ({"shards": [{"file": "../x.safetensors", "count": 3}]}, "expected the shards maps-00000"),
        ({"shards": None}, "damaged"),
    ],
)
def test_a_damaged_index_is_refused(packed: Path, change: dict[str, Any], words: str) -> None:
    path = packed / "label-maps.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(LabelMapError, match=rf"label-maps.json (is|was) .*{words}|{words}"):
        open_label_maps(packed, IDS, NAMES)


def test_a_broken_index_file_is_refused(packed: Path) -> None:
    for content in (b"", b"[]", b"{", b"\xff", b"[" * 100_000):
        (packed / "label-maps.json").write_bytes(content)
        with pytest.raises(LabelMapError, match=r"label-maps.json is damaged"):
            open_label_maps(packed, IDS, NAMES)


# --- Writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keys": ["a"]}, "expected a different key for each of 2 maps, got 1 keys"),
        ({"keys": ["a", "a"]}, "got 2 keys, 1 of them different"),
        ({"keys": ["a", ""]}, "a key is empty"),
        ({"scores": np.zeros((2, K, H))}, "must both be"),
        ({"scores": np.zeros((2, K, W, H))}, "must both be"),
        ({"scores": np.zeros((2, K, H, W), int)}, "expected floats and integers, got int64"),
        ({"classes": np.zeros((2, K, H, W))}, "and float64"),
        ({"classes": np.full((2, K, H, W), -1)}, "got -1 to -1"),
        ({"classes": np.full((2, K, H, W), 1 << 32)}, "to 4294967296"),
        ({"scores": np.full((2, K, H, W), 70_000.0)}, "at most 65504, those of image 'a'"),
        ({"scores": np.full((2, K, H, W), np.nan)}, "finite numbers"),
    ],
)
def test_only_sound_maps_are_written(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    scores, classes = numbers(2)
    with pytest.raises(ValueError, match=words):
        write_shard(
            tmp_path, 0, **({"keys": ["a", "b"], "scores": scores, "classes": classes} | change)
        )
    assert list(tmp_path.iterdir()) == []


def test_writing_replaces_at_once_or_not_at_all(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in packed.iterdir()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    scores, classes = numbers(3, seed=1)
    with pytest.raises(OSError, match="No space left"):
        write_shard(packed, 0, keys=KEYS[:3], scores=scores, classes=classes)
    with pytest.raises(OSError, match="No space left"):
        write_index(packed, num_classes=5, class_names=None, source="", num_shards=3)
    assert {path.name: path.read_bytes() for path in packed.iterdir()} == before
    monkeypatch.undo()
    write_shard(packed, 0, keys=KEYS[:3], scores=scores, classes=classes)
    assert_equal_to(open_label_maps(packed, IDS[:3], NAMES), scores, classes)


def test_an_index_needs_its_shards_and_names(packed: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 shard, got 0"):
        write_index(packed, num_classes=5, class_names=None, source="", num_shards=0)
    with pytest.raises(ValueError, match="got 4 class names for 5 classes"):
        write_index(packed, num_classes=5, class_names=NAMES[:4], source="", num_shards=1)
    with pytest.raises(FileNotFoundError, match="maps-00003"):
        write_index(packed, num_classes=5, class_names=None, source="", num_shards=4)


def test_a_shard_says_whose_maps_it_has(packed: Path) -> None:
    assert read_shard_keys(shard_path(packed, 1)) == KEYS[3:6]


# --- Official files -------------------------------------------------------------------------------


def test_float32_is_read_as_well(tmp_path: Path) -> None:
    scores, classes = numbers(1)
    (tmp_path / "cat").mkdir()
    tensor = torch.from_numpy(np.stack([scores[0] + 0.1, classes[0]]).astype(np.float32))
    torch.save(tensor, tmp_path / "cat" / "1.pt")
    label_map = open_label_maps(tmp_path, ["cat/1.png"], NAMES).load(0)
    assert np.array_equal(label_map.scores, tensor[0].numpy())
    assert np.array_equal(label_map.classes, classes[0])


def plain(shape: Sequence[int] = (2, K, H, W), **options: Any) -> torch.Tensor:
    return torch.zeros(shape, **({"dtype": torch.float16} | options))


def with_class(value: float) -> torch.Tensor:
    tensor = plain()
    tensor[1, 0, 0, 0] = value
    return tensor


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "expected a tensor, got list"),
        ({"a": plain()}, "expected a tensor, got dict"),
        (plain(dtype=torch.float64), "got float64 of the shape (2, 3, 4, 5)"),
        (plain(dtype=torch.int64), "got int64"),
        (plain((3, K, H, W)), "expected float16 or float32 numbers of the shape (2, classes per"),
        (plain((2, H, W)), "of the shape (2, 4, 5)"),
        (plain((2, K, 0, W)), "of the shape (2, 3, 0, 5)"),
        (plain(()), "of the shape ()"),
        (plain((1, 1, 1, 1)).expand(2, 5, 100_000, 100_000), "(2, 5, 100000, 100000)"),
        (plain().to_sparse(), "got float16 of the shape (2, 3, 4, 5)"),
        (with_class(1.5), "must be class numbers, got fractions"),
        (with_class(np.nan), "must be class numbers, got fractions"),
        (with_class(np.inf), "must be class numbers, got fractions"),
        (with_class(-1), "names class -1, expected 0 to 4"),
        (with_class(5), "made for other classes: it names class 5, expected 0 to 4 (5 classes)"),
        (plain() + np.nan, "must be class numbers"),
        (with_class(0).index_fill_(0, torch.tensor(0), np.inf), "a score is not a finite number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_official_file_that_is_no_map_is_named(tmp_path: Path, content: Any, words: str) -> None:
    (tmp_path / "cat").mkdir()
    torch.save(content, tmp_path / "cat" / "1.pt")
    with pytest.raises(LabelMapError) as caught:
        open_label_maps(tmp_path, ["cat/1.png"], NAMES)
    assert str(tmp_path / "cat" / "1.pt") in str(caught.value)
    assert words in str(caught.value)


class Trap:
    """Unpickling an instance creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_booby_trapped_pickle_is_refused_and_does_not_run(tmp_path: Path, is_zip: bool) -> None:
    trap = Trap(tmp_path / "sprung")
    (tmp_path / "cat").mkdir()
    path = tmp_path / "cat" / "1.pt"
    torch.save([trap], path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(LabelMapError, match=str(path)) as caught:
        open_label_maps(tmp_path, ["cat/1.png"], NAMES)
    words = "refused the label map" if is_zip else "needs code to load"
    assert words in str(caught.value)
    path.write_bytes(pickle.dumps(trap))
    with pytest.raises(LabelMapError, match=str(path)):
        open_label_maps(tmp_path, ["cat/1.png"], NAMES)
    assert not trap.path.exists()
    pickle.loads(path.read_bytes()).close()
    assert trap.path.exists()  # the trap does work


@pytest.mark.filterwarnings("ignore")  # torch's, of unusual pickle protocols
def test_damaged_official_files_are_named(official: Path) -> None:
    path = official / "cat" / "1.pt"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [content[:length] for length in (0, 1, 4, 100, len(content) // 2, len(content) - 1)]
    for place in rng.integers(0, len(content), 100).tolist():
        damaged.append(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
    messages: list[str | None] = []
    for version in damaged:
        path.write_bytes(version)
        try:
            open_label_maps(official, IDS, NAMES)
            messages.append(None)
        except LabelMapError as error:
            messages.append(str(error))
    assert None not in messages[:5]
    # The rest: padding, or a score; the official files have no checksum that torch looks at.
    refused = [message for message in messages if message is not None]
    assert len(refused) >= 20
    assert all(str(path) in message and "\n" not in message for message in refused)


def test_an_official_file_that_goes_later_is_named(official: Path) -> None:
    maps = open_label_maps(official, IDS, NAMES)
    (official / "cat" / "2.pt").unlink()
    with pytest.raises(LabelMapError, match=r"label map .*cat/2.pt is missing or no regular file"):
        maps.load(1)


def test_only_folders_are_listed_to_find_official_files(
    official: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million files one by one would take minutes on a network drive."""
    opened: list[str] = []
    original = torch.load
    monkeypatch.setattr(
        torch, "load", lambda path, **options: (opened.append(path), original(path, **options))[1]
    )
    monkeypatch.setattr(Path, "stat", fail_for_maps(Path.stat))
    open_label_maps(official, reversed(IDS), NAMES)
    assert [str(path) for path in opened] == [str(official / "eel" / "1.pt")]


def fail_for_maps(stat: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(path: Path, **options: Any) -> Any:
        assert path.suffix != ".pt" or path.parent.name == "eel", path
        return stat(path, **options)

    return guarded


# --- Keys -----------------------------------------------------------------------------------------


def test_keys_are_compared_and_not_only_their_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_map_keys, "_hash", lambda key: len(key) % 2)
    monkeypatch.setattr(label_map_keys, "_CHUNK", 2)
    there = KeyLookup(KeyTable.of(["a", "bb", "ccc", "", "dd", "c", "dd"]))
    wanted = KeyLookup(KeyTable.of(["dd", "x", "ccc", "bb", "", "a", "c", "yy", "cc"]))
    assert there.rows_of(wanted).tolist() == [4, -1, 2, 1, 3, 0, 5, -1, -1]
    assert there.first_repeated() == (4, 6)
    assert wanted.first_repeated() is None


def test_many_keys_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_map_keys, "_CHUNK", 1000)
    keys = [f"{number % 7}/{number}" for number in range(5000)]
    order = np.random.default_rng(0).permutation(5000)
    tables = [KeyTable.of(keys[i] for i in part) for part in np.array_split(order, 3)]
    there = KeyTable.joined([*tables, KeyTable.of([])])
    assert list(there) == [keys[i] for i in order]
    rows = KeyLookup(there).rows_of(KeyLookup(KeyTable.of(keys)))
    assert np.array_equal(order[rows], np.arange(5000))
    nothing = KeyLookup(KeyTable.of([]))
    assert nothing.rows_of(nothing).tolist() == []
    assert nothing.rows_of(KeyLookup(KeyTable.of(["a"]))).tolist() == [-1]
    with pytest.raises(IndexError, match="out of range for 5000 keys"):
        _ = there[5000]
