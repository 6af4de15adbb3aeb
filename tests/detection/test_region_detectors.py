"""Mask, Faster, Cascade Mask and Sparse R-CNN: any backbone, any objects, any precision."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from wavevit.detection import create_detector
from wavevit.detection.cascade_mask_rcnn import STAGES
from wavevit.detection.detector import Detector
from wavevit.detection.sparse_rcnn import SparseRCNN

K = 3
_REGIONS = {
    "fpn_channels": 16,
    "fc_channels": 24,
    "num_anchor_samples": 64,
    "num_region_samples": 32,
    "num_proposals_train": 40,
    "num_proposals_test": 30,
}
_MASKS = {"num_mask_convs": 1, "mask_channels": 8}
_CASCADE = {"stages": STAGES[:2], "num_box_convs": 1, "box_channels": 8}
NARROW: dict[str, tuple[str, dict[str, Any]]] = {
    "Mask R-CNN": ("mask_rcnn", _REGIONS | _MASKS),
    "Faster R-CNN": ("mask_rcnn", _REGIONS | {"masks": False}),
    "Cascade Mask R-CNN": ("cascade_mask_rcnn", _REGIONS | _MASKS | _CASCADE),
    "Cascade R-CNN": ("cascade_mask_rcnn", _REGIONS | _CASCADE | {"masks": False}),
    "Sparse R-CNN": (
        "sparse_rcnn",
        {
            "fpn_channels": 16,
            "num_proposals": 12,
            "num_stages": 2,
            "num_heads": 2,
            "inner_channels": 4,
            "ffn_channels": 32,
            "detections_per_image": 12,
        },
    ),
}
WITH_MASKS = ("Mask R-CNN", "Cascade Mask R-CNN")


def build(name: str, backbone: str | nn.Module = "wavevit_test", **options: object) -> Detector:
    torch.manual_seed(0)
    detector, narrow = NARROW[name]
    return create_detector(detector, backbone, num_classes=K, **narrow | options)


def spread(detector: Detector) -> Detector:
    """Weights that give scores of all sizes, as those of a trained network."""
    torch.manual_seed(1)
    for name, module in detector.named_modules():
        if name.endswith(("fc_cls", "objectness")):
            nn.init.normal_(module.weight, std=2 / module.weight[0].numel() ** 0.5)
            nn.init.zeros_(module.bias)
    return detector


def images_of(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


@pytest.fixture
def images() -> list[Tensor]:
    return images_of((70, 90), (96, 64))


def target(image: Tensor, *boxes: list[float]) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), *image.shape[1:], dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : max(int(y2), int(y1) + 1), int(x1) : max(int(x2), int(x1) + 1)] = 1
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4).float(),
        "labels": torch.arange(len(boxes)) % K,
        "masks": masks,
    }


# Also a box of one pixel, and one from border to border.
BOXES = ([4.0, 4, 40, 50], [7, 3, 8, 4], [0, 0, 90, 70], [30, 20, 80, 60])


@pytest.fixture(params=NARROW)
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
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", ["Mask R-CNN", "Sparse R-CNN"])
def test_any_backbone_trains_and_detects(name: str, backbone: str, images: list[Tensor]) -> None:
    detector = build(name, BACKBONES[backbone]())
    losses = detector.train()(images, [target(images[0], *BOXES), target(images[1])])
    sum(losses.values()).backward()
    for parameter_name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
    assert len(detector.eval()(images)) == 2


def test_losses_are_named_scalars_and_every_part_learns(
    detector: Detector, images: list[Tensor]
) -> None:
    losses = detector.train()(images, [target(images[0], *BOXES), target(images[1], BOXES[0])])
    assert all(loss.ndim == 0 and loss > 0 for loss in losses.values())
    assert any("mask" in name for name in losses) == detector.with_masks
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            # Levels for boxes larger than these images have nothing to learn.
            assert parameter.grad.any() or "neck.outputs" in name, name


@pytest.mark.parametrize("num_empty", [1, 2])
def test_images_without_objects_are_background(
    detector: Detector, images: list[Tensor], num_empty: int
) -> None:
    """Every parameter has a gradient, so that several processes can wait for each other's."""
    targets = [target(images[0], *BOXES), target(images[1])] if num_empty == 1 else None
    targets = targets or [target(image) for image in images]
    losses = detector.train()(images, targets)
    assert all(loss.isfinite() for loss in losses.values())
    if num_empty == 2:
        assert all(loss > 0 for name, loss in losses.items() if "cls" in name)
        assert all(loss == 0 for name, loss in losses.items() if "cls" not in name)
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    "box", [[89.0, 69, 90, 70], [0, 0, 1, 1], [0, 30, 90, 31], [5, 5, 5.001, 5.001]]
)
def test_boxes_on_the_border_and_tiny_ones_have_finite_losses(
    detector: Detector, images: list[Tensor], box: list[float]
) -> None:
    losses = detector.train()(images, [target(images[0], box), target(images[1])])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)


