"""A training script of timm's parts trains a Wave-ViT."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from wavevit.models.weights import load_weights

# timm reads pictures from files that it leaves to the garbage collector to close.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def write_colours(folder: Path) -> Path:
    """Reddish and bluish pictures: a task that a few steps are enough for."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for name, channel in (("red", 0), ("blue", 2)):
            target = folder / split / name
            target.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(target / f"{index}.png")
    return folder


def test_it_learns_and_its_checkpoint_is_the_averaged_model(
    tmp_path: Path, load_example: Callable[[str], ModuleType]
) -> None:
    example = load_example("timm_training")
    folder = write_colours(tmp_path / "data")
    settings = example.Settings(
        model="wavevit_test", image_size=32, epochs=3, lr=5e-3, batch_size=8, layer_decay=0.9
    )
    losses = example.train(folder, tmp_path / "output", settings)
    assert len(losses) == 3
    assert losses[-1] < losses[0]

    best = tmp_path / "output/model_best.pth.tar"
    averaged = torch.load(best, weights_only=False)["state_dict_ema"]
    by_timm = timm.create_model("wavevit_test", num_classes=2, checkpoint_path=best)
    ours = timm.create_model("wavevit_test", num_classes=2)
    report = load_weights(ours, best)  # without running the pickle's code
    assert report.missing == []
    for model in (by_timm, ours):
        for name, value in model.state_dict().items():
            assert torch.equal(value, averaged[name]), name
    _, val_loader = example.make_loaders(folder, ours, settings)
    assert example.evaluate(ours, val_loader) > 80


def test_learning_rates_fall_from_the_head_to_the_stem(
    load_example: Callable[[str], ModuleType],
) -> None:
    example = load_example("timm_training")
    model = timm.create_model("wavevit_test", num_classes=9)
    optimizer = example.make_optimizer(model, example.Settings(layer_decay=0.5))
    scales = {
        id(parameter): group["lr_scale"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    stem = model.stages[0].patch_embed.conv[0].weight
    last = model.stages[3].patch_embed.proj.weight
    assert scales[id(stem)] < scales[id(last)] < scales[id(model.head.weight)] == 1.0
    assert len(scales) == len(list(model.parameters()))
