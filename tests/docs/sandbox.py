"""A folder in which what the docs name is really there: data sets, weights, runs, pictures.

So commands run as they are written: ``--data DIR`` finds a folder named ``DIR``. What a name holds
depends on the task that the block is about.
"""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from official_names import classifier_state, detector_state, segmenter_state
from PIL import Image
from timm.data import ImageNetInfo

from wavevit.detection import create_detector
from wavevit.detection.card import DetectorCard
from wavevit.models.card import ModelCard, create_model, save_model
from wavevit.segmentation import create_segmenter
from wavevit.segmentation.card import SegmenterCard

CLASSES = ["ant", "bee"]


class Sandbox:
    """Makes the things that commands name.

    Args:
        root: Folder to make them in: the current one of the commands.
        task: What the commands are about.
        annotated: COCO folder of generated pictures.
        masked: Folder of generated pictures with masks and a ``classes.txt``.
        seed_folder: Folder for what is slow to make and is shared by sandboxes.
    """

    def __init__(
        self, root: Path, task: str, annotated: Path, masked: Path, seed_folder: Path
    ) -> None:
        self.root = root
        self.task = task
        self._annotated = annotated
        self._masked = masked
        self._shared = seed_folder
        self._make: dict[str, Callable[[Path], None]] = {
            "DIR": self._data,
            "IMAGES": self._pictures,
            "images": self._pictures,
            "holiday": self._pictures,
            "more/*.jpg": lambda path: self._pictures(path.parent),
            "aerial.tif": lambda path: _picture(path, 0, (900, 1300)),
            "clip.mp4": _clip,
            "names.txt": lambda path: path.write_text("ant\nbee\n"),
            "IMAGENET": self._imagenet,
            "IMAGENET_DIR": self._imagenet,
            "label_top5_train_nfnet": self._official_maps,
            "MAPS_DIR": self._official_maps,
            "COCO_DIR": lambda path: _copy(self._annotated, path),
            "ADE_DIR": self._ade20k,
            "FILE": _official_classifier,
            "IMAGENET_WEIGHTS": _official_classifier,
            "official.pth.tar": _official_classifier,
            "mask_rcnn.pth": self._official_detector,
            "mask_rcnn_r50.pth": self._official_detector,
            "upernet.pth": self._official_segmenter,
            "runs/mine": self._run,
            "runs/quick-start": self._run,
            "runs/teacher": self._run,
        }

    def provide(self, word: str) -> None:
        """Makes what a word of a command names, if it is known and not there yet.

        Args:
            word: As it is written.
        """
        name = word.rstrip("/")
        path = self.root / name
        if name in self._make and not (path.exists() or list(path.parent.glob(path.name))):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make[name](path)

    def provide_tars(self) -> None:
        """Makes ``DIR`` a folder of tar files that another program has written."""
        folder = self.root / "DIR"
        folder.mkdir()
        for split in ("train", "val"):
            with tarfile.open(folder / f"{split}-0000.tar", "w") as tar:
                for number in range(4):
                    picture, label = self.root / f"{number}.jpg", self.root / f"{number}.cls"
                    _picture(picture, number)
                    label.write_text(str(number % 2))
                    for path in (picture, label):
                        tar.add(path, path.name)

    def _data(self, path: Path) -> None:
        if self.task == "detection":
            _copy(self._annotated, path)
        elif self.task == "segmentation":
            _copy(self._masked, path)
        else:
            for split, count in (("train", 4), ("val", 2)):
                for label, name in enumerate(CLASSES):
                    for number in range(count):
                        seed = 100 * len(split) + 10 * label + number
                        _picture(path / split / name / f"{number}.png", seed)

    def _pictures(self, path: Path) -> None:
        for number in range(2):
            _picture(path / f"{number}.jpg", 1000 + number)

    def _imagenet(self, path: Path) -> None:
        """All thousand classes, with a picture each to train on, and two pictures to validate."""
        source = self._shared / "imagenet"
        if not source.is_dir():
            names = ImageNetInfo().label_names()
            for number, name in enumerate(names):
                _picture(source / "train" / name / f"{name}_0.png", number, (32, 32))
            for number, name in enumerate(names[:2]):
                _picture(source / "val" / name / "0.png", 5000 + number, (32, 32))
        path.symlink_to(source)

    def _official_maps(self, path: Path) -> None:
        source = self._shared / "maps"
        if not source.is_dir():
            rng = np.random.default_rng(0)
            for name in ImageNetInfo().label_names():
                scores, classes = rng.standard_normal((5, 4, 4)), rng.integers(0, 1000, (5, 4, 4))
                (source / name).mkdir(parents=True)
                maps = torch.from_numpy(np.stack([scores, classes])).half()
                torch.save(maps, source / name / f"{name}_0.pt")
        path.symlink_to(source)

    def _ade20k(self, path: Path) -> None:
        """As theirs: numbers from 1, 0 for nothing, no list of classes."""
        for ours, theirs in (("train", "training"), ("val", "validation")):
            shutil.copytree(self._masked / "images" / ours, path / "images" / theirs)
            (path / "annotations" / theirs).mkdir(parents=True)
            for mask in (self._masked / "labels" / ours).iterdir():
                labels = np.asarray(Image.open(mask))
                Image.fromarray(labels + 1).save(path / "annotations" / theirs / mask.name)

    def _category_names(self) -> list[str]:
        content = json.loads((self._annotated / "annotations/instances_val.json").read_text())
        return [category["name"] for category in content["categories"]]

    def _mask_names(self) -> list[str]:
        return (self._masked / "classes.txt").read_text().split("\n")[:-1]

    def _official_detector(self, path: Path) -> None:
        names = self._category_names()
        sizes = {"fpn_channels": 32, "detections_per_image": 8}
        detector = create_detector("mask_rcnn", "wavevit_test", num_classes=len(names), **sizes)
        torch.save({"meta": {"CLASSES": names}, "state_dict": detector_state(detector)}, path)

    def _official_segmenter(self, path: Path) -> None:
        names = self._mask_names()
        sizes = {"channels": 8, "auxiliary_channels": 8}
        segmenter = create_segmenter("upernet", "resnet18", num_classes=len(names), **sizes)
        torch.save({"meta": {"CLASSES": names}, "state_dict": segmenter_state(segmenter)}, path)

    def _run(self, path: Path) -> None:
        """A run that has ended, as far as other commands look at it."""
        path.mkdir()
        card: Any
        if self.task == "detection":
            names = self._category_names()
            small = {"fpn_channels": 32, "head_channels": 32, "num_tower_convs": 1}
            card = DetectorCard(
                *("gfl", "wavevit_test", small, names),
                category_ids=list(range(1, len(names) + 1)),
                short_edge=64,
                long_edge=96,
            )
        elif self.task == "segmentation":
            small = {"channels": 16, "auxiliary": False}
            card = SegmenterCard("upernet", "wavevit_test", small, self._mask_names())
        else:
            arguments = {"num_classes": len(CLASSES)}
            card = ModelCard("wavevit_test", arguments, class_names=CLASSES, image_size=(32, 32))
        save_model(path / "best.safetensors", card.build().state_dict(), card)


def _picture(path: Path, seed: int, size: tuple[int, int] = (36, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


def _clip(path: Path) -> None:
    from wavevit.cli.video import VideoFile

    with VideoFile(path, 10.0, overwrite=False) as file:
        for number in range(3):
            frame = np.zeros((64, 96, 3), np.uint8)
            frame[20:44, 6 * number : 6 * number + 24] = 255
            file.write(frame)


def _official_classifier(path: Path) -> None:
    """With token labels and a thousand classes, as the authors' files."""
    model = create_model("wavevit_test", token_label=True)
    torch.save({"state_dict": classifier_state(model.state_dict()), "epoch": 309}, path)
