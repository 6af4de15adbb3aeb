"""What tests of several rooms share."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from wavevit.data.detection.shapes import DetectionShapes
from wavevit.data.segmentation.palette import generated_palette
from wavevit.data.segmentation.shapes import SegmentationShapes
from wavevit.detection.card import DetectorCard
from wavevit.models.card import ModelCard, save_model
from wavevit.segmentation.card import SegmenterCard

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Tests run side by side, and their tensors are tiny.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of outputs recorded from the official models; its fill.py can be imported."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip(f"needs the recorded outputs of the official models, not found in {folder}")
    sys.path.insert(0, str(folder))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real data sets, as zip files."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the small real data sets, not found in {folder}")
    return folder


@pytest.fixture(scope="session")
def write_images() -> Callable[..., None]:
    """`write_images(root, *paths)`: a different small picture, 40 x 36, at each path."""

    def write(root: Path, *paths: str, seed: int = 0) -> None:
        for number, path in enumerate(paths):
            rng = np.random.default_rng((seed, number))
            pixels = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target)

    return write


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of six and three pictures of 64 x 64 with shapes, boxes and masks."""
    root = tmp_path_factory.mktemp("shapes")
    (root / "annotations").mkdir()
    for split, count in (("train", 6), ("val", 3)):
        images = DetectionShapes(split, num_images=count, image_size=64, with_masks=True)
        content = images.to_coco()
        folder = root / "images" / split
        folder.mkdir(parents=True)
        for index, image in enumerate(content["images"]):
            image["file_name"] = f"{index}.png"
            Image.fromarray(images.scene(index).image).save(folder / f"{index}.png")
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def masks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six and three pictures of 64 x 64 with shapes, and masks of ten classes."""
    root = tmp_path_factory.mktemp("masks")
    for split, count in (("train", 6), ("val", 3)):
        images = SegmentationShapes(split, num_images=count, image_size=64)
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            sample = images.load(index)
            picture = Image.fromarray(sample.image.permute(1, 2, 0).contiguous().numpy())
            picture.save(root / f"images/{split}/{index}.png")
            Image.fromarray(sample.labels.numpy()).save(root / f"labels/{split}/{index}.png")
    (root / "classes.txt").write_text("\n".join(images.class_names) + "\n")
    return root


@pytest.fixture(scope="session")
def save_classifier() -> Callable[..., Path]:
    """`save_classifier(path, name, class_names, **card)`: a model file with random weights."""

    def save(path: Path, name: str, class_names: list[str], seed: int = 0, **card: Any) -> Path:
        torch.manual_seed(seed)
        values = {"image_size": (32, 32), **card}
        model_card = ModelCard(
            name, {"num_classes": len(class_names)}, class_names=class_names, **values
        )
        model: Any = model_card.build()
        nn.init.normal_(model.get_classifier().weight, std=1.0)  # so that images differ in it
        save_model(path, model.state_dict(), model_card)
        return path

    return save


@pytest.fixture(scope="session")
def save_detector() -> Callable[..., Path]:
    """`save_detector(path, name, class_names, **card)`: a small model file with random weights."""

    def save(
        path: Path,
        name: str = "mask_rcnn",
        class_names: Sequence[str] = ("ant", "bee", "cat"),
        seed: int = 0,
        options: dict[str, Any] | None = None,
        **card: Any,
    ) -> Path:
        torch.manual_seed(seed)
        narrow: dict[str, Any] = {"fpn_channels": 16, "score_threshold": 0.0}
        narrow["detections_per_image"] = 8
        if name == "mask_rcnn":
            narrow |= {"fc_channels": 16, "num_mask_convs": 1, "mask_channels": 16}
            narrow |= {"num_proposals_test": 50}
        else:
            narrow |= {"head_channels": 32, "fpn_channels": 32, "num_tower_convs": 1}
        values: dict[str, Any] = {
            "category_ids": [3 * number + 2 for number in range(len(class_names))],
            "short_edge": 64,
            "long_edge": 96,
            **card,
        }
        detector_card = DetectorCard(
            name, "wavevit_test", narrow | (options or {}), list(class_names), **values
        )
        save_model(path, detector_card.build().state_dict(), detector_card)
        return path

    return save


@pytest.fixture(scope="session")
def save_segmenter() -> Callable[..., Path]:
    """`save_segmenter(path, class_names, **card)`: a small model file with random weights."""

    def save(
        path: Path, class_names: Sequence[str] = ("sky", "road", "car"), seed: int = 0, **card: Any
    ) -> Path:
        torch.manual_seed(seed)
        values = {"short_edge": 64, "long_edge": 96, "size_rule": "keep_ratio", **card}
        segmenter_card = SegmenterCard(
            "upernet",
            "wavevit_test",
            {"channels": 16, "auxiliary": False},
            list(class_names),
            **{"palette": generated_palette(len(class_names)), **values},
        )
        segmenter = segmenter_card.build()
        classifier: Any = segmenter.network.head.classifier
        nn.init.normal_(classifier.weight, std=1.0)  # so that pixels differ in it
        save_model(path, segmenter.state_dict(), segmenter_card)
        return path

    return save