def test_more_objects_than_samples_and_proposals(detector: Detector, images: list[Tensor]) -> None:
    corner = torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) * 40
    boxes = torch.cat([corner, corner + 15], dim=1).tolist()
    losses = detector.train()(images, [target(image, *boxes) for image in images])
    assert all(loss.isfinite() for loss in losses.values())


def test_detections_lie_in_their_images_best_first(
    detector: Detector, images: list[Tensor]
) -> None:
    for found, image in zip(spread(detector).eval()(images), images, strict=True):
        N = len(found["boxes"])
        assert 0 < N <= 100
        assert found["labels"].dtype == torch.int64
        assert ((found["labels"] >= 0) & (found["labels"] < K)).all()
        assert (found["scores"].diff() <= 0).all()
        assert (found["boxes"][:, 2:] > found["boxes"][:, :2]).all()
        assert not found["boxes"].requires_grad
        assert ("masks" in found) == detector.with_masks
        if detector.with_masks:
            assert found["masks"].shape == (N, *image.shape[1:])
            assert found["masks"].dtype == torch.float32
            assert ((found["masks"] >= 0) & (found["masks"] <= 1)).all()
        if not isinstance(detector, SparseRCNN):  # whose boxes are not clipped, as published
            height, width = image.shape[1:]
            limit = torch.tensor([width, height, width, height])
            assert ((found["boxes"] >= 0) & (found["boxes"] <= limit)).all()


@pytest.mark.parametrize("name", [n for n in NARROW if n != "Sparse R-CNN"])
def test_no_detections_are_no_error(name: str, images: list[Tensor]) -> None:
    for found, image in zip(build(name, score_threshold=1.0).eval()(images), images, strict=True):
        assert found["boxes"].shape == (0, 4)
        assert found["scores"].shape == found["labels"].shape == (0,)
        if name in WITH_MASKS:
            assert found["masks"].shape == (0, *image.shape[1:])


@pytest.mark.parametrize("name", [n for n in NARROW if n != "Sparse R-CNN"])
def test_no_proposals_are_no_error(name: str, images: list[Tensor]) -> None:
    detector = build(name)
    nn.init.constant_(detector.network.rpn_head.deltas.bias, torch.nan)
    assert all(len(found["boxes"]) == 0 for found in detector.eval()(images))
    losses = detector.train()(images, [target(image) for image in images])
    heads = [loss for loss_name, loss in losses.items() if "rpn" not in loss_name]
    assert all(loss.isfinite() for loss in heads)


def test_a_network_that_diverged_says_so_by_its_loss(
    detector: Detector, images: list[Tensor]
) -> None:
    nn.init.constant_(next(detector.network.neck.parameters()), torch.nan)
    losses = detector.train()(images, [target(image, BOXES[0]) for image in images])
    assert not sum(losses.values()).isfinite()


def test_an_image_is_found_the_same_alone_and_in_a_batch() -> None:
    """In evaluation mode, when the batch's canvas is its own."""
    images = images_of((64, 96), (64, 96))
    for name in NARROW:
        detector = spread(build(name)).eval()
        torch.testing.assert_close(
            detector(images)[1], detector(images[1:])[0], rtol=1e-3, atol=1e-3
        )


def test_bf16_autocast_computes_losses_and_boxes_in_fp32(
    detector: Detector, images: list[Tensor]
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.train()(images, [target(images[0], *BOXES), target(images[1])])
        sum(losses.values()).backward()
        found = spread(detector).eval()(images)[0]
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_pure_bf16_works(detector: Detector, images: list[Tensor]) -> None:
    detector = detector.bfloat16()
    half = [image.bfloat16() for image in images]
    targets = [target(images[0], *BOXES), target(images[1])]
    sum(detector.train()(half, targets).values()).backward()
    assert len(spread(detector).eval()(half)) == 2


@pytest.mark.parametrize("name", [*WITH_MASKS, "Sparse R-CNN"])
def test_three_objects_can_be_learned(name: str) -> None:
    images = images_of((64, 64))
    targets = [target(images[0], [8, 10, 30, 40], [34, 5, 60, 30], [30, 36, 50, 62])]
    detector = build(name).train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    totals = []
    for _ in range(15):
        loss = sum(detector(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.8 * totals[0]


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a list of at least 1 stage, got \(\)"):
        build("Cascade R-CNN", stages=())
    with pytest.raises(ValueError, match="num_proposals must be a whole number from 1 on, got 0"):
        build("Sparse R-CNN", num_proposals=0, num_stages=6)
