"""`wavevit check-data`: report, JSON file and exit codes."""

import json
from collections.abc import Callable
from pathlib import Path

import jsonargparse
import pytest

from wavevit.cli import check_data, counter


@pytest.fixture
def data(tmp_path: Path, write_images: Callable[..., None]) -> Path:
    write_images(tmp_path / "set", "a/1.png", "a/2.png", "b/1.png")
    return tmp_path / "set"


def run(*arguments: object) -> int:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    check_data.add_arguments(parser)
    return check_data.run(parser.parse_args([str(argument) for argument in arguments]))


def test_clean_data_exits_with_0(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--data", data) == 0
    output = capsys.readouterr().out
    assert "no problems found" in output
    assert "3 images in 2 classes, 1 to 2 per class" in output


def test_problems_exit_with_1_and_go_to_the_json_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "a" / "bad\udcff.png").write_bytes(b"rubbish")
    target = tmp_path / "report.json"
    assert run("--data", data, "--json", target, "--num_workers", 0) == 1
    assert "a/bad\\udcff.png: the content is no image" in capsys.readouterr().out
    content = json.loads(target.read_text())
    assert content["problem_counts"] == {"unreadable": 1}
    assert content["problems"][0]["paths"] == ["a/bad\udcff.png"]
    assert content["imbalance"] == {"all": 3}
    assert content["class_counts"] == {"all": {"a": 3, "b": 1}}


def test_json_file_is_never_replaced_silently(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    target.write_text("mine")
    with pytest.raises(FileExistsError, match="exists; pass --overwrite"):
        run("--data", data, "--json", target)
    assert target.read_text() == "mine"
    assert run("--data", data, "--json", target, "--overwrite", "true") == 0
    assert json.loads(target.read_text())["problems"] == []


def test_output_is_checked_before_anything_is_read(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder for --json"):
        run("--data", data, "--json", tmp_path / "missing" / "report.json")
    with pytest.raises(ValueError, match="expects a file, got the folder"):
        run("--data", data, "--json", tmp_path)


def test_wrong_data_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder") as caught:
        run("--data", tmp_path / "missing")
    assert "\n" not in str(caught.value)


def test_progress_goes_to_standard_error(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counter, "_SECONDS_BETWEEN_LINES", 0.0)
    run("--data", data)
    captured = capsys.readouterr()
    assert "reading: 3 of 3 files" in captured.err
    assert "of 3 files" not in captured.out
