"""RetinaNet, ATSS and GFL: any backbone, any objects, any precision."""

import copy
import io
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from wavevit.detection import create_detector
from wavevit.detection.detector import Detector

DENSE = ("retinanet", "atss", "gfl")
NO_OBJECTS = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
# Also a box of one pixel, and one from border to border.
OBJECTS = {
    "boxes": torch.tensor([[4.0, 4, 40, 50], [7, 3, 8, 4], [0, 0, 90, 70]]),
    "labels": torch.tensor([0, 1, 2]),
}


def build(name: str, backbone: str | nn.Module = "wavevit_test", **options: object) -> Detector:
    torch.manual_seed(0)
    narrow = {"fpn_channels": 64, "head_channels": 64, "num_tower_convs": 1}
    return create_detector(name, backbone, num_classes=3, **narrow | options)


@pytest.fixture
def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, 70, 90, generator=generator), torch.rand(3, 96, 64, generator=generator)]


@pytest.fixture(params=DENSE)
def detector(request: pytest.FixtureRequest) -> Detector:
    return build(request.param)


def small_swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        features_only=True,
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        strict_img_size=False,
    )


BACKBONES: dict[str, Callable[[], str | nn.Module]] = {
    "ResNet": lambda: "test_resnet",
    "ConvNeXt": lambda: "test_convnext",
    "Swin": small_swin,
    "Wave-ViT": lambda: "wavevit_test",
    "Wave-ViT nano": lambda: "wavevit_nano",
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", DENSE)
def test_every_trainable_parameter_gets_a_gradient(
    name: str, backbone: str, images: list[Tensor]
) -> None:
    detector = build(name, BACKBONES[backbone]()).train()
    losses = detector(images, [OBJECTS, NO_OBJECTS])
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for parameter_name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
            # A scale of a level without objects has nothing to learn.
            assert parameter.grad.any() or ".scales." in parameter_name, parameter_name


def test_images_without_objects_train_the_background(
    detector: Detector, images: list[Tensor]
) -> None:
    losses = detector.train()(images, [NO_OBJECTS, NO_OBJECTS])
    assert losses.pop("loss_cls") > 0
    assert all(loss == 0 for loss in losses.values())
    sum(detector(images, [NO_OBJECTS, NO_OBJECTS]).values()).backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "box", [[0.0, 0, 90, 70], [89, 69, 90, 70], [0, 0, 1, 1], [0, 30, 90, 31], [0, 0, 1e-3, 1e-3]]
)
def test_boxes_on_the_border_and_tiny_ones_have_finite_losses(
    detector: Detector, images: list[Tensor], box: list[float]
) -> None:
    target = {"boxes": torch.tensor([box]).float(), "labels": torch.tensor([1])}
    losses = detector.train()(images, [target, NO_OBJECTS])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)


def test_a_fresh_detector_finds_nothing(detector: Detector, images: list[Tensor]) -> None:
    """Classes start below the threshold; no detections are not an error."""
    for found in detector.eval()(images):
        assert found["boxes"].shape == (0, 4)
        assert found["labels"].shape == found["scores"].shape == (0,)
        assert found["labels"].dtype == torch.int64


def test_detections_lie_in_their_images_best_first(
    detector: Detector, images: list[Tensor]
) -> None:
    nn.init.normal_(detector.network.head.cls_logits.weight, std=1.0)
    nn.init.zeros_(detector.network.head.cls_logits.bias)
    for found, image in zip(detector.eval()(images), images, strict=True):
        assert 0 < len(found["boxes"]) <= 100
        x1, y1, x2, y2 = found["boxes"].T
        assert ((x1 >= 0) & (x1 < x2) & (x2 <= image.shape[2])).all()
        assert ((y1 >= 0) & (y1 < y2) & (y2 <= image.shape[1])).all()
        assert (found["scores"].diff() <= 0).all()
        assert not found["boxes"].requires_grad


def test_an_image_is_found_the_same_alone_and_in_a_batch(images: list[Tensor]) -> None:
    """In evaluation mode, when the batch's canvas is its own."""
    detector = build("retinanet").eval()
    nn.init.normal_(detector.network.head.cls_logits.weight, std=1.0)
    batch = [images[0], images[0].flip(2)]
    torch.testing.assert_close(detector(batch)[0], detector(batch[:1])[0], rtol=1e-3, atol=1e-3)


def test_bf16_autocast_computes_losses_and_boxes_in_fp32(
    detector: Detector, images: list[Tensor]
) -> None:
    exact = detector.train()(images, [OBJECTS, NO_OBJECTS])
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(images, [OBJECTS, NO_OBJECTS])
        sum(losses.values()).backward()
        found = detector.eval()(images)[0]
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    # bf16 has 8 bits.
    torch.testing.assert_close(losses, exact, rtol=0.05, atol=0.01)
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_pure_bf16_works(detector: Detector, images: list[Tensor]) -> None:
    detector = detector.bfloat16()
    half = [image.bfloat16() for image in images]
    sum(detector.train()(half, [OBJECTS, NO_OBJECTS]).values()).backward()
    assert len(detector.eval()(half)) == 2


def test_copies_and_pickles_are_detectors_of_their_own(
    detector: Detector, images: list[Tensor]
) -> None:
    stream = io.BytesIO()
    torch.save(detector, stream)
    stream.seek(0)
    for other in (copy.deepcopy(detector), torch.load(stream, weights_only=False)):
        assert other.postprocess.decode.__self__ is other
        other.network.head.cls_logits.bias.data.zero_()
        assert len(other.eval()(images)[0]["boxes"]) > 0
        assert len(detector.eval()(images)[0]["boxes"]) == 0


def test_wrong_input_is_refused(images: list[Tensor]) -> None:
    detector = build("retinanet").train()
    with pytest.raises(ValueError, match="training needs targets"):
        detector(images)
    with pytest.raises(ValueError, match="target 0: box 2 has label 2; expected 0 to 1"):
        create_detector("retinanet", "wavevit_test", num_classes=2, fpn_channels=8).train()(
            images, [OBJECTS, NO_OBJECTS]
        )
    with pytest.raises(ValueError, match="expected a list of at least one image"):
        detector.eval()([])
