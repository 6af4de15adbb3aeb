"""`wavevit convert`: official files become model files; anything else is refused unharmed."""

import json
import os
from pathlib import Path

import pytest
import torch
from official_names import classifier_state
from torch import Tensor

from wavevit.cli.main import main
from wavevit.models.card import ModelCard, create_model, read_card, save_model
from wavevit.models.weights import load_model


@pytest.fixture(scope="module")
def nano() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = create_model("wavevit_nano", num_classes=5)
    return {name: value.clone() for name, value in model.state_dict().items()}


def run(*words: object) -> int:
    return main(["convert", *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line on standard error of a command that exits 2."""
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_official_names_become_a_model_file(
    nano: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In any wrapping that `read_checkpoint` takes: see there."""
    source, target = tmp_path / "official.pth.tar", tmp_path / "out.safetensors"
    torch.save({"state_dict": classifier_state(nano), "epoch": 300}, source)
    assert run(source, target) == 0
    out = capsys.readouterr().out
    assert "recognised: wavevit_nano (5 classes, without token labels, class token pooling)" in out
    assert f"converted: {len(nano)} entries" in out
    for kind in ("missing", "unexpected", "mismatched"):
        assert f"{kind}: none" in out
    model, card = load_model(target)
    assert card.model_args["num_classes"] == 5
    converted = model.state_dict()
    assert converted.keys() == nano.keys()
    for name, value in nano.items():
        assert torch.equal(converted[name], value), name


def test_token_labels_and_average_pooling_are_recognised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in (
        ({"token_label": True}, "with token labels, class token pooling"),
        ({"global_pool": "avg"}, "without token labels, average pooling"),
        ({"in_chans": 1}, "1 input channels"),
    ):
        model = create_model("wavevit_nano", num_classes=3, **arguments)
        torch.save(classifier_state(model.state_dict()), tmp_path / "a.pth")
        assert run(tmp_path / "a.pth", tmp_path / "a.safetensors", "--overwrite") == 0
        assert words in capsys.readouterr().out
        assert (read_card(tmp_path / "a.safetensors") or ModelCard("")).model_args.items() >= (
            arguments.items()
        )


def test_names_and_shapes_of_the_published_code(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads((golden / "classification/wavevit_s_224x224_seed0_tl.json").read_text())
    import fill

    state = fill.fill_state(0, facts["state_dict"])
    torch.save({"state_dict": {k: torch.tensor(v) for k, v in state.items()}}, tmp_path / "s.pth")
    assert run(tmp_path / "s.pth", tmp_path / "s.safetensors") == 0
    assert "recognised: wavevit_s (1000 classes, with token labels" in capsys.readouterr().out


class Trap:
    """A pickle of it creates a file when it is loaded by Python's own means."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "old format"])
def test_a_booby_trapped_pickle_is_refused_and_does_not_run(
    legacy: bool, nano: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sprung = tmp_path / "sprung"
    content = {"state_dict": classifier_state(nano), "extra": Trap(sprung)}
    torch.save(content, tmp_path / "trap.pth", _use_new_zipfile_serialization=not legacy)
    line = refused(capsys, tmp_path / "trap.pth", tmp_path / "out.safetensors")
    assert "would run code" in line
    assert not sprung.exists()
    assert not (tmp_path / "out.safetensors").exists()
    torch.load(tmp_path / "trap.pth", weights_only=False)
    assert sprung.exists()  # the trap was a real one


def test_a_bare_booby_trapped_pickle_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pickle

    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2))
    refused(capsys, tmp_path / "trap.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("keep", [0, 1, 10, 1000, 0.5, 0.999])
def test_a_truncated_file_is_refused(
    keep: float, nano: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": classifier_state(nano)}, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    count = keep if isinstance(keep, int) else int(len(content) * keep)
    (tmp_path / "part.pth").write_bytes(content[:count])
    line = refused(capsys, tmp_path / "part.pth", tmp_path / "out.safetensors")
    assert "part.pth" in line
    assert not (tmp_path / "out.safetensors").exists()


def test_a_truncated_safetensors_file_is_refused(
    nano: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = ModelCard("wavevit_nano", {"num_classes": 5})
    save_model(tmp_path / "whole.safetensors", nano, card)
    content = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "part.safetensors").write_bytes(content[:-9])
    line = refused(capsys, tmp_path / "part.safetensors", tmp_path / "out.safetensors")
    assert "damaged" in line


def test_an_existing_target_is_kept_unless_told_otherwise(
    nano: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(classifier_state(nano), tmp_path / "a.pth")
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"precious")
    assert "exists" in refused(capsys, tmp_path / "a.pth", target)
    assert target.read_bytes() == b"precious"
    assert run(tmp_path / "a.pth", target, "--overwrite") == 0
    assert read_card(target) is not None


def test_missing_and_foreign_entries_are_named_and_nothing_is_written(
    nano: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = classifier_state(nano)
    del state["block1.0.norm1.weight"]
    state["visitor.weight"] = torch.zeros(2)
    state["norm2.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "a.pth")
    line = refused(capsys, tmp_path / "a.pth", tmp_path / "out.safetensors")
    assert "looks like wavevit_nano but does not fit" in line
    assert "missing: stages.0.blocks.0.norm1.weight" in line
    assert "unexpected: visitor.weight" in line
    assert "mismatched: stages.1.norm.bias: (3,) in the file, (64,) here" in line
    assert not (tmp_path / "out.safetensors").exists()


def test_another_wavelet_is_refused(
    nano: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = classifier_state(nano)
    state["block1.0.attn.dwt.w_ll"] = torch.full((1, 1, 2, 2), 0.25)
    torch.save(state, tmp_path / "a.pth")
    line = refused(capsys, tmp_path / "a.pth", tmp_path / "out.safetensors")
    assert "trained with another wavelet" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: create_model("test_resnet").state_dict(), "expected the weights of a Wave-ViT"),
        (lambda: {"epoch": 3}, "holds no weights"),
        (lambda: [1, 2, 3], "holds no weights"),
        (lambda: torch.zeros(3), "holds no weights"),
    ],
    ids=["another network", "no weights", "a list", "a tensor"],
)
def test_not_a_wave_vit(
    content, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content(), tmp_path / "a.pth")
    assert words in refused(capsys, tmp_path / "a.pth", tmp_path / "out.safetensors")


def test_paths_that_cannot_be(
    nano: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(classifier_state(nano), tmp_path / "a.pth")
    source = tmp_path / "a.pth"
    assert "missing" in refused(capsys, tmp_path / "no.pth", tmp_path / "o.safetensors")
    assert "directory" in refused(capsys, tmp_path, tmp_path / "o.safetensors")
    assert "must end in .safetensors" in refused(capsys, source, tmp_path / "o.pth")
    assert "does not exist" in refused(capsys, source, tmp_path / "no" / "o.safetensors")
    assert refused(capsys, source)
    assert "unknown option" in refused(capsys, source, tmp_path / "o.safetensors", "--force")
