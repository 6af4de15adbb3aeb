"""A tiny folder of images that a network can learn in seconds."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wavevit.data.label_maps.index import write_index
from wavevit.data.label_maps.packed import write_shard


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/`` with 2 x 15 and ``val/`` with 2 x 4 pictures of 40 x 36: reddish and bluish."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 15), ("val", 4)):
        for name, channel in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 100, (36, 40, 3), np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def random_maps(tmp_path: Path) -> Path:
    """Packed label maps of `image_folder`'s training images, of no meaning, 2 x 2 cells each."""
    folder = tmp_path / "maps"
    folder.mkdir()
    names = ["blue", "red"]
    keys = [f"{name}/{number}" for name in names for number in range(15)]
    shape = (len(keys), 2, 2, 2)
    scores = np.random.default_rng(0).normal(size=shape)
    classes = np.broadcast_to(np.arange(2).reshape(1, 2, 1, 1), shape)
    write_shard(folder, 0, keys=keys, scores=scores, classes=classes)
    write_index(folder, num_classes=2, class_names=names, source="test", num_shards=1)
    return folder
