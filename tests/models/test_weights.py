"""Official and our own weights load everywhere, and nothing is lost without a word."""

import argparse
import json
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import wavevit
from wavevit.models import official
from wavevit.models.card import ModelCard, read_card, save_model
from wavevit.models.weights import convert, load_model, read_checkpoint, recognise

_HAAR_PARTS = ("w_ll", "w_lh", "w_hl", "w_hh")


def official_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """A state dict of ours under the official names, wavelet buffers included."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        stage = re.match(r"stages\.(\d)\.(.*)", name)
        if stage:
            number, rest = int(stage[1]) + 1, stage[2]
            rest = re.sub(r"^blocks\.(\d+)", rf"block{number}.\1", rest)
            rest = re.sub(r"^patch_embed", f"patch_embed{number}", rest)
            rest = re.sub(r"^norm\.", f"norm{number}.", rest)
            name = rest
            for theirs, ours in official._PART_RENAMES:
                if ours in name and (number <= 2 or ".attn.kv" not in theirs):
                    name = name.replace(ours, theirs)
                    break
            if name.endswith(".attn.reduce.0.weight"):
                value = value[:, :, None, None]
            if name.endswith(".attn.reduce.0.bias"):
                attn = name.removesuffix("reduce.0.bias")
                filters = torch.tensor(list(official._HAAR.values())).half()
                for part, kernel in zip(_HAAR_PARTS, filters, strict=True):
                    state[f"{attn}dwt.{part}"] = kernel[None, None]
                state[f"{attn}idwt.filters"] = filters[:, None]
        elif name.startswith("class_attn."):
            rest = name.removeprefix("class_attn.")
            inner = "attn." if rest.startswith(("q.", "kv.", "proj.")) else ""
            name = f"post_network.0.{inner}{rest}"
        elif name.startswith("norm."):
            name = name.replace("norm.", "norm4.", 1)
        state[name] = value
    return state


@pytest.fixture
def source() -> Any:
    torch.manual_seed(1)
    return timm.create_model("wavevit_test", num_classes=5, token_label=True).eval()


WRAPPINGS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=1)},
    "model": lambda state: {"model": state},
    "model.state_dict": lambda state: {"model": {"state_dict": state}},
    "module-prefix": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "EMA": lambda state: {"state_dict": {}, "state_dict_ema": state, "arch": "wavevit_s"},
}


def assert_same(model: torch.nn.Module, source: torch.nn.Module) -> None:
    state = source.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_names_are_those_that_were_recorded(golden: Path) -> None:
    for kind in ("plain", "tl"):
        path = golden / "classification" / f"wavevit_s_224x224_seed0_{kind}.json"
        recorded = json.loads(path.read_text())["state_dict"]
        with torch.device("meta"):
            model = timm.create_model("wavevit_s", token_label=kind == "tl")
        shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
        ours = {
            name: (shape[:2] if name.endswith("attn.reduce.weight") else shape)
            for official_name, shape in recorded.items()
            if (name := official.our_name(official_name)) is not None
        }
        assert ours == shapes


@pytest.mark.parametrize(
    ("names", "wrapping"),
    [*(("official", wrapping) for wrapping in WRAPPINGS), ("ours", "plain"), ("ours", "compiled")],
)
def test_timm_and_load_weights_read_every_wrapping(
    names: str, wrapping: str, source: Any, tmp_path: Path
) -> None:
    state = official_state(source) if names == "official" else source.state_dict()
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(WRAPPINGS[wrapping](state), path)
    arguments = {"num_classes": 5, "token_label": True}
    assert_same(timm.create_model("wavevit_test", checkpoint_path=str(path), **arguments), source)
    model = timm.create_model("wavevit_test", **arguments)
    report = wavevit.load_weights(model, path)
    assert_same(model, source)
    assert (report.missing, report.unexpected, report.mismatched, report.dropped) == ([],) * 4
    assert report.loaded == len(source.state_dict())


def test_safetensors_with_either_names_load(source: Any, tmp_path: Path) -> None:
    for names, state in (("ours", source.state_dict()), ("official", official_state(source))):
        path = tmp_path / f"{names}.safetensors"
        save_file({k: v.clone().contiguous() for k, v in state.items()}, path)
        model = timm.create_model(
            "wavevit_test", num_classes=5, token_label=True, checkpoint_path=str(path)
        )
        assert_same(model, source)


@pytest.mark.parametrize("names", ["official", "ours"])
def test_head_is_dropped_with_a_message_when_class_counts_differ(
    names: str, source: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.pth"
    torch.save(official_state(source) if names == "official" else source.state_dict(), path)
    model = timm.create_model("wavevit_test", num_classes=7, checkpoint_path=str(path))
    assert "has 5 classes and the network 7: dropped" in caplog.text
    assert torch.equal(model.class_attn.q.weight, source.class_attn.q.weight)
    fresh = timm.create_model("wavevit_test", num_classes=7)
    before = fresh.head.weight.clone()
    with caplog.at_level(logging.WARNING):
        report = wavevit.load_weights(fresh, path)
    assert torch.equal(fresh.head.weight, before)
    assert set(report.dropped) == {
        f"{h}.{p}" for h in ("head", "aux_head") for p in ("weight", "bias")
    }


def test_head_is_kept_when_class_counts_agree_and_else_strictness_holds(
    source: Any, tmp_path: Path
) -> None:
    path = tmp_path / "c.pth"
    torch.save(official_state(source), path)
    plain = timm.create_model("wavevit_test", num_classes=5)
    with pytest.raises(ValueError, match=r"unexpected: aux_head.weight, aux_head.bias"):
        wavevit.load_weights(plain, path)
    report = wavevit.load_weights(plain, path, strict=False)
    assert report.unexpected == ["aux_head.weight", "aux_head.bias"]
    assert torch.equal(plain.head.weight, source.head.weight)


def test_a_refused_file_changes_nothing(source: Any, tmp_path: Path) -> None:
    state = source.state_dict()
    state["stages.0.patch_embed.proj.weight"] = torch.zeros(3, 3)
    del state["stages.1.blocks.0.norm1.weight"]
    path = tmp_path / "c.pth"
    torch.save(state, path)
    model = timm.create_model("wavevit_test", num_classes=5, token_label=True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit WaveVit.*missing: .*mismatched: ") as error:
        wavevit.load_weights(model, path)
    assert "stages.0.patch_embed.proj.weight: (3, 3) in the file, (8, 8, 3, 3) here" in str(
        error.value
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1,)])
def test_features_only_takes_whole_model_weights(
    out_indices: tuple[int, ...], source: Any, tmp_path: Path
) -> None:
    path = tmp_path / "c.pth"
    torch.save({"state_dict": official_state(source)}, path)
    by_timm = timm.create_model(
        "wavevit_test", features_only=True, out_indices=out_indices, checkpoint_path=str(path)
    )
    by_us = timm.create_model("wavevit_test", features_only=True, out_indices=out_indices)
    wavevit.load_weights(by_us, path)
    x = torch.randn(1, 3, 64, 64)
    expected = source.forward_intermediates(x, list(out_indices), intermediates_only=True)
    for model in (by_timm, by_us):
        torch.testing.assert_close(model.eval()(x), expected)


def test_backbone_only_file_loads_and_reports_the_head_as_missing(
    source: Any, tmp_path: Path
) -> None:
    state = {
        k: v
        for k, v in official_state(source).items()
        if not k.startswith(("head", "aux_head", "post_network"))
    }
    path = tmp_path / "backbone.pth"
    torch.save(state, path)
    model = timm.create_model("wavevit_test", num_classes=5)
    report = wavevit.load_weights(model, path)
    assert report.missing
    assert all(name.startswith(("head.", "class_attn.")) for name in report.missing)
    assert torch.equal(model.stages[0].patch_embed.proj.weight, state["patch_embed1.proj.weight"])


def test_backbone_without_head_takes_a_classifier_s_weights(source: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save(official_state(source), path)
    model = timm.create_model(
        "wavevit_test", num_classes=0, global_pool="", checkpoint_path=str(path)
    )
    assert torch.equal(model.norm.weight, source.norm.weight)


def test_average_pooling_starts_from_a_class_attention_checkpoint(
    source: Any, tmp_path: Path
) -> None:
    path = tmp_path / "c.pth"
    torch.save(official_state(source), path)
    model = timm.create_model(
        "wavevit_test", num_classes=9, global_pool="avg", checkpoint_path=str(path)
    )
    assert torch.equal(model.norm.weight, source.norm.weight)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_rgb_weights_serve_another_number_of_channels(
    in_chans: int, source: Any, tmp_path: Path
) -> None:
    path = tmp_path / "c.pth"
    torch.save(official_state(source), path)
    arguments = {"num_classes": 5, "token_label": True, "in_chans": in_chans}
    model = timm.create_model("wavevit_test", checkpoint_path=str(path), **arguments)
    weight = source.stages[0].patch_embed.conv[0].weight
    if in_chans == 1:
        torch.testing.assert_close(model.stages[0].patch_embed.conv[0].weight, weight.sum(1, True))
    features = timm.create_model("wavevit_test", features_only=True, in_chans=in_chans)
    assert wavevit.load_weights(features, path).mismatched == []


def test_a_partial_wave_vit_is_named_as_such(source: Any, tmp_path: Path) -> None:
    state = official_state(source)
    for name, value in (("patch_embed4.proj.weight", None), ("head.weight", torch.tensor(1.0))):
        broken: dict[str, Any] = {k: v for k, v in state.items() if k != name}
        if value is not None:
            broken[name] = value
        broken["patch_embed2.norm.weight"] = 7
        torch.save(broken, tmp_path / "c.pth")
        with pytest.raises(ValueError, match=r"damaged or partial|should be a matrix"):
            convert(tmp_path / "c.pth", tmp_path / "out.safetensors")


def test_weights_of_another_wavelet_are_refused(source: Any, tmp_path: Path) -> None:
    state = official_state(source)
    state["block1.0.attn.dwt.w_lh"] = state["block1.0.attn.dwt.w_lh"] * 0.7
    path = tmp_path / "c.pth"
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"block1.0.attn.dwt.w_lh should hold the Haar filters"):
        wavevit.load_weights(timm.create_model("wavevit_test", num_classes=5), path)


def test_any_other_timm_model_loads_too(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", num_classes=5)
    path = tmp_path / "r.safetensors"
    save_file(source.state_dict(), path)
    model = timm.create_model("test_resnet", num_classes=3)
    report = wavevit.load_weights(model, path)
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    assert torch.equal(model.bn1.weight, source.bn1.weight)


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_needs_code_is_refused_and_does_not_run(
    zipped: bool, source: Any, tmp_path: Path
) -> None:
    sprung = tmp_path / "sprung"
    path = tmp_path / "trap.pth.tar"
    content = {"state_dict": official_state(source), "extra": _Trap(sprung)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"refused .*trap\.pth\.tar: loading it would run code"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match="refused"):
        convert(path, tmp_path / "out.safetensors")
    assert not sprung.exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.pth", b"", "is not a PyTorch checkpoint, or is damaged"),
        ("text.pth", b"hello world", "is not a PyTorch checkpoint, or is damaged"),
        ("text.safetensors", b"hello world", "is not a safetensors file, or is damaged"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_checkpoint(tmp_path / name)


def test_truncated_and_missing_files_are_named(source: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save(source.state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="is not a PyTorch checkpoint, or is damaged"):
        read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint file, but .* is missing"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="is a directory"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"holds no weights: expected .* got the keys epoch, lr"):
        read_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {}) for name in timm.list_models("wavevit_*")),
        ("wavevit_test", {"token_label": True}),
        ("wavevit_test", {"global_pool": "avg"}),
    ],
)
def test_every_variant_is_recognised_by_its_shapes(name: str, arguments: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=12, **arguments)
    card = recognise(model.state_dict())
    assert card.model == name
    assert card.model_args == {"num_classes": 12, **arguments}


def test_convert_writes_a_file_that_rebuilds_the_network(source: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": official_state(source)}, tmp_path / "official.pth.tar")
    target = tmp_path / "ours.safetensors"
    card, report = convert(tmp_path / "official.pth.tar", target)
    assert (card.model, report.complete) == ("wavevit_test", True)
    model, _ = load_model(target)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(x), source(x), rtol=0, atol=0)
    with pytest.raises(FileExistsError, match="exists; choose another name or pass --overwrite"):
        convert(tmp_path / "official.pth.tar", target)
    convert(target, tmp_path / "again.safetensors")


def test_a_card_survives_and_foreign_files_have_none(tmp_path: Path) -> None:
    card = ModelCard(
        "wavevit_test", {"num_classes": 2}, class_names=["a", "ü"], image_size=(96, 64)
    )
    save_model(tmp_path / "m.safetensors", {"x": torch.zeros(2)}, card)
    assert read_card(tmp_path / "m.safetensors") == card
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    assert read_card(tmp_path / "foreign.safetensors") is None
    with pytest.raises(ValueError, match="does not say which network it is for"):
        load_model(tmp_path / "foreign.safetensors")


def test_unknown_model_and_arguments_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"timm has no model named 'wavevit_m'; near names: .*wavevit"
    ):
        ModelCard("wavevit_m").build()
    with pytest.raises(ValueError, match=r"wavevit_test does not take these arguments: .*colour"):
        ModelCard("wavevit_test", {"colour": 1}).build()
