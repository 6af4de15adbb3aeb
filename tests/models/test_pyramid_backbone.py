"""Any timm pyramid serves as a backbone, and freezing does what it says."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from wavevit.models.pyramid_backbone import PyramidBackbone


def norms(backbone: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_convnext", "test_efficientnet", "wavevit_test"]
)
def test_maps_have_the_channels_and_strides_of_feature_info(name: str) -> None:
    backbone = PyramidBackbone(name)
    info = timm.create_model(name, features_only=True).feature_info
    assert backbone.strides == (4, 8, 16, 32)
    assert set(backbone.channels) <= set(info.channels())
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, 64 // s, 96 // s)
        for channels, s in zip(backbone.channels, backbone.strides, strict=True)
    ]


def test_windows_and_channels_last_of_swin_are_handled() -> None:
    """Maps come as (B, C, H, W), for sizes that the network was not built for."""
    small = timm.create_model(
        "swin_tiny_patch4_window7_224",
        features_only=True,
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        strict_img_size=False,
    )
    maps = PyramidBackbone(small)(torch.rand(2, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3)]


def test_the_normalisation_is_the_one_of_the_weights() -> None:
    assert PyramidBackbone("wavevit_test").mean == (0.485, 0.456, 0.406)
    config = timm.get_pretrained_cfg("test_resnet")
    backbone = PyramidBackbone("test_resnet")
    assert (backbone.mean, backbone.std) == (config.mean, config.std)


def test_published_freezing_keeps_the_affine_and_moves_the_statistics() -> None:
    backbone = PyramidBackbone("wavevit_test", batch_norm="affine_frozen").train()
    before = [n.running_mean.clone() for n in norms(backbone)]
    sum(m.sum() for m in backbone(torch.rand(2, 3, 64, 64))).backward()
    for norm, mean in zip(norms(backbone), before, strict=True):
        assert norm.training
        assert norm.weight.grad is None
        assert not norm.weight.requires_grad
        assert not torch.equal(norm.running_mean, mean)
    frozen = {id(p) for n in norms(backbone) for p in n.parameters()}
    assert all(p.requires_grad for p in backbone.parameters() if id(p) not in frozen)


def test_frozen_norms_do_not_move_at_all() -> None:
    backbone = PyramidBackbone("test_resnet", batch_norm="frozen").train()
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert not any(n.training or n.weight.requires_grad for n in norms(backbone))
    assert backbone.body.training


def test_norms_stay_frozen_when_they_are_replaced() -> None:
    backbone = PyramidBackbone("test_resnet", batch_norm="frozen")
    backbone = nn.SyncBatchNorm.convert_sync_batchnorm(backbone).train()
    synced = [m for m in backbone.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert synced
    assert not any(m.training or m.weight.requires_grad for m in synced)


def test_a_detector_can_be_laid_out_without_memory() -> None:
    with torch.device("meta"):
        assert all(p.is_meta for p in PyramidBackbone("test_resnet").parameters())


def test_trained_norms_are_left_alone() -> None:
    backbone = PyramidBackbone("wavevit_test", batch_norm="trained").train()
    assert all(n.training and n.weight.requires_grad for n in norms(backbone))


def test_a_scale_that_is_to_be_learned_from_zero_is_not_frozen_there() -> None:
    fresh = timm.create_model("test_resnet", features_only=True)
    assert any(not n.weight.any() for n in norms(fresh))
    assert all(n.weight.any() for n in norms(PyramidBackbone("test_resnet")))


@pytest.mark.parametrize("name", ["test_resnet", "wavevit_test", "test_efficientnet"])
def test_frozen_stages_and_what_comes_before_are_not_trained(name: str) -> None:
    backbone = PyramidBackbone(name, batch_norm="trained", frozen_stages=2).train()
    maps = backbone(torch.rand(2, 3, 64, 64))
    assert [m.requires_grad for m in maps] == [False, False, True, True]
    sum(m.sum() for m in maps[2:]).backward()
    trained = [p.requires_grad for p in backbone.parameters()]
    # Registered in the order of use: first all the frozen ones, then all the others.
    assert trained == sorted(trained)
    for module in backbone.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            assert not module.training
    everything = PyramidBackbone(name, frozen_stages=4).train()
    assert not any(p.requires_grad for p in everything.parameters())


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = PyramidBackbone("wavevit_test", grad_checkpointing=checkpointing).train()
        sum(m.square().mean() for m in backbone(torch.ones(2, 3, 64, 64))).backward()
        gradients.append([p.grad for p in backbone.parameters() if p.requires_grad])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_drop_path_reaches_the_network() -> None:
    backbone = PyramidBackbone("wavevit_test", drop_path_rate=0.1)
    rates = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("test_vit", {}, "backbone for images of any size; test_vit takes one size only"),
        ("no_such_net", {}, "timm has no model named 'no_such_net'"),
        (nn.Conv2d(3, 4, 1), {}, "Conv2d does not say which maps .* features_only=True"),
        ("test_resnet", {"batch_norm": "off"}, "batch_norm must be one of .* got 'off'"),
        ("test_resnet", {"frozen_stages": 5}, "frozen_stages must be 0 to 4, got 5"),
        ("vgg11", {"drop_path_rate": 0.1}, "drop_path_rate"),
    ],
)
def test_what_does_not_fit_is_refused(backbone: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PyramidBackbone(backbone, **options)


def test_maps_at_other_strides_are_refused() -> None:
    two = timm.create_model("test_resnet", features_only=True, out_indices=(1, 2))
    with pytest.raises(ValueError, match=r"strides 4, 8, 16, 32; FeatureListNet has them at 4, 8"):
        PyramidBackbone(two)
    with pytest.raises(ValueError, match="pretrained and drop_path_rate need the backbone's name"):
        PyramidBackbone(two, pretrained=True)
