"""The hub folder of the example loads by timm, and is what would be uploaded."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from wavevit.hub.folder import save_hub_folder

pytestmark = pytest.mark.slow


def test_timm_and_wavevit_agree_and_the_whole_folder_is_uploaded(
    tmp_path: Path, load_example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's API is replaced by one that writes down what it is asked."""
    example = load_example("hub_folder")
    source = example.make_model(tmp_path / "m.safetensors", "wavevit_test")
    written = save_hub_folder(source, tmp_path / "flowers", license="apache-2.0")
    assert example.largest_difference(tmp_path / "flowers") < 1e-5

    asked: list[Any] = []

    def create_repo(repo_id: str, **options: Any) -> None:
        asked.append((repo_id, options))

    def upload_folder(*, repo_id: str, folder_path: Path) -> SimpleNamespace:
        asked.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    monkeypatch.setattr(huggingface_hub, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    address = example.push(tmp_path / "flowers", "me/flowers")
    assert address == "https://huggingface.co/me/flowers/commit/1"
    assert asked == [
        ("me/flowers", {"private": True, "exist_ok": True}),
        ("me/flowers", [path.name for path in written]),
    ]


def test_it_runs_as_it_stands(
    load_example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["hub_folder.py"])
    load_example("hub_folder").main()
    said = capsys.readouterr().out
    assert "# flowers" in said
    assert "timm's logits differ from ours by 0.0e+00" in said
