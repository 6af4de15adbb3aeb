"""`wavevit label-maps pack`: the same maps in few files, or one line about what is wrong."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wavevit.cli import counter
from wavevit.cli.main import main
from wavevit.data.label_maps.reader import open_label_maps, shard_path

NAMES = [f"class {number}" for number in range(1000)]
KEYS = [f"n{number % 3}/n{number % 3}_{number}" for number in range(7)]


def save_map(folder: Path, key: str, seed: int, shape: tuple[int, ...] = (5, 4, 6)) -> Path:
    rng = np.random.default_rng(seed)
    scores, classes = rng.standard_normal(shape), rng.integers(0, 1000, shape)
    path = folder / f"{key}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(np.stack([scores, classes])).half(), path)
    return path


@pytest.fixture
def official(tmp_path: Path) -> Path:
    folder = tmp_path / "label_top5"
    for seed, key in enumerate(KEYS):
        save_map(folder, key, seed)
    (folder / "readme.txt").touch()
    return folder


def error_line(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["label-maps", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("wavevit: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(("maps_per_shard", "counts"), [(3, [3, 3, 1]), (7, [7]), (10_000, [7])])
def test_packed_maps_equal_the_official_ones(
    official: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    maps_per_shard: int,
    counts: list[int],
) -> None:
    out = tmp_path / "packed"
    number = str(maps_per_shard)
    assert main(["label-maps", "pack", str(official), str(out), "--maps-per-shard", number]) == 0
    ids = [f"train/{key}.JPEG" for key in KEYS]
    before, after = (open_label_maps(folder, ids, NAMES) for folder in (official, out))
    for index in range(len(KEYS)):
        first, second = before.load(index), after.load(index)
        assert np.array_equal(first.scores, second.scores)
        assert np.array_equal(first.classes, second.classes)
        assert first.scores.shape == (5, 4, 6)
    index = json.loads((out / "label-maps.json").read_text())
    assert [shard["count"] for shard in index["shards"]] == counts
    assert (index["num_classes"], index["class_names"]) == (1000, None)
    assert index["source"] == "official label maps label_top5"
    files = f"{len(counts)} file{'s' * (len(counts) > 1)}"
    assert capsys.readouterr().out == (
        f"packed 7 label maps (5 of 1,000 classes on a grid of 4 x 6) into {files}, "
        f"{sum(map(len, contents(out).values())) / 1e6:.1f} MB\nwritten: {out}\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["label_top5", "packed"]


def test_the_number_of_classes_is_kept_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_map(tmp_path / "maps", "a/1", 0)
    tensor = torch.load(path)
    tensor[1] = tensor[1].clamp(max=699)
    tensor[1, 0, 0, 0] = 699
    torch.save(tensor, path)
    arguments: list[object] = ["pack", tmp_path / "maps", tmp_path / "out", "--num-classes"]
    line = error_line([*arguments, 699], capsys)
    assert "names class 699, expected 0 to 698 (699 classes)" in line
    assert main(["label-maps", *map(str, arguments), "700"]) == 0
    assert capsys.readouterr().out.startswith("packed 1 label map (5 of 700 classes")
    assert open_label_maps(tmp_path / "out", ["a/1.png"], NAMES[:700]).num_classes == 700
    line = error_line([*arguments, 2049], capsys)
    assert "exact only to 2048, and there are 2049 classes; make maps of our own" in line


def test_broken_files_are_counted_and_nothing_is_written(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (official / "n1" / "n1_1.pt").write_bytes(b"rubbish")
    (official / "n1" / "n1_4.pt").write_bytes(b"")
    save_map(official, "n2/n2_2", 0, shape=(5, 3, 3))
    line = error_line(["pack", official, tmp_path / "out", "--maps-per-shard", 2], capsys)
    assert "3 of 7 label maps are broken, nothing was written; the first: " in line
    assert f"{official / 'n1' / 'n1_1.pt'} is no label map" in line
    assert [path.name for path in tmp_path.iterdir()] == ["label_top5"]


def test_maps_of_different_sizes_are_named(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_map(official, "n2/n2_2", 0, shape=(5, 6, 4))
    line = error_line(["pack", official, tmp_path / "out"], capsys)
    assert "1 of 7 label maps are broken" in line
    assert "n2_2.pt has the shape (5, 6, 4) (classes per cell, rows, columns), " in line
    assert "n0/n0_0.pt has (5, 4, 6)" in line


class Trap:
    """Unpickling an instance creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.path), "w")


