"""`wavevit label-maps create`: the teacher's answers, whole images, any interruption survived."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wavevit.cli import label_map_job, label_maps_create
from wavevit.cli.main import main
from wavevit.data.classification import open_classification
from wavevit.data.label_maps.reader import open_label_maps, read_shard_keys, shard_path
from wavevit.models.teacher import Teacher

NAMES = ["ant", "bee", "cat", "dog"]
MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.2, 0.25)
PER_CLASS = 5  # 20 images in batches of 2 and shards of 6: the last shard is smaller


@pytest.fixture(scope="session")
def save_teacher(save_classifier: Callable[..., Path]) -> Callable[..., Path]:
    """`save_teacher(path, class_names=..., seed=...)`: the model file of a teacher."""
    values = {"image_size": (64, 64), "mean": MEAN, "std": STD}
    return partial(save_classifier, name="test_resnet", class_names=NAMES, **values)


@pytest.fixture(scope="module")
def weights(save_teacher: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher") / "t.safetensors")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders under train/ and val/, with noise pictures of many shapes."""
    root = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for split, count in (("train", PER_CLASS), ("val", 1)):
        for name in NAMES:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40 + 9 * number, 90, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def data(source: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(source, tmp_path / "data"))


def run(weights: Path, data: Path, output: Path, *words: object) -> int:
    options = {"--batch-size": 2, "--maps-per-shard": 6, "--device": "cpu", "--num-workers": 0}
    for name, value in options.items():
        if name not in words:
            words = (*words, name, value)
    command = ["label-maps", "create", "--weights", weights, "--data", data, "--output", output]
    return main([*map(str, command), *map(str, words)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def maps(weights: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The maps of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("maps") / "out"
    assert run(weights, source, folder) == 0
    return folder


def train_ids() -> list[str]:
    return [f"train/{name}/{number}.png" for name in NAMES for number in range(PER_CLASS)]


def answers(weights: Path, path: Path, size: int = 64) -> np.ndarray:
    """(4, rows, columns) logits of the teacher for the whole image, prepared by hand."""
    teacher = Teacher(None, weights, mean=MEAN, std=STD)
    with Image.open(path) as image:
        square = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return teacher.spatial_logits(pixels[None])[0].numpy()


def test_a_map_is_what_the_teacher_says_of_the_whole_image(
    weights: Path, source: Path, maps: Path
) -> None:
    reader = open_label_maps(maps, train_ids(), NAMES)
    for index in (0, 3, 4, 11, 19):  # of several shapes, in several shards
        expected = answers(weights, source / train_ids()[index])
        label_map = reader.load(index)
        assert label_map.scores.shape == (4, 2, 2)  # of 5 classes kept there are 4
        order = np.argsort(-expected, axis=0)
        np.testing.assert_array_equal(label_map.classes, order)
        # Stored as float16, with a relative error up to 2 ** -11.
        sorted_scores = np.take_along_axis(expected, order, axis=0)
        np.testing.assert_allclose(label_map.scores, sorted_scores, rtol=2e-3, atol=2e-3)
    index_file = json.loads((maps / "label-maps.json").read_text())
    assert index_file["class_names"] == NAMES
    assert "test_resnet at 64 x 64 pixels" in index_file["source"]
    with Image.open(maps / "label-maps.png") as picture:
        assert picture.format == "PNG"
    assert sorted(contents(maps)) == [
        "create-settings.json",
        "label-maps.json",
        "label-maps.png",
        *(shard_path(maps, number).name for number in range(4)),
    ]
    assert [len(read_shard_keys(shard_path(maps, number))) for number in range(4)] == [6, 6, 6, 2]


def test_size_number_and_grid_are_as_asked(weights: Path, source: Path, tmp_path: Path) -> None:
    words = ("--image-size", 128, "--top-k", 2, "--map-size", 2, "--split", "val")
    assert run(weights, source, tmp_path / "out", *words) == 0
    label_map = open_label_maps(tmp_path / "out", ["val/bee/0.png"], NAMES).load(0)
    expected = answers(weights, source / "val/bee/0.png", 128).reshape(4, 2, 2, 2, 2)
    expected = expected.mean(axis=(2, 4))
    assert label_map.scores.shape == (2, 2, 2)
    np.testing.assert_array_equal(label_map.classes, np.argsort(-expected, axis=0)[:2])
    np.testing.assert_allclose(label_map.scores[0], expected.max(axis=0), rtol=2e-3, atol=2e-3)


def test_workers_change_nothing(weights: Path, source: Path, maps: Path, tmp_path: Path) -> None:
    assert run(weights, source, tmp_path / "out", "--num-workers", 2) == 0
    assert contents(tmp_path / "out") == contents(maps)


class Killed(BaseException):
    """Nothing of ours may catch this."""


def _fail_at(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    calls = 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return function(*arguments, **options)

    return failing


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ((label_map_job.Oracle, "ask"), 2),  # the first batch: call 1 tries the teacher out
        ((label_map_job.Oracle, "ask"), 8),
        ((label_map_job, "write_shard"), 1),
        ((label_map_job, "write_shard"), 4),
        ((label_maps_create, "_finish"), 1),
        ((label_maps_create, "_draw"), 1),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else str(value),
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    place: tuple[Any, str],
    call: int,
    weights: Path,
    source: Path,
    maps: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(*place, _fail_at(getattr(*place), call))
        with pytest.raises(Killed):
            run(weights, source, tmp_path / "out")
    assert ((tmp_path / "out/label-maps.json").exists()) == (place[1] == "_draw")
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("maps-*")}
    (tmp_path / "out/.label-maps.png.partial").touch()  # as a real kill may leave behind
    assert run(weights, source, tmp_path / "out", "--resume") == 0
    assert contents(tmp_path / "out") == contents(maps)
    for path, written in there.items():  # what was done is not done again
        assert path.stat().st_mtime_ns == written


def test_ctrl_c_says_how_to_go_on(
    weights: Path,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(label_map_job, "write_shard", stop)
    assert run(weights, source, tmp_path / "out") == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_shard_is_made_again(
    damage: str,
    weights: Path,
    source: Path,
    maps: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(maps, tmp_path / "out"))
    path = shard_path(folder, 1)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-40:]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:  # whole, but with the maps of other images
        content = bytearray(shard_path(folder, 2).read_bytes())
    path.write_bytes(content)
    assert run(weights, source, folder, "--resume") == 0
    out = capsys.readouterr().out
    assert "making it again" in out
    assert "14 images are done already, 6 are left" in out
    assert contents(folder) == contents(maps)


def test_unreadable_images_are_listed_and_leave_the_rest_as_it_is(
    weights: Path,
    data: Path,
    source: Path,
    maps: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, bad = tmp_path / "out", ["train/ant/1.png", "train/cat/0.png", "train/cat/1.png"]
    for name in bad:
        (data / name).write_bytes(b"no image")
    assert run(weights, data, folder) == 1
    error = capsys.readouterr().err
    assert "3 of 20 images cannot be read and have no label map, such as 'train/ant/1.png'" in error
    lines = (folder / "unreadable.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == bad
    assert all("cannot read image" in line for line in lines)
    readable = [name for name in train_ids() if name not in bad]
    ours = open_label_maps(folder, readable, NAMES)
    theirs = open_label_maps(maps, readable, NAMES)
    for index in range(len(readable)):
        np.testing.assert_array_equal(ours.load(index).classes, theirs.load(index).classes)
        # A batch without one of its images is another batch: float32 in another order.
        np.testing.assert_allclose(
            ours.load(index).scores, theirs.load(index).scores, rtol=2e-3, atol=2e-3
        )
    with pytest.raises(ValueError, match="have no label map"):
        open_label_maps(folder, train_ids(), NAMES)

    before = contents(folder)
    assert run(weights, data, folder, "--resume") == 1  # nothing to do, and still not complete
    assert contents(folder) == before
    assert "all are listed in" in capsys.readouterr().err
    for name in bad:
        shutil.copy(source / name, data / name)
    assert run(weights, data, folder, "--resume") == 0
    assert contents(folder) == contents(maps)


def test_a_shard_without_any_readable_image_stops(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        (data / f"train/ant/{number}.png").write_bytes(b"")
    assert run(weights, data, tmp_path / "out", "--maps-per-shard", 4) == 2
    error = capsys.readouterr().err
    assert "none of the 4 images from 'train/ant/0.png' on can be read" in error
    assert "(zero bytes)" in error


def refused(
    capsys: pytest.CaptureFixture[str], weights: Path, data: Path, output: Path, *words: object
) -> str:
    """The one line on standard error of a command that exits 2."""
    capsys.readouterr()
    assert run(weights, data, output, *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_maps_of_other_settings_are_not_gone_on_with(
    weights: Path,
    save_teacher: Callable[..., Path],
    source: Path,
    maps: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(maps, tmp_path / "out"))
    before = contents(folder)
    assert "is not empty" in refused(capsys, weights, source, folder)
    for words, difference in (
        (("--top-k", 2), "top_k 4 there, 2 now"),
        (("--image-size", 96), "image_size [64, 64] there, [96, 96] now"),
        (("--batch-size", 3), "batch_size 2 there, 3 now"),
        (("--precision", "bf16"), "precision fp32 there, bf16 now"),
        (("--split", "val"), "num_images 20 there, 4 now"),
    ):
        error = refused(capsys, weights, source, folder, "--resume", *words)
        assert "were made with other settings" in error
        assert difference in error
    other = save_teacher(tmp_path / "other.safetensors", seed=1)
    assert "weights_sha256" in refused(capsys, other, source, folder, "--resume")
    assert contents(folder) == before
    (folder / "create-settings.json").write_text("{")
    assert "cannot be read" in refused(capsys, weights, source, folder, "--resume")
    (folder / "create-settings.json").unlink()
    error = refused(capsys, weights, source, folder, "--resume")
    assert "has no create-settings.json" in error


def test_settings_may_change_before_there_is_any_map(
    weights: Path, source: Path, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a batch that was too large for the device."""
    with monkeypatch.context() as patch:
        patch.setattr(label_map_job, "write_shard", _fail_at(label_map_job.write_shard, 1))
        with pytest.raises(Killed):
            run(weights, source, tmp_path / "out", "--batch-size", 6)
    assert run(weights, source, tmp_path / "out", "--resume") == 0
    assert contents(tmp_path / "out") == contents(maps)


def test_mistakes_are_found_before_any_work(
    weights: Path,
    save_teacher: Callable[..., Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "out"
    for words, message in (
        (("--batch-size", 4), "--batch-size must divide --maps-per-shard, got 4 and 6; use"),
        (("--batch-size", 0), "--batch-size must be at least 1, got 0"),
        (("--top-k", 0), "--top-k must be at least 1"),
        (("--num-workers", -1), "--num-workers must be at least 0"),
        (("--map-size", 3), "--map-size is at most the teacher's own 2 x 2 at 64 pixels, got 3"),
        (("--teacher", "resnet50"), "is a test_resnet, not a resnet50"),
        (("--pretrained", "--teacher", "test_resnet"), "not both"),
    ):
        assert message in refused(capsys, weights, data, folder, *words)
    other = save_teacher(tmp_path / "other.safetensors", class_names=["ant", "bee", "cat", "eel"])
    error = refused(capsys, other, data, folder)
    assert "only the teacher has eel; only the data has dog" in error
    assert "is in the folder of the images" in refused(capsys, weights, data, data / "maps")
    (tmp_path / "file").touch()
    assert "is a file" in refused(capsys, weights, data, tmp_path / "file")
    (data / "train/ant/1.jpg").write_bytes(b"")
    error = refused(capsys, weights, data, folder)
    assert "'train/ant/1.jpg' and 'train/ant/1.png' would share the label map 'ant/1'" in error
    assert not list(folder.iterdir())


def test_a_teacher_gone_mad_is_stopped(
    weights: Path,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ask, calls = label_map_job.Oracle.ask, 0

    def mad(self: label_map_job.Oracle, images: torch.Tensor) -> label_map_job.Answer:
        nonlocal calls
        calls += 1
        scores, classes = ask(self, images)
        if calls == 3:  # the first is no image of the data
            scores[1] = 70_000
        return scores, classes

    monkeypatch.setattr(label_map_job.Oracle, "ask", mad)
    error = refused(capsys, weights, source, tmp_path / "out")
    assert "gives NaN or numbers beyond 65504 for 'train/ant/3.png' in fp32" in error


def test_low_precision_gives_nearly_the_same(
    weights: Path, source: Path, maps: Path, tmp_path: Path
) -> None:
    words = ("--precision", "bf16", "--split", "train")
    assert run(weights, source, tmp_path / "out", *words) == 0
    ours = open_label_maps(tmp_path / "out", train_ids(), NAMES)
    theirs = open_label_maps(maps, train_ids(), NAMES)
    # bfloat16 keeps 8 bits; the scores have a spread of several.
    for index in range(len(train_ids())):
        np.testing.assert_allclose(
            ours.load(index).scores, theirs.load(index).scores, rtol=0.1, atol=0.5
        )


def test_shards_are_consecutive_images(source: Path, tmp_path: Path) -> None:
    job = label_map_job.Job(tmp_path, open_classification(source).train, 2, 6, print)
    parts = [list(job.indices(number)) for number in range(job.num_shards)]
    assert [index for part in parts for index in part] == list(range(20))
    assert [len(part) for part in parts] == [6, 6, 6, 2]
