"""`wavevit shard`: what it writes, what it says, and what it refuses."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from wavevit.cli import counter
from wavevit.cli.main import main
from wavevit.data.classification import open_classification


@pytest.fixture
def data(tmp_path: Path, write_images: Callable[..., None]) -> Path:
    write_images(tmp_path / "set", *(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(5)))
    return tmp_path / "set"


def run(*words: object) -> int:
    return main(["shard", *map(str, words)])


def test_a_folder_becomes_shards(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    assert run(data, out, "--samples-per-shard", 4) == 0
    output = capsys.readouterr().out
    assert f"class folders in {data}" in output
    assert "train: 10 images in 3 tar files, 0.1 MB" in output
    assert f"2 classes\nwritten: {out}" in output
    one, two = open_classification(data), open_classification(out)
    for part in ("train", "val"):
        ours, theirs = two.parts[part], one.parts[part]
        ids = [theirs.sample_id(i) for i in range(len(theirs))]
        assert [ours.sample_id(i) for i in range(len(ours))] == ids


def test_a_val_split_is_written_when_asked_for(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path / "out", "--val-fraction", 0.2, "--split-seed", 3) == 0
    held_out = open_classification(data, val_fraction=0.2, split_seed=3)
    splits = open_classification(tmp_path / "out")
    assert not splits.held_out
    assert {splits.val.sample_id(i) for i in range(2)} == {
        held_out.val.sample_id(i) for i in range(2)
    }


def test_a_csv_and_shards_are_sources_too(data: Path, tmp_path: Path) -> None:
    table = tmp_path / "set.csv"
    table.write_text("path,label,split\nset/cat/0.png,a,train\nset/dog/1.png,b,val\n")
    table.write_text(table.read_text() + "set/dog/2.png,b,train\n")
    assert run(table, tmp_path / "one", "--shuffle-seed", "null") == 0
    assert run((tmp_path / "one").as_uri(), tmp_path / "two") == 0
    splits = open_classification(tmp_path / "two")
    assert splits.class_names == ["a", "b"]
    assert splits.val.sample_id(0) == "set/dog/1.png"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{data}"], "expected the folder to write: wavevit shard DATA OUT"),
        (["shapes", "{out}"], "'shapes' is generated"),
        (["{tmp}/missing", "{out}"], "no such file or folder"),
        (["{data}", "s3://bucket/out"], "shards are written to a local folder"),
        (["{data}", "{data}/out"], "lie in one another; name a folder beside"),
        (["{data}/cat", "{data}"], "is not empty, and not all in it was written by"),
        (["{data}", "{out}", "--samples-per-shard", "0"], "--samples-per-shard must be at least 1"),
        (["{data}", "{out}", "--megabytes-per-shard", ".inf"], "--megabytes-per-shard in (0, 1e9)"),
        (["{data}", "{out}", "--shuffle-seed", "-1"], "--shuffle-seed is at least 0"),
        (["{data}", "{out}", "--val-fraction", "2"], "val_fraction is a part in [0, 1)"),
        (["{data}", "{out}", "--class-names", "x"], "--class-names is for --index-only"),
        (["{data}", "{out}", "--index-only"], "writes beside the tar files"),
        (["{data}", "--index-only"], "no tar files named train*.tar"),
        (["{data}", "--index-only", "--val-fraction", "0.2"], "--val-fraction is for writing tar"),
        (["memory://set", "--index-only"], "--index-only reads every tar file, from a local"),
        (["{tmp}/missing", "--index-only"], "no such folder"),
    ],
)
def test_mistakes_are_one_clear_line_and_leave_nothing(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    places = {"data": data, "out": tmp_path / "out", "tmp": tmp_path}
    assert run(*(word.format(**places) for word in words)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_an_empty_file_is_named_and_nothing_is_left(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "dog" / "3.png").write_bytes(b"")
    assert run(data, tmp_path / "out") == 2
    assert "dog/3.png': the file is empty (zero bytes)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_shards_are_replaced_only_with_overwrite(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(data, out) == 0
    assert run(data, out) == 2
    assert "holds shards already; pass --overwrite" in capsys.readouterr().err
    assert run(data, out, "--overwrite", "--samples-per-shard", 5) == 0
    assert len(list(out.glob("*.tar"))) == 2
    assert run(out, "--index-only", "--overwrite") == 2
    assert "is of `wavevit shard` itself" in capsys.readouterr().err


def test_tars_of_others_are_indexed_where_they_are(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    with tarfile.open(tars / "train-00.tar", "w") as tar:
        for number, name in enumerate(("cat/0", "dog/0", "dog/1")):
            tar.add(data / f"{name}.png", f"{number}.png")
            info = tarfile.TarInfo(f"{number}.cls")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"0" if name == "cat/0" else b"1"))
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    assert run(tars, "--index-only", "--class-names", names) == 0
    output = capsys.readouterr().out
    assert f"train: 3 images in 1 tar file, 0.0 MB\n2 classes\nwritten: {tars}" in output
    splits = open_classification(tars)
    assert splits.class_names == ["cat", "dog"]
    assert splits.train.load(0).size == (40, 36)
    assert run(data, tars, "--overwrite") == 2  # they cannot be made again
    assert "not all in it was written by" in capsys.readouterr().err
    names.write_text("cat\ncat\n")
    assert run(tars, "--index-only", "--overwrite", "--class-names", names) == 2
    assert "expected two or more class names, each one once" in capsys.readouterr().err


def test_check_data_lists_corrupt_samples_of_shards(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    assert run(data, out) == 0
    assert main(["check-data", "--data", str(out)]) == 0
    assert "10 images in 2 classes" in capsys.readouterr().out
    tar = out / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content[:-512])
    assert main(["check-data", "--data", str(out), "--json", str(report)]) == 1
    output = capsys.readouterr().out
    assert "unreadable: 1 (cannot be decoded" in output
    assert "shard: 1 (tar shards that are missing or of a wrong size" in output
    assert json.loads(report.read_text())["problem_counts"] == {"unreadable": 1, "shard": 1}


def test_progress_goes_to_standard_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counter, "_SECONDS_BETWEEN_LINES", 0.0)
    assert run(data, tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert "writing shards: 10 of 10 images, 0 s left" in captured.err
    assert "of 10 images" not in captured.out
