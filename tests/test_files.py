"""A file is as it was or complete, whenever the program stops."""

import os
from pathlib import Path

import pytest

from wavevit.files import check_place, replacing, write_file, write_text


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("old")
    return tmp_path / "file"


@pytest.mark.parametrize("durable", [True, False])
def test_the_content_is_on_disk_before_it_takes_the_files_place(
    durable: bool, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    sync, replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size == 3
        seen.append(("sync", old.read_text()))
        sync(descriptor)

    def rename(source: Path, target: Path) -> None:
        seen.append(("replace", old.read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    with replacing(old, durable=durable) as partial:
        assert partial.parent == old.parent
        partial.write_text("new")
    assert seen == [("sync", "old")] * durable + [("replace", "old")]
    assert old.read_text() == "new"
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize("place", ["while writing", "fsync", "replace"])
def test_after_an_error_the_old_file_is_whole_and_nothing_is_left_beside_it(
    place: str, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    def write() -> None:
        with replacing(old) as partial:
            partial.write_text("new")
            if place == "while writing":
                fail()

    if place != "while writing":
        monkeypatch.setattr(os, place, fail)
    with pytest.raises(OSError, match="no space left"):
        write()
    assert old.read_text() == "old"
    assert list(old.parent.iterdir()) == [old]


def test_names_that_are_not_utf_8_survive_in_texts(tmp_path: Path) -> None:
    write_text(tmp_path / "list", os.fsdecode(b"caf\xe9\n"))
    assert (tmp_path / "list").read_bytes() == b"caf\xe9\n"


def test_what_cannot_be_written_says_where(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        write_file(tmp_path / "missing" / "file", b"")


def test_places_that_no_file_can_be_written_to_are_refused(tmp_path: Path) -> None:
    check_place(tmp_path / "new.csv")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IsADirectoryError, match="expected a file, got the folder"):
        check_place(tmp_path)
    with pytest.raises(FileNotFoundError, match="create it first"):
        check_place(tmp_path / "missing" / "new.csv")
