"""Tiny images with masks, built on the fly."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

H, W = 24, 30
NUM_CLASSES = 4

WritePairs = Callable[..., None]


def draw_pair(seed: int, num_classes: int = NUM_CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """An RGB picture of 24 x 30 and its labels, all classes and some ignored pixels among them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, (H // 6, W // 6)).repeat(6, 0).repeat(6, 1)
    labels[0, :num_classes] = np.arange(num_classes)
    labels[-1] = 255
    return rng.integers(0, 256, (H, W, 3), np.uint8), labels.astype(np.uint8)


@pytest.fixture(scope="session")
def write_pairs() -> WritePairs:
    """`write_pairs(root, *pairs)`: a picture and its mask at each (image, mask) pair of paths."""

    def write(root: Path, *pairs: tuple[str, str], seed: int = 0) -> None:
        for number, (image_path, mask_path) in enumerate(pairs):
            image, labels = draw_pair(seed + number)
            for path, pixels in ((image_path, image), (mask_path, labels)):
                target = root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(target)

    return write


@pytest.fixture
def folder(tmp_path: Path, write_pairs: WritePairs) -> Path:
    """Six images to train on and three for validation, of 4 classes named in classes.txt."""
    root = tmp_path / "set"
    for split, count, seed in (("train", 6, 0), ("val", 3, 100)):
        pairs = [(f"images/{split}/{i}.png", f"labels/{split}/{i}.png") for i in range(count)]
        write_pairs(root, *pairs, seed=seed)
    (root / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    return root
