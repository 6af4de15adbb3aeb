"""Walking a folder of images: sorted, streaming, and out of reach of links and hidden files."""

import os
from pathlib import Path

import pytest

from wavevit.data.images import IMAGE_EXTENSIONS, iter_image_files


def test_iter_image_files_is_sorted_and_skips_hidden(tmp_path: Path) -> None:
    names = ["b/2.PNG", "b/10.jpg", "a.jpeg", "z.gif", "b/c/1.webp", "a/x.tiff", "note.txt"]
    names += [".hidden.jpg", ".cache/y.jpg", "__MACOSX/y.jpg", "b/._2.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in iter_image_files(tmp_path)]
    assert found == ["a.jpeg", "z.gif", "a/x.tiff", "b/10.jpg", "b/2.PNG", "b/c/1.webp"]


def test_iter_image_files_survives_link_loops(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.png").touch()
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = [path.relative_to(tmp_path).as_posix() for path in iter_image_files(tmp_path)]
    assert found == ["a/b/gone.png", "a/b/x.png"]


def test_iter_image_files_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first file comes before any other folder is even listed."""
    for number in range(3):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "x.png").touch()
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), scandir(path))[1])
    files = iter_image_files(tmp_path)
    assert listed == []
    next(files)
    assert listed == [str(tmp_path), str(tmp_path / "0")]


def test_iter_image_files_checks_its_argument_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        iter_image_files(tmp_path / "missing")
    (tmp_path / "x.png").touch()
    with pytest.raises(NotADirectoryError, match="expected a folder"):
        iter_image_files(tmp_path / "x.png")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_iter_image_files_reports_locked_folders(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    errors: list[OSError] = []
    assert list(iter_image_files(tmp_path, on_error=errors.append)) == []
    assert "locked" in str(errors[0])
    with pytest.raises(PermissionError):
        list(iter_image_files(tmp_path))


def test_extensions_are_lower_case_with_a_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"} <= IMAGE_EXTENSIONS
    assert all(e.startswith(".") and e == e.lower() for e in IMAGE_EXTENSIONS)
