"""A training script in timm's style, for those who have one already: only the model's name is new.

timm's data loader and augmentation, mixup, layer-wise learning rates, cosine schedule, averaged
weights and checkpoints, on a folder `train/CLASS/*.jpg`, `val/CLASS/*.jpg`; without one, on
generated pictures. (`wavevit train classification` does all this, and resumes; see the docs.)

    pip install wavevit
    python examples/timm_training.py
    python examples/timm_training.py --data FOLDER --model wavevit_s --image-size 224 --epochs 50
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.data import Mixup, create_dataset, create_loader, resolve_model_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, CheckpointSaver, ModelEmaV2, accuracy
from torch import nn

import wavevit  # noqa: F401, registers the models with timm
from wavevit.data.shapes import ShapesDataset


@dataclass
class Settings:
    """What the command line sets; pixels, images, epochs."""

    model: str = "wavevit_nano"
    image_size: int = 64
    batch_size: int = 16
    epochs: int = 3
    lr: float = 1e-3
    layer_decay: float = 0.8
    ema_decay: float = 0.9
    seed: int = 0


def generate(folder: Path, image_size: int, num_train: int = 90, num_val: int = 27) -> Path:
    """A folder of generated pictures of nine classes, in the layout of ImageNet."""
    for split, count in (("train", num_train), ("val", num_val)):
        shapes = ShapesDataset(split, num_images=count, image_size=image_size)
        for index in range(count):
            target = folder / split / shapes.class_names[shapes.labels[index]] / f"{index}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shapes.load(index).save(target)
    return folder


def make_loaders(folder: Path, model: nn.Module, settings: Settings) -> tuple:
    """Loaders of both splits, as timm's own script makes them, for the CPU or a GPU."""
    config = resolve_model_data_config(model)
    shared = {
        "input_size": (3, settings.image_size, settings.image_size),
        "batch_size": settings.batch_size,
        "mean": config["mean"],
        "std": config["std"],
        "interpolation": config["interpolation"],
        "num_workers": 0,
        "use_prefetcher": False,
        "pin_memory": torch.cuda.is_available(),
    }
    train = create_loader(
        create_dataset("", root=folder / "train", is_training=True),
        is_training=True,
        auto_augment="rand-m7-mstd0.5-inc1",
        re_prob=0.1,
        **shared,
    )
    val = create_loader(create_dataset("", root=folder / "val"), crop_pct=1.0, **shared)
    return train, val


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; the first layers learn slower than the head, by the model's own `group_matcher`."""
    return create_optimizer_v2(
        model, opt="adamw", lr=settings.lr, weight_decay=0.05, layer_decay=settings.layer_decay
    )


@torch.inference_mode()
def evaluate(model: nn.Module, loader: torch.utils.data.DataLoader) -> float:
    """Top-1 accuracy in per cent."""
    device = next(model.parameters()).device
    top1 = AverageMeter()
    model.eval()
    for images, labels in loader:
        (right,) = accuracy(model(images.to(device)), labels.to(device))
        top1.update(right.item(), len(images))
    return top1.avg


def train(folder: Path, output: Path, settings: Settings) -> list[float]:
    """The mean loss of every epoch; checkpoints go to `output`."""
    timm.utils.random_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_classes = sum(path.is_dir() for path in (folder / "train").iterdir())
    model = timm.create_model(settings.model, num_classes=num_classes, drop_path_rate=0.05)
    model.to(device)
    ema = ModelEmaV2(model, decay=settings.ema_decay)
    optimizer = make_optimizer(model, settings)
    loader, val_loader = make_loaders(folder, model, settings)
    scheduler, num_epochs = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=settings.epochs, min_lr=1e-5, warmup_epochs=0
    )
    mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=0.5, label_smoothing=0.1, num_classes=num_classes)
    criterion = SoftTargetCrossEntropy()
    output.mkdir(parents=True, exist_ok=True)
    saver = CheckpointSaver(
        model, optimizer, model_ema=ema, checkpoint_dir=str(output), max_history=2
    )
    means = []
    for epoch in range(num_epochs):
        model.train()
        losses = AverageMeter()
        for images, labels in loader:
            images, targets = mixup(images.to(device), labels.to(device))
            loss = criterion(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update(model)
            losses.update(loss.item(), len(images))
        scheduler.step(epoch + 1)
        top1 = evaluate(ema.module, val_loader)
        saver.save_checkpoint(epoch, metric=top1)
        means.append(losses.avg)
        print(f"epoch {epoch}  loss {losses.avg:.3f}  top-1 of averaged weights {top1:.1f} %")
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with train/ and val/; default: generated")
    parser.add_argument("--output", type=Path, help="for checkpoints; default: a temporary folder")
    for name, value in vars(Settings()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default: {value}"
        )
    options = vars(parser.parse_args())
    data, output = options.pop("data"), options.pop("output")
    settings = Settings(**options)
    with tempfile.TemporaryDirectory() as place:
        folder = data or generate(Path(place) / "shapes", settings.image_size)
        output = output or Path(place) / "output"
        train(folder, output, settings)
        best = output / "model_best.pth.tar"
        print(f"best checkpoint: {best} ({best.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
