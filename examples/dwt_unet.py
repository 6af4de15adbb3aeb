"""A U-Net whose pooling and up-sampling are a wavelet transform and its inverse.

Max pooling forgets three of four values; here nothing is forgotten. The low band of `DWT2d` goes
down, the three detail bands are the skip connection, and `IDWT2d` puts them together again, exactly
and at any size, odd ones too. The network learns to tell fine textures apart, which is what pooling
blurs first. Everything is generated; no data is needed.

    pip install wavevit
    python examples/dwt_unet.py
"""

import argparse
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavevit.layers import DWT2d, IDWT2d

TEXTURES = ("columns", "rows", "checker")


class WaveletPool(nn.Module):
    """In place of ``nn.MaxPool2d(2)``: half the size, and the details apart."""

    def __init__(self) -> None:
        super().__init__()
        self.dwt = DWT2d()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to the low band (B, C, h, w) and the details (B, 3C, h, w)."""
        channels = x.shape[1]
        low, details = self.dwt(x).split((channels, 3 * channels), dim=1)
        return low, details


class WaveletUnpool(nn.Module):
    """In place of ``nn.Upsample`` or a transposed convolution: the inverse of `WaveletPool`."""

    def __init__(self) -> None:
        super().__init__()
        self.idwt = IDWT2d()

    def forward(self, low: Tensor, details: Tensor, size: tuple[int, int]) -> Tensor:
        """The (B, C, H, W) that the bands came from; `size` is H and W, which may be odd."""
        return self.idwt(torch.cat((low, details), dim=1), size=size)


def conv_block(in_channels: int, out_channels: int) -> nn.Module:
    """Two convolutions, as in any U-Net."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class WaveletUNet(nn.Module):
    """A U-Net with one level per width; the last one is the bottom."""

    def __init__(
        self, in_channels: int, num_classes: int, widths: tuple[int, ...] = (16, 32, 64)
    ) -> None:
        super().__init__()
        self.pool, self.unpool = WaveletPool(), WaveletUnpool()
        self.encoders = nn.ModuleList(
            conv_block(before, after)
            for before, after in zip((in_channels, *widths), widths, strict=False)
        )
        # From the deeper level's width to the low band of the one above it.
        self.lows = nn.ModuleList(nn.Conv2d(deep, width, 1) for width, deep in pairwise(widths))
        self.decoders = nn.ModuleList(conv_block(width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) of any size to logits (B, num_classes, H, W)."""
        *encoders, bottom = self.encoders
        skips = []
        for encode in encoders:
            x = encode(x)
            size = x.shape[-2:]
            x, details = self.pool(x)
            skips.append((details, size))
        x = bottom(x)
        for level in reversed(range(len(skips))):
            x = self.decoders[level](self.unpool(self.lows[level](x), *skips[level]))
        return self.head(x)


def texture_batch(
    batch: int, size: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Grey pictures (B, 1, H, W) of textured regions, and which texture is where (B, H, W).

    All textures have one mean, one contrast and a period of two pixels: only detail tells them
    apart, never brightness.
    """
    H, W = size
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    patterns = torch.stack((columns % 2, rows % 2, (rows + columns) % 2)).float() - 0.5
    centres = torch.rand(batch, 6, 2, generator=generator) * torch.tensor([H, W])
    places = torch.stack((rows, columns), dim=-1).flatten(0, 1).float()
    nearest = torch.cdist(places.expand(batch, -1, -1), centres).argmin(2)
    of_region = torch.randint(len(TEXTURES), (batch, 6), generator=generator)
    labels = of_region.gather(1, nearest).unflatten(1, (H, W))
    images = patterns.expand(batch, -1, -1, -1).gather(1, labels[:, None])
    return images + 0.3 * torch.randn(images.shape, generator=generator), labels


def train(model: nn.Module, *, steps: int, size: tuple[int, int], seed: int = 0) -> list[float]:
    """The losses of so many steps on fresh pictures."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    losses = []
    for step in range(steps):
        images, labels = texture_batch(8, size, generator)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step:3d}  loss {losses[-1]:.3f}")
    return losses


@torch.inference_mode()
def pixel_accuracy(model: nn.Module, size: tuple[int, int], seed: int = 1) -> float:
    """The share of pixels of new pictures with the right texture, in [0, 1]."""
    images, labels = texture_batch(16, size, torch.Generator().manual_seed(seed))
    return (model.eval()(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--size", type=int, nargs=2, default=(65, 97), help="H and W, pixels")
    options = parser.parse_args()

    torch.manual_seed(0)
    size = tuple(options.size)
    model = WaveletUNet(in_channels=1, num_classes=len(TEXTURES))
    train(model, steps=options.steps, size=size)
    print(f"pixel accuracy at the size of training, {size}: {pixel_accuracy(model, size):.1%}")
    print(f"at another odd size, (51, 83): {pixel_accuracy(model, (51, 83)):.1%}")


if __name__ == "__main__":
    main()
