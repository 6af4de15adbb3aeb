"""segmentation_models_pytorch with a Wave-ViT encoder: a U-Net or FPN in one line.

Every model of timm is an encoder there under the name "tu-...": importing wavevit puts ours among
them. Trains on the built-in generated pictures of shapes told apart by texture.

    pip install wavevit segmentation-models-pytorch
    python examples/smp_unet.py
    python examples/smp_unet.py --decoder FPN --encoder tu-wavevit_nano --steps 200
"""

import argparse

import segmentation_models_pytorch as smp
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import wavevit  # noqa: F401, registers the models with timm
from wavevit.data.segmentation.shapes import SegmentationShapes

MEAN = torch.tensor(IMAGENET_DEFAULT_MEAN)[:, None, None]
STD = torch.tensor(IMAGENET_DEFAULT_STD)[:, None, None]


class Shapes(Dataset):
    """Normalised pictures (3, H, W) and label maps (H, W); put your own data set here."""

    def __init__(self, split: str, num_images: int, image_size: int) -> None:
        self.shapes = SegmentationShapes(split, num_images=num_images, image_size=image_size)
        self.class_names = self.shapes.class_names

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.shapes.load(index)
        return (sample.image / 255 - MEAN) / STD, sample.labels.long()


def build(decoder: str, encoder: str, num_classes: int) -> nn.Module:
    """A segmenter of segmentation_models_pytorch: "Unet", "FPN", "UPerNet", "Segformer", ..."""
    return smp.create_model(
        decoder, encoder_name=encoder, encoder_weights=None, classes=num_classes
    )


def train(model: nn.Module, data: Dataset, *, steps: int, batch_size: int = 4) -> list[float]:
    """The losses of so many steps, cross-entropy plus Dice."""
    cross_entropy = smp.losses.SoftCrossEntropyLoss(smooth_factor=0.0)
    dice = smp.losses.DiceLoss(mode="multiclass")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    model.train()
    losses: list[float] = []
    while len(losses) < steps:
        for images, labels in DataLoader(data, batch_size, shuffle=True, drop_last=True):
            logits = model(images)
            loss = cross_entropy(logits, labels) + dice(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            print(f"step {len(losses):3d}  loss {losses[-1]:.3f}")
            if len(losses) == steps:
                break
    return losses


@torch.inference_mode()
def evaluate(model: nn.Module, data: Dataset, num_classes: int) -> float:
    """IoU over all pixels of the data, in [0, 1]."""
    model.eval()
    counts = [
        smp.metrics.get_stats(
            model(images).argmax(1), labels, mode="multiclass", num_classes=num_classes
        )
        for images, labels in DataLoader(data, 4)
    ]
    return smp.metrics.iou_score(*map(torch.cat, zip(*counts, strict=True)), "micro").item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoder", default="Unet", help="Unet, FPN, UPerNet, Segformer, ...")
    parser.add_argument("--encoder", default="tu-wavevit_s", help='"tu-" and a name of timm')
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()

    torch.manual_seed(0)
    data = Shapes("train", 64, options.image_size)
    model = build(options.decoder, options.encoder, len(data.class_names))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{options.decoder} on {options.encoder}: {parameters / 1e6:.1f} M parameters")
    train(model, data, steps=options.steps)
    iou = evaluate(model, Shapes("val", 16, options.image_size), len(data.class_names))
    print(f"IoU on 16 other pictures: {iou:.3f}")


if __name__ == "__main__":
    main()
