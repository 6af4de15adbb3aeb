"""Segmenters by name and from model files, and what is wrong said in one line."""

import inspect
from pathlib import Path

import pytest
import timm
import torch

import wavevit
from wavevit.models.card import ModelCard, save_model
from wavevit.segmentation import SEGMENTERS, Segmenter, create_segmenter
from wavevit.segmentation.ade20k import CLASS_NAMES, PALETTE
from wavevit.segmentation.card import SegmenterCard, load_segmenter, read_segmenter_card
from wavevit.segmentation.factory import segmenter_class

NARROW = {"channels": 8, "auxiliary_channels": 8}


@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_name_is_a_segmenter_with_documented_options(name: str) -> None:
    cls = segmenter_class(name)
    assert issubclass(cls, Segmenter)
    signature = inspect.signature(cls).parameters
    assert list(signature)[:2] == ["backbone", "num_classes"]
    for option in signature:
        assert f"        {option}: " in (cls.__doc__ or ""), f"{cls.__name__}: {option}"


def test_options_reach_the_backbone_and_the_segmenter() -> None:
    segmenter = wavevit.create_segmenter(
        "upernet", "test_resnet", num_classes=4, batch_norm="frozen", frozen_stages=1, **NARROW
    )
    assert segmenter.num_classes == 4
    assert segmenter.network.head.classifier.weight.shape == (4, 8, 1, 1)
    assert not next(segmenter.network.backbone.parameters()).requires_grad
    assert all(p.requires_grad for p in segmenter.network.head.parameters())


def test_a_built_network_serves_as_backbone() -> None:
    body = timm.create_model("test_resnet", features_only=True)
    segmenter = create_segmenter("upernet", body, num_classes=4, **NARROW)
    assert segmenter.network.backbone.body is body


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a segmenter of upernet, got 'deeplab'"):
        create_segmenter("deeplab", "test_resnet", num_classes=3)
    with pytest.raises(ValueError, match="no option 'chanels'; did you mean channels"):
        create_segmenter("upernet", "test_resnet", num_classes=3, chanels=8)
    with pytest.raises(ValueError, match="need a backbone for images of any size"):
        create_segmenter("upernet", "test_vit", num_classes=3)


def test_a_model_file_gives_the_segmenter_back(tmp_path: Path) -> None:
    card = SegmenterCard(
        segmenter="upernet",
        backbone="test_resnet",
        options={**NARROW, "auxiliary": False},
        class_names=["road", "sky"],
        palette=[[1, 2, 3], [4, 5, 6]],
        mean=(0.5, 0.5, 0.5),
        short_edge=64,
        long_edge=96,
        size_rule="keep_ratio",
        reduce_zero_label=True,
        metrics={"miou": 0.5},
    )
    segmenter = card.build()
    assert not segmenter.training
    save_model(tmp_path / "best.safetensors", segmenter.state_dict(), card)
    for path in (tmp_path, tmp_path / "best.safetensors"):
        again, found = load_segmenter(path)
        assert found == card
        for name, value in again.state_dict().items():
            assert torch.equal(value, segmenter.state_dict()[name]), name


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_model(path, {"x": torch.zeros(1)}, ModelCard("test_resnet"))
    with pytest.raises(ValueError, match="model for classification, where one for segmentation"):
        read_segmenter_card(path)
    card = SegmenterCard("upernet", "test_resnet", NARROW, class_names=["a", "b"])
    save_model(path, {"x": torch.zeros(1)}, card)
    with pytest.raises(ValueError, match="do not fit its card"):
        load_segmenter(path)
    with pytest.raises(FileNotFoundError):
        load_segmenter(tmp_path / "none.safetensors")


def test_ade20k_has_150_classes_with_names_and_colours() -> None:
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == len(PALETTE) == 150
    assert (CLASS_NAMES[0], CLASS_NAMES[44], CLASS_NAMES[-1]) == (
        "wall",
        "chest of drawers",
        "flag",
    )
    assert (PALETTE[0], PALETTE[-1]) == ((120, 120, 120), (92, 0, 255))
