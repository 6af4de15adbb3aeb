"""Energies of sub-bands: known answers, and Parseval's equation."""

import pytest
import timm
import torch
import torch.nn.functional as F

import wavevit
from wavevit import explain
from wavevit.explain.watching import outputs_of


def test_known_images() -> None:
    """Order LL, LH, HL, HH."""
    rows = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).repeat(4, 4)  # changes from row to row
    images = torch.stack([torch.ones(8, 8), rows, rows.T, rows * rows.T, rows + 1])[:, None]
    energy = explain.image_subband_energy(images)
    expected = torch.cat([torch.eye(4), torch.tensor([[0.5, 0.5, 0, 0]])]).double()
    torch.testing.assert_close(energy.shares, expected)
    torch.testing.assert_close(energy.dropped, torch.tensor([0.0, 1, 1, 1, 0.5]).double())
    torch.testing.assert_close(energy.total, images.square().sum(dim=(1, 2, 3)).double())


def test_pooling_keeps_what_is_not_dropped() -> None:
    """LL is average pooling times 2: its share is the pooled image's energy, fourfold."""
    images = torch.rand(2, 3, 12, 20)
    energy = explain.image_subband_energy(images)
    pooled = F.avg_pool2d(images, 2)
    kept = 4 * pooled.square().sum(dim=(1, 2, 3)) / images.square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(1 - energy.dropped, kept.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_energies_of_the_blocks_add_up_to_that_of_what_is_transformed(fused: bool) -> None:
    torch.manual_seed(0)
    model = timm.create_model("wavevit_nano", num_classes=3).train()
    model = wavevit.fuse(model) if fused else model
    modes = [module.training for module in model.modules()]
    images = torch.randn(2, 3, 70, 101)
    energies = explain.subband_energy(model, images)
    names = [f"stages.{i}.blocks.{j}" for i in (0, 1) for j in (0, 1)]
    assert [energy.name for energy in energies] == names
    blocks = [model.get_submodule(name).attn for name in names]  # the names are the modules' own
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_pre_hooks for module in model.modules())
    with outputs_of(*(block.reduce_norm for block in blocks)) as kept, torch.no_grad():
        model.eval()(images)
    for energy, block, (reduced,) in zip(energies, blocks, kept, strict=True):
        transformed = F.relu(block._pad(reduced)).double()
        torch.testing.assert_close(energy.total, transformed.square().sum(dim=(1, 2, 3)))
        torch.testing.assert_close(energy.shares.sum(dim=1), torch.ones(2).double())
        kept_by_pooling = 4 * F.avg_pool2d(transformed, 2).square().sum(dim=(1, 2, 3))
        torch.testing.assert_close(1 - energy.dropped, kept_by_pooling / energy.total)


def test_an_image_without_energy_has_no_shares() -> None:
    energy = explain.image_subband_energy(torch.zeros(1, 3, 4, 4))
    assert energy.shares.isnan().all()
    assert energy.total.item() == 0


def test_detectors_and_networks_without_wavelets() -> None:
    model = wavevit.create_detector("retinanet", backbone="wavevit_test", num_classes=2)
    assert len(explain.subband_energy(model, torch.rand(1, 3, 64, 64))) == 2
    with pytest.raises(ValueError, match="has no wavelet blocks"):
        explain.subband_energy(timm.create_model("test_resnet"), torch.rand(1, 3, 64, 64))
