"""torchvision's Mask R-CNN takes a Wave-ViT as backbone."""

from collections.abc import Callable
from types import ModuleType

import pytest
import timm
import torch

from wavevit.data.detection.shapes import DetectionShapes

pytestmark = pytest.mark.slow


def test_the_maps_below_the_fpn_are_those_of_timm(
    load_example: Callable[[str], ModuleType],
) -> None:
    backbone = load_example("torchvision_mask_rcnn").TimmBackboneWithFPN("wavevit_s").eval()
    alone = timm.create_model("wavevit_s", features_only=True).eval()
    alone.load_state_dict(backbone.body.state_dict())
    seen = []
    backbone.fpn.register_forward_pre_hook(lambda module, args: seen.extend(args[0].values()))
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        maps = backbone(x)
        torch.testing.assert_close(seen, alone(x))
    sizes = [tuple(features.shape) for features in maps.values()]
    assert sizes == [(1, 256, 64 // s, 96 // s) for s in (4, 8, 16, 32)] + [(1, 256, 1, 2)]


def test_losses_fall_and_reach_the_first_layer(load_example: Callable[[str], ModuleType]) -> None:
    example = load_example("torchvision_mask_rcnn")
    data = DetectionShapes("train", num_images=2, image_size=64, with_masks=True)
    model = example.build("wavevit_test", len(data.class_names), 64)
    totals = example.train(model, data, steps=4, batch_size=2)
    assert totals[-1] < 0.8 * totals[0]
    first = model.backbone.body.stages_0.patch_embed.conv[0].weight
    assert first.grad.abs().max() > 0


def test_detections_come_back_in_pixels_of_images_of_any_size(
    load_example: Callable[[str], ModuleType],
) -> None:
    model = load_example("torchvision_mask_rcnn").build("wavevit_test", 9, 64).eval()
    model.roi_heads.score_thresh = 0.0
    images = [torch.rand(3, 50, 71), torch.rand(3, 90, 64)]
    with torch.inference_mode():
        results = model(images)
    for image, found in zip(images, results, strict=True):
        H, W = image.shape[1:]
        assert len(found["boxes"]) > 0
        assert found["masks"].shape[1:] == (1, H, W)
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([W, H, W, H])).all()
        assert found["labels"].min() >= 1
