"""`wavevit demo`: a mistake is one line and exit code 2, before anything is served."""

import importlib.metadata
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wavevit.cli.demo import example_pictures, load_lookers
from wavevit.cli.main import main
from wavevit.demo import server


@pytest.fixture
def classifier(tmp_path: Path, save_classifier: Callable[..., Path]) -> Path:
    return save_classifier(tmp_path / "model.safetensors", "wavevit_test", ["ant", "bee"])


@pytest.fixture
def _with_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    with_version(monkeypatch, "6.16.0")


def with_version(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """Lets gradio's version be found, or not; those of others stay."""
    others = importlib.metadata.version

    def find(name: str) -> str:
        if name != "gradio":
            return others(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", find)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def line(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["demo", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("wavevit: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("version", [None, "5.49.1", "6.15.2"])
def test_without_gradio_the_extra_is_named(
    version: str | None,
    classifier: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_version(monkeypatch, version)
    said = line(capsys, "--checkpoint", classifier)
    assert 'pip install "wavevit[demo]"' in said
    assert version is None or f"got {version}" in said


@pytest.mark.usefixtures("_with_gradio")
def test_a_port_that_is_taken_is_named(
    taken: int, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = line(capsys, "--checkpoint", classifier, "--port", taken)
    assert f"cannot serve on 127.0.0.1:{taken} (address already in use)" in said
    assert "--port" in said


@pytest.mark.usefixtures("_with_gradio")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "99999"], "--port must be 0 to 65535, got 99999"),
        (["--host", "no such host"], "--host: expected an address of this machine"),
        (["--max-megapixels", "0"], "--max-megapixels must be"),
        (["--max-upload-mb", "-1"], "--max-upload-mb must be"),
        (["--max-users", "none"], "--max-users"),
        (["--share"], "unknown option or key 'share'"),
    ],
)
def test_options_out_of_range_are_named(
    words: list[str], message: str, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in line(capsys, "--checkpoint", classifier, *words)


@pytest.mark.usefixtures("_with_gradio")
def test_a_bad_checkpoint_is_named(
    tmp_path: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.safetensors"
    assert str(missing) in line(capsys, "--port", 0, "--checkpoint", classifier, missing)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no model")
    assert str(broken) in line(capsys, "--port", 0, "--checkpoint", broken)
    assert "checkpoint" in line(capsys)


def test_models_of_every_task_get_names_that_are_no_paths(
    tmp_path: Path,
    classifier: Path,
    save_detector: Callable[..., Path],
    save_segmenter: Callable[..., Path],
) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    save_detector(run / "best.safetensors")
    again = tmp_path / "other"
    again.mkdir()
    save_segmenter(again / "model.safetensors")
    lookers, summaries = load_lookers(
        [classifier, run, again / "model.safetensors", run / "best.safetensors"], "cpu", "fp32"
    )
    assert list(lookers) == ["model", "mine", "model (2)", "mine (2)"]
    assert summaries["mine"] == "mask_rcnn on wavevit_test: detection, 3 classes"
    assert [looker.task for looker in lookers.values()][:3] == [
        "classification",
        "detection",
        "segmentation",
    ]


def test_only_this_machine_is_answered_by_default() -> None:
    assert server.is_local("127.0.0.1")
    assert server.is_local("localhost")
    assert not server.is_local("0.0.0.0")
    with server.bind("127.0.0.1", 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_examples_are_pictures_of_the_generated_set() -> None:
    pictures = example_pictures()
    assert len({picture.tobytes() for picture in pictures}) == len(pictures) >= 3
