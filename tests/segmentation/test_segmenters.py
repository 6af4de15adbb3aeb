"""UPerNet on any backbone: what goes in, what comes out, what is refused."""

import math
from typing import Any

import pytest
import timm
import torch
from torch import nn

import wavevit
from wavevit.layers.sync_batch_norm import SyncBatchNorm, convert_sync_batch_norm
from wavevit.segmentation import Segmenter, create_segmenter

K = 5
NARROW: dict[str, Any] = {"num_classes": K, "channels": 16, "auxiliary_channels": 8}


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        features_only=True,
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        strict_img_size=False,
    )


def build(backbone: str = "wavevit_test", **options: Any) -> Segmenter:
    torch.manual_seed(0)
    body = swin() if backbone == "swin" else backbone
    return create_segmenter("upernet", body, **NARROW | options)


def batch(size: tuple[int, int] = (64, 96)) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    labels = torch.randint(0, K, (2, *size))
    labels[:, :5] = 255
    return torch.randn(2, 3, *size), labels


@pytest.mark.parametrize("backbone", ["wavevit_test", "test_resnet", "test_convnext", "swin"])
def test_every_backbone_segments_and_learns(backbone: str) -> None:
    segmenter = build(backbone, batch_norm="trained")
    with torch.inference_mode():
        logits = segmenter.eval()(torch.randn(1, 3, 45, 70))
    assert (logits.shape, logits.dtype) == ((1, K, 45, 70), torch.float32)
    losses = segmenter.train()(*batch())
    assert losses.keys() == {"decode_ce", "aux_ce"}
    assert all(loss.shape == () for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in segmenter.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_fresh_classifiers_find_all_classes_alike() -> None:
    losses = build("test_resnet")(*batch())
    valid = 59 / 64
    assert losses["decode_ce"].item() == pytest.approx(valid * math.log(K), rel=0.02)
    assert losses["aux_ce"].item() == pytest.approx(0.4 * valid * math.log(K), rel=0.02)


def test_a_batch_is_learnt_by_heart() -> None:
    segmenter = build("test_resnet", dropout=0.0, batch_norm="trained")
    images, labels = batch()
    labels = labels[:, ::16, ::16].repeat_interleave(16, 1).repeat_interleave(16, 2)
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=5e-3)
    history = []
    for _ in range(30):
        loss = sum(segmenter(images, labels).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]


def test_options_choose_the_losses() -> None:
    images, labels = batch()
    losses = build(auxiliary=False, dice_weight=0.5)(images, labels)
    assert losses.keys() == {"decode_ce", "decode_dice"}
    assert 0 < losses["decode_dice"].item() < 0.5
    plain = build(dropout=0.0)(images, labels)
    heavier = build(dropout=0.0, auxiliary_weight=0.8, class_weights=[3.0] * K)(images, labels)
    ratios = [heavier[name].item() / plain[name].item() for name in ("decode_ce", "aux_ce")]
    assert ratios == pytest.approx([3, 6], rel=1e-4)
    mined = build(dropout=0.0, ohem_threshold=0.7, ohem_min_kept=10)(images, labels)
    assert mined["decode_ce"] > plain["decode_ce"]


def test_losses_and_logits_are_single_precision_under_autocast() -> None:
    segmenter = build("test_resnet")
    images, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = segmenter(images, labels)
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        sum(losses.values()).backward()
        logits = segmenter.eval()(images)
    assert logits.dtype == torch.float32
    gradients = [p.grad for p in segmenter.parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == torch.float32 for g in gradients)
    assert all(g.isfinite().all() for g in gradients)


def test_a_network_of_low_precision_gives_logits_of_single_precision() -> None:
    segmenter = build().eval().bfloat16()
    with torch.inference_mode():
        logits = segmenter(batch()[0].bfloat16())
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_memory_layout_changes_nothing() -> None:
    segmenter = build("test_resnet").eval()
    images, _ = batch()
    with torch.inference_mode():
        expected = segmenter(images)
        segmenter.to(memory_format=torch.channels_last)
        found = segmenter(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_fusing_leaves_no_norm_in_the_heads_and_changes_nothing() -> None:
    segmenter = build().eval()
    for module in segmenter.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    images, _ = batch()
    fused = wavevit.fuse(segmenter)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    with torch.inference_mode():
        torch.testing.assert_close(fused(images), segmenter(images), rtol=1e-4, atol=1e-5)


def test_norms_can_be_synchronised() -> None:
    segmenter = build("test_resnet")
    names = list(segmenter.state_dict())
    convert_sync_batch_norm(segmenter)
    assert isinstance(segmenter.network.head.fusion.norm, SyncBatchNorm)
    assert list(segmenter.state_dict()) == names


def test_colours_are_those_of_the_backbone() -> None:
    segmenter = build("test_resnet")
    config = timm.get_pretrained_cfg("test_resnet")
    assert (segmenter.mean, segmenter.std) == (config.mean, config.std)
    assert (segmenter.num_classes, segmenter.ignore_index) == (K, 255)


def test_input_that_does_not_fit_is_refused() -> None:
    segmenter = build("test_resnet")
    images, labels = batch()
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(2, 64, 96\)"):
        segmenter(images[:, 0], labels)
    with pytest.raises(ValueError, match=r"at least 32 x 32 pixels, got 31 x 96; resize or pad"):
        segmenter(images[:, :, :31], labels[:, :31])
    with pytest.raises(ValueError, match="training needs at least 2 images a process"):
        segmenter(images[:1], labels[:1])
    with pytest.raises(ValueError, match="labels must be 0 to 4, or 255"):
        segmenter(images, labels + 1)
    build("test_resnet", pool_sizes=(2, 4))(images[:1], labels[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be 1 to 255, the label to ignore, got 0"),
        ({"num_classes": 256}, "num_classes must be 1 to 255"),
        ({"channels": 0}, "channels must be a whole number from 1 on, got 0"),
        ({"auxiliary_weight": -1}, "auxiliary_weight must be a number from 0 on, got -1"),
        ({"dice_weight": math.nan}, "dice_weight must be a number from 0 on, got nan"),
        ({"dropout": 1.5}, r"dropout must be a number in \[0, 1\], got 1.5"),
        ({"pool_sizes": ()}, "pool_sizes must be a list of numbers above 0"),
        ({"pool_sizes": (0, 2)}, "pool_sizes must be a list of numbers above 0"),
        ({"class_weights": (1.0, 2.0)}, "class_weights must be a list of 5 numbers from 0 on"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("test_resnet", **options)
