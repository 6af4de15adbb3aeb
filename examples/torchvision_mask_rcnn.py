"""torchvision's Mask R-CNN on a Wave-ViT: its detector, our backbone, ten lines between them.

(`wavevit.create_detector("mask_rcnn", ...)` is a Mask R-CNN of our own; this one is for those who
have torchvision's already.) Trains on the built-in generated pictures of shapes.

    pip install wavevit
    python examples/torchvision_mask_rcnn.py
"""

import argparse

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

import wavevit  # noqa: F401, registers the models with timm
from wavevit.data.detection.shapes import DetectionShapes


class TimmBackboneWithFPN(nn.Module):
    """What torchvision's detectors ask of a backbone: named maps, and `out_channels`."""

    def __init__(self, name: str = "wavevit_s", out_channels: int = 256) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True)  # strides 4, 8, 16, 32
        self.fpn = FeaturePyramidNetwork(
            self.body.feature_info.channels(), out_channels, extra_blocks=LastLevelMaxPool()
        )
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) to maps "0", "1", "2", "3" and "pool" at strides 4 to 64."""
        return self.fpn({str(level): features for level, features in enumerate(self.body(images))})


def build(name: str, num_classes: int, image_size: int) -> MaskRCNN:
    """The detector; torchvision counts the background as a class, number 0."""
    scale = image_size / 512  # torchvision's anchors are for images of some 800 pixels
    sizes = tuple((max(round(side * scale), 4),) for side in (32, 64, 128, 256, 512))
    return MaskRCNN(
        TimmBackboneWithFPN(name),
        num_classes=num_classes + 1,
        min_size=image_size,
        max_size=2 * image_size,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        # Small pictures have few objects; torchvision's 2000 and 512 are for COCO's.
        rpn_post_nms_top_n_train=200,
        rpn_post_nms_top_n_test=200,
        box_batch_size_per_image=32,
    )


def load(data: DetectionShapes, index: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A picture (3, H, W) in [0, 1] and its objects, as torchvision takes them."""
    sample = data.load(index)
    targets = {
        "boxes": sample.boxes,
        "labels": sample.labels + 1,
        "masks": sample.masks.pixels(),
    }
    return sample.image / 255, targets


def train(model: nn.Module, data: DetectionShapes, *, steps: int, batch_size: int) -> list[float]:
    """The sums of the losses of so many steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.05)
    model.train()
    totals = []
    for step in range(steps):
        indices = [(step * batch_size + i) % len(data) for i in range(batch_size)]
        images, targets = zip(*(load(data, index) for index in indices), strict=True)
        losses = model(list(images), list(targets))
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(total.item())
        parts = "  ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
        print(f"step {step:3d}  total {totals[-1]:.3f}  {parts}")
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="wavevit_s", help="any pyramid network of timm")
    parser.add_argument("--image-size", type=int, default=128, help="pixels")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()

    torch.manual_seed(0)
    data = DetectionShapes("train", num_images=40, image_size=options.image_size, with_masks=True)
    model = build(options.backbone, len(data.class_names), options.image_size)
    train(model, data, steps=options.steps, batch_size=2)

    image, target = load(data, 0)
    with torch.inference_mode():
        (found,) = model.eval()([image])
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    print(f"{len(target['labels'])} objects in a picture; found so early in training: {shapes}")


if __name__ == "__main__":
    main()
