"""An exported folder is complete and unharmed, or refused in one line before anything runs."""

import json
from pathlib import Path

import pytest

from wavevit.export.archive import (
    MANIFEST,
    REST,
    ExportedPart,
    Manifest,
    check_files,
    export_folder,
    new_folder,
    read_manifest,
    write_manifest,
)

PART = ExportedPart(
    "network", "network", ["images"], [["batch", 3, "height", "width"]], ["logits"], {"height": 33}
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with new_folder(tmp_path / "out") as partial:
        (partial / "network.onnx").write_bytes(b"graph")
        (partial / "network.onnx.data").write_bytes(b"weights")
        write_manifest(partial, Manifest("onnx", "detection", {"detector": "gfl"}, [PART]))
    return tmp_path / "out"


def test_what_is_written_is_what_is_read(folder: Path) -> None:
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    assert manifest.parts == [PART]
    assert manifest.card == {"detector": "gfl"}
    assert set(manifest.files) == {"network.onnx", "network.onnx.data"}
    assert {path.name for path in folder.parent.iterdir()} == {"out"}


def test_the_folder_or_any_file_in_it_names_the_export(folder: Path, tmp_path: Path) -> None:
    for path in (folder, folder / "network.onnx", folder / MANIFEST, folder / "network.onnx.data"):
        assert export_folder(path) == folder
    (folder / REST).write_bytes(b"")
    assert export_folder(folder / REST) == folder
    (folder / "best.safetensors").write_bytes(b"")
    (tmp_path / "lonely.onnx").write_bytes(b"")
    for path in (tmp_path, folder / "best.safetensors", tmp_path / "lonely.onnx"):
        assert export_folder(path) is None


def test_a_folder_beside_the_target_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial/important.txt").write_text("mine")
    with new_folder(tmp_path / "out") as partial, new_folder(tmp_path / "other") as other:
        assert partial != other
    assert (tmp_path / ".out.partial/important.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "other", ".out.partial"}


def test_after_an_error_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), new_folder(tmp_path / "out") as partial:
        partial.write_bytes(b"a folder is no file")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="choose another name"), new_folder(folder):
        pass
    with pytest.raises(FileNotFoundError, match="folder of the output"):
        new_folder(tmp_path / "no" / "out").__enter__()


def test_a_damaged_or_missing_file_is_named(folder: Path) -> None:
    manifest = read_manifest(folder)
    (folder / "network.onnx.data").write_bytes(b"weightz")
    with pytest.raises(ValueError, match=r"network\.onnx\.data is damaged"):
        check_files(folder, manifest)
    (folder / "network.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"incomplete: network\.onnx is missing"):
        check_files(folder, manifest)


@pytest.mark.parametrize(
    "change",
    [
        {"layout": 2},
        {"format": "tflite"},
        {"colour": "red"},
        {"parts": [{"path": "network"}]},
        {"parts": None},
    ],
)
def test_an_unknown_manifest_is_refused(folder: Path, change: dict) -> None:
    values = json.loads((folder / MANIFEST).read_text()) | change
    (folder / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"export\.json cannot be read .* newer version"):
        read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"layout": 1}'])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"export\.json cannot be read"):
        read_manifest(folder)