def test_code_in_a_file_is_not_run(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(Trap(tmp_path / "sprung"), official / "n0" / "n0_0.pt")
    line = error_line(["pack", official, tmp_path / "out"], capsys)
    assert "refused the label map" in line
    assert "n0_0.pt: loading it would run code (" in line
    assert [path.name for path in tmp_path.iterdir()] == ["label_top5"]


def test_existing_files_stay_unless_they_are_packed_maps(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is fine
    assert main(["label-maps", "pack", str(official), str(out), "--maps-per-shard", "1"]) == 0
    capsys.readouterr()
    before = contents(out)
    line = error_line(["pack", official, out], capsys)
    assert f"'{out}' is not empty; name another folder, or pass --overwrite" in line
    (official / "n0" / "n0_0.pt").rename(tmp_path / "aside.pt")
    (official / "n0" / "n0_0.pt").write_bytes(b"broken")
    error_line(["pack", official, out, "--overwrite"], capsys)
    assert contents(out) == before
    (tmp_path / "aside.pt").rename(official / "n0" / "n0_0.pt")
    assert main(["label-maps", "pack", str(official), str(out), "--overwrite"]) == 0
    capsys.readouterr()
    assert sorted(contents(out)) == ["label-maps.json", "maps-00000.safetensors"]
    (out / "thesis.tex").write_text("mine")
    line = error_line(["pack", official, out, "--overwrite"], capsys)
    assert "holds more than packed label maps (thesis.tex)" in line
    assert (out / "thesis.tex").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["label_top5", "out"]


def test_a_link_stays_a_link(official: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "maps")
    (tmp_path / "disk" / "maps").mkdir()
    assert main(["label-maps", "pack", str(official), str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink()
    assert shard_path(tmp_path / "disk" / "maps", 0).exists()


def test_mistakes_are_one_line(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "no such folder of official label maps" in error_line(
        ["pack", tmp_path / "none", out], capsys
    )
    assert "got a file" in error_line(["pack", official / "readme.txt", out], capsys)
    (tmp_path / "empty").mkdir()
    line = error_line(["pack", tmp_path / "empty", out], capsys)
    assert "no label maps in" in line
    assert "<class>/<image>.pt" in line
    line = error_line(["pack", official, tmp_path / "none" / "out"], capsys)
    assert f"no such folder: '{tmp_path / 'none'}'; create it first" in line
    assert "is a file" in error_line(["pack", official, official / "readme.txt"], capsys)
    assert "top of a drive" in error_line(["pack", official, "/"], capsys)
    line = error_line(["pack", official, out, "--maps-per-shard", 0], capsys)
    assert "must be at least 1, got 1000 and 0" in line
    assert not out.exists()
    assert main(["label-maps", "pack", str(official), str(out)]) == 0
    capsys.readouterr()
    assert "are packed already" in error_line(["pack", out, tmp_path / "again"], capsys)


def test_the_remains_of_a_killed_run_are_named_and_left(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remains = tmp_path / "out.partial"
    remains.mkdir()
    line = error_line(["pack", official, tmp_path / "out"], capsys)
    assert f"'{remains}' is there, of a run that is still going or was killed" in line
    assert remains.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_run_leaves_nothing(
    official: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    code = 2 if isinstance(error, OSError) else 130
    assert main(["label-maps", "pack", str(official), str(tmp_path / "out")]) == code
    assert [path.name for path in tmp_path.iterdir()] == ["label_top5"]


def test_the_old_maps_come_back_if_the_new_ones_cannot_take_their_place(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert main(["label-maps", "pack", str(official), str(out)]) == 0
    before = contents(out)
    shutil.rmtree(official / "n0")
    rename = Path.rename

    def guarded(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", guarded)
    assert main(["label-maps", "pack", str(official), str(out), "--overwrite"]) == 2
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["label_top5", "out"]


def test_progress_is_lines_on_standard_error(
    official: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(counter, "_SECONDS_BETWEEN_LINES", 0.0)
    assert main(["label-maps", "pack", str(official), str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "packing: 7 of 7 label maps, 0 s left\n" in captured.err
    assert "packing" not in captured.out


def test_an_incomplete_command_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    line = error_line([], capsys)
    assert "`wavevit label-maps ACTION` with ACTION one of create, pack, got nothing" in line
    assert "one of create, pack, got pakc" in error_line(["pakc"], capsys)
