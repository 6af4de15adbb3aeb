"""segmentation_models_pytorch takes a Wave-ViT as encoder."""

from collections.abc import Callable
from types import ModuleType

import pytest
import timm
import torch

smp = pytest.importorskip("segmentation_models_pytorch", reason='pip install "wavevit[examples]"')

pytestmark = pytest.mark.slow

# Encoders that start at stride 4 get a map of no channels at stride 2, which torch remarks on.
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")


def test_the_encoder_is_wavevit_s_and_gives_what_timm_gives(
    load_example: Callable[[str], ModuleType],
) -> None:
    model = load_example("smp_unet").build("Unet", "tu-wavevit_s", num_classes=10).eval()
    alone = timm.create_model("wavevit_s", features_only=True).eval()
    alone.load_state_dict(model.encoder.model.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        image, empty, *maps = model.encoder(x)
        assert torch.equal(image, x)
        assert empty.shape == (1, 0, 32, 48)
        torch.testing.assert_close(maps, alone(x))
        assert model(x).shape == (1, 10, 64, 96)
    assert model.encoder.out_channels == [3, 0, *alone.feature_info.channels()]


@pytest.mark.parametrize("decoder", ["Unet", "FPN", "UPerNet", "Segformer"])
def test_every_part_of_the_network_learns(
    load_example: Callable[[str], ModuleType], decoder: str
) -> None:
    example = load_example("smp_unet")
    data = example.Shapes("train", 8, 64)
    model = example.build(decoder, "tu-wavevit_test", len(data.class_names))
    losses = example.train(model, data, steps=6)
    assert sum(losses[-2:]) < sum(losses[:2])
    unused = [n for n, p in model.named_parameters() if p.numel() and p.grad is None]
    assert unused == []
    assert 0 < example.evaluate(model, data, len(data.class_names)) <= 1
