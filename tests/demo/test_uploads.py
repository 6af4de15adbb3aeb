"""What users send: bad files are refused with words, and go in time."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from wavevit.demo.limits import Limits
from wavevit.demo.uploads import LONG_SIDE, UploadError, UploadFolder, read_upload

NAMES = (
    *("drawing.svg", "svg-called.png", "page.html", "html-called.jpg", "program.eps", "empty.png"),
    *("cut.jpg", "cut.png", "head-only.png", "huge.png", "lies.png"),
)


@pytest.fixture
def folder() -> Iterator[UploadFolder]:
    found = UploadFolder()
    yield found
    found.remove()
    assert not found.path.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_no_fit_picture_is_refused_with_words_and_removed(
    name: str, folder: UploadFolder, bad_files: dict[str, tuple[bytes, str]]
) -> None:
    content, words = bad_files[name]
    path = folder.path / "of one upload" / name
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UploadError, match=words) as caught:
        read_upload(str(path), folder, Limits())
    assert str(folder.path) not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(folder.path.iterdir()) == []


def test_a_file_of_too_many_bytes_is_refused(folder: UploadFolder) -> None:
    path = folder.path / "large.bmp"
    Image.new("RGB", (100, 100)).save(path)  # 30 kB
    with pytest.raises(UploadError, match=r"0\.0 MB, and 0\.02 MB are the most"):
        read_upload(str(path), folder, Limits(upload_mb=0.02))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_a_large_picture_comes_upright_and_shrunk(folder: UploadFolder, format: str) -> None:
    path = folder.path / "any-name"
    Image.new("RGB", (2 * LONG_SIDE, LONG_SIDE // 2), "red").save(path, format)
    found = read_upload(str(path), folder, Limits())
    assert (found.mode, found.size) == ("RGB", (LONG_SIDE, LONG_SIDE // 4))
    red, green, blue = found.getpixel((5, 5))  # type: ignore[misc]
    assert red > 250
    assert max(green, blue) < 5


def test_only_files_in_the_folder_are_read(folder: UploadFolder, picture_file: Path) -> None:
    inside = folder.path / "inside.png"
    inside.write_bytes(picture_file.read_bytes())
    link = folder.path / "link.png"
    link.symlink_to(picture_file)
    (folder.path / "sub").mkdir()
    read_upload(str(inside), folder, Limits())
    read_upload(f"{folder.path}/sub/../inside.png", folder, Limits())
    for path in (
        str(picture_file),
        str(link),
        f"{folder.path}/../{folder.path.name}x/inside.png",
        os.path.relpath(picture_file, folder.path),
        f"{folder.path}/{os.path.relpath(picture_file, folder.path)}",
        "/etc/passwd",
        f"{folder.path}",
        f"{inside}\0",
        "",
        "http://127.0.0.1/x.png",
    ):
        assert not folder.holds(path)
        with pytest.raises(UploadError, match="no longer on the server"):
            read_upload(path, folder, Limits())
    assert picture_file.exists()


def test_the_folder_is_nobody_elses(folder: UploadFolder) -> None:
    assert os.stat(folder.path).st_mode & 0o077 == 0


def test_files_go_when_their_time_is_over(folder: UploadFolder) -> None:
    (folder.path / "a").mkdir()
    old, kept = folder.path / "a" / "old.png", folder.path / "kept.png"
    for path in (old, kept):
        path.write_bytes(b"x" * 10)
    time.sleep(0.15)
    fresh = folder.path / "fresh.png"
    fresh.write_bytes(b"x")
    folder.sweep(0.1, keep={kept})
    assert folder.files() == {kept, fresh}
    assert not old.parent.exists()
    assert folder.used_bytes() == 11


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"upload_mb": 0.0}, "--max-upload-mb must be 0.01 to 1000, got 0"),
        ({"megapixels": 500.0}, "--max-megapixels must be"),
        ({"queue": 0}, "--max-queue must be"),
        ({"users": 0}, "--max-users must be"),
        ({"keep_minutes": -1.0}, "--keep-minutes must be"),
        ({"store_mb": float("nan")}, "--max-store-mb must be"),
    ],
)
def test_limits_out_of_range_name_their_option(values: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Limits(**values)  # type: ignore[arg-type]
