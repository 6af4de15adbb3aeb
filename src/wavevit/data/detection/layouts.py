"""Telling how annotated images lie on disk: COCO, YOLO or Pascal VOC, and their splits."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from wavevit.data.csv_file import VAL_NAMES
from wavevit.data.detection.coco_files import CocoSplit
from wavevit.data.detection.voc_files import ANNOTATIONS, CLASS_LIST, IMAGES, VocSplit
from wavevit.data.detection.yolo_files import YoloSplit
from wavevit.data.image_listing import text_lines
from wavevit.data.images import is_image_name, walk_files

DetectionFormat = Literal["coco", "yolo", "voc"]
DetectionSplit = CocoSplit | YoloSplit | VocSplit

EXPECTED = (
    "COCO (annotations/instances_<split>.json and images/<split>, or a .json file), "
    "YOLO (data.yaml, images/<split> and labels/<split>), "
    "or Pascal VOC (Annotations, JPEGImages and ImageSets/Main/<split>.txt)"
)

# instances_train2017.json, train.json, or what else stands in "annotations"; not captions of COCO.
_COCO_NAME = re.compile(r"(?:instances_)?([A-Za-z][\w-]*?)(20\d\d)?\.json")
_OTHER_COCO_NAMES = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
_ROBOFLOW_NAME = "_annotations.coco.json"
_YEAR = re.compile(r"(20\d\d)$")
_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_SPLITS_OF_YAML = ("train", "val", "test")
_ORDER = ("train", "val", "trainval", "test")


@dataclass(frozen=True)
class DetectionLayout:
    """A data set of annotated images."""

    format: DetectionFormat
    """What its files are like."""
    root: Path
    """Absolute path of its folder."""
    splits: dict[str, DetectionSplit]
    """Under "train", "val" (also where it is called otherwise), "test", and others as they are
    called."""
    description: str
    """One line for the log, which says what was taken for what."""

    def split(self, name: str) -> DetectionSplit:
        """A split by name.

        Args:
            name: Of the split.

        Raises:
            ValueError: If there is no such split.
        """
        if name not in self.splits:
            have = ", ".join(repr(other) for other in self.splits)
            raise ValueError(f"no split {name!r} in {str(self.root)!r}; has {have}")
        return self.splits[name]


def detection_formats(path: str | Path) -> list[DetectionFormat]:
    """The formats that a folder or file looks like, from the names in it; none for other data.

    Args:
        path: Of the folder or file.
    """
    root = Path(path)
    if root.is_file():
        suffix = root.suffix.lower()
        if suffix == ".json":
            return ["coco"]
        return ["yolo"] if suffix in (".yaml", ".yml") else []
    if not root.is_dir():
        return []
    found: list[DetectionFormat] = []
    if _coco_files(root):
        found.append("coco")
    if _yaml_file(root) is not None or _has_yolo_labels(root):
        found.append("yolo")
    if (root / ANNOTATIONS).is_dir() and any((root / ANNOTATIONS).glob("*.xml")):
        found.append("voc")
    return found


def find_detection_layout(
    path: str | Path, format: DetectionFormat | None = None
) -> DetectionLayout:
    """How the annotated images at a path are laid out.

    * COCO: `annotations/instances_<split>.json`, with or without a year, or other .json files in
      that folder, with the images in `images/<split>`, `<split>`, `images` or the folder itself; or
      `<split>/_annotations.coco.json` with the images beside; or one .json file.
    * YOLO: a `data.yaml` with `names`, `train` and `val`, or such a file by its own path; or
      `images/<split>` and `labels/<split>` with the names of the classes in `classes.txt`.
    * Pascal VOC: `Annotations`, `JPEGImages`, and `ImageSets/Main/<split>.txt`; without lists all
      images are one split, "all".

    Args:
        path: Folder, .json file or .yaml file.
        format: Which of them it is; None tells it by the names of the files.

    Returns:
        The layout.

    Raises:
        FileNotFoundError: If nothing is at `path`.
        ValueError: If it is none of them, or more than one, or lacks something.
    """
    root = Path(os.path.abspath(path))
    if not root.exists():
        raise FileNotFoundError(f"no such file or folder: {str(path)!r}; expected {EXPECTED}")
    formats = detection_formats(root)
    if format is None:
        if len(formats) != 1:
            found = " and ".join(formats) + " at once; say which one" if formats else "neither"
            raise ValueError(f"{str(path)!r} looks like {found}; expected {EXPECTED}")
        format = formats[0]
    if format == "coco":
        return _coco_layout(root)
    return _yolo_layout(root) if format == "yolo" else _voc_layout(root)


def _coco_layout(root: Path) -> DetectionLayout:
    files = [root] if root.is_file() else _coco_files(root)
    if not files:
        raise ValueError(f"no annotation files in {str(root)!r}; expected {EXPECTED}")
    folder = root
    if root.is_file():
        is_in_folder = root.parent.name == "annotations" or root.name == _ROBOFLOW_NAME
        folder = root.parent.parent if is_in_folder else root.parent
    splits: dict[str, DetectionSplit] = {}
    for file in files:
        if file.name == _ROBOFLOW_NAME:
            splits[file.parent.name] = CocoSplit(folder, file, file.parent)
            continue
        match = _COCO_NAME.fullmatch(file.name)
        name, year = (match[1], match[2] or "") if match else (file.stem, "")
        images = _coco_images(folder, name, year)
        if name in splits:
            name += year
        splits[name] = CocoSplit(folder, file, images)
    return _layout("coco", folder, splits, "COCO files")


def _coco_files(root: Path) -> list[Path]:
    roboflow = sorted(root.glob(f"*/{_ROBOFLOW_NAME}"))
    if roboflow:
        return roboflow
    files = sorted((root / "annotations").glob("*.json"))
    instances = [file for file in files if file.name.startswith("instances_")]
    return instances or [file for file in files if not file.name.startswith(_OTHER_COCO_NAMES)]


def _coco_images(root: Path, name: str, year: str) -> Path:
    for other in (f"{name}{year}", name):
        for folder in (root / "images" / other, root / other):
            if folder.is_dir():
                return folder
    # images/train2017 with train.json
    for parent in (root / "images", root):
        if parent.is_dir():
            for folder in sorted(parent.iterdir()):
                if folder.is_dir() and _YEAR.sub("", folder.name) == name:
                    return folder
    return root / "images" if (root / "images").is_dir() else root


def _yolo_layout(root: Path) -> DetectionLayout:
    yaml_path = root if root.is_file() else _yaml_file(root)
    folder = root.parent if root.is_file() else root
    if yaml_path is None:
        return _layout("yolo", folder, _yolo_folders(folder), "YOLO folders")
    content = _read_yaml(yaml_path)
    class_names = _class_names(yaml_path, content)
    if "kpt_shape" in content:
        raise ValueError(f"{yaml_path}: a data set of keypoints; expected boxes or outlines")
    splits: dict[str, DetectionSplit] = {}
    for name in _SPLITS_OF_YAML:
        entries = content.get(name)
        entries = [entries] if isinstance(entries, str) else entries
        if not entries:
            continue
        if not isinstance(entries, list) or not all(isinstance(e, str) for e in entries):
            raise ValueError(f"{yaml_path}: expected a path or a list of paths for {name!r}")
        found = [_yolo_source(yaml_path, content.get("path"), entry) for entry in entries]
        missing = [tried for tried, exists in found if not exists]
        if missing and name == "test":  # often named, but not part of what is handed out
            continue
        if missing:
            raise FileNotFoundError(f"{yaml_path} names {entries} for {name!r}; no {missing[0]}")
        splits[name] = YoloSplit(folder, tuple(source for source, _ in found), class_names)
    if not splits:
        raise ValueError(f"{yaml_path}: expected 'train' and 'val', paths of folders of images")
    return _layout("yolo", folder, splits, f"YOLO folders of {yaml_path.name}")


def _yolo_folders(root: Path) -> dict[str, DetectionSplit]:
    lists = [root / CLASS_LIST, root / "labels" / CLASS_LIST]
    names = next((path for path in lists if path.is_file()), None)
    if names is None:
        raise ValueError(
            f"YOLO labels in {str(root)!r} without the names of the classes; expected data.yaml "
            "with 'names', or classes.txt with a name per line"
        )
    class_names = tuple(text_lines(names))
    images = root / "images"
    folders = {p.name: p for p in sorted(images.iterdir()) if p.is_dir()} or {"all": images}
    return {name: YoloSplit(root, (folder,), class_names) for name, folder in folders.items()}


def _yaml_file(root: Path) -> Path | None:
    """The YAML file of a YOLO data set in a folder."""
    for name in _YAML_NAMES:
        if (root / name).is_file():
            return root / name
    files = sorted(p for p in root.iterdir() if p.suffix in (".yaml", ".yml") and p.is_file())
    if len(files) == 1 and re.search(r"^names\s*:", files[0].read_text("utf-8", "replace"), re.M):
        return files[0]
    return None


def _has_yolo_labels(root: Path) -> bool:
    labels = root / "labels"
    if not (root / "images").is_dir() or not labels.is_dir():
        return False
    return any(path.endswith(".txt") for path in walk_files(os.fspath(labels)))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected 'names', 'train' and 'val', got no mapping")
    return content


def _class_names(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(
            f"{path}: expected 'names', a list or a mapping from 0, 1, ..., got {str(names)[:80]}"
        )
    texts = tuple(str(name) for name in names)
    if len(set(texts)) < len(texts):
        raise ValueError(f"{path}: a name is there more than once in 'names'")
    if content.get("nc", len(texts)) != len(texts):
        raise ValueError(f"{path}: 'nc' is {content['nc']}, but there are {len(texts)} 'names'")
    return texts


def _yolo_source(yaml_path: Path, base: Any, entry: str) -> tuple[Path, bool]:
    """A folder or list of images, and whether it is there.

    Paths are relative to "path", which is relative to the file.
    """
    folder = yaml_path.parent
    bases = [folder / base, folder] if isinstance(base, str) else [folder]
    # Exports of Roboflow say "../train/images" for a folder beside the file.
    entries = [entry, entry[3:]] if entry.startswith("../") else [entry]
    candidates = [Path(os.path.abspath(b / e)) for b in bases for e in entries]
    for candidate in candidates:
        if candidate.is_dir() and candidate.name != "images":
            inside = candidate / "images"
            has_images = any(map(is_image_name, os.listdir(candidate)))
            return (inside if inside.is_dir() and not has_images else candidate), True
        if candidate.exists():
            return candidate, True
    return candidates[0], False


def _voc_layout(root: Path) -> DetectionLayout:
    if not (root / ANNOTATIONS).is_dir() or not (root / IMAGES).is_dir():
        raise ValueError(f"expected the folders {ANNOTATIONS} and {IMAGES} in {str(root)!r}")
    main = root / "ImageSets" / "Main"
    lists = {path.stem: path for path in sorted(main.glob("*.txt"))}
    # VOC also lists each split once per class: train.txt and aeroplane_train.txt.
    names = [n for n in lists if "_" not in n or n.rpartition("_")[2] not in lists]
    splits: dict[str, DetectionSplit] = {name: VocSplit(root, lists[name]) for name in names}
    return _layout("voc", root, splits or {"all": VocSplit(root, None)}, "VOC folders")


def _layout(
    format: DetectionFormat, root: Path, splits: dict[str, DetectionSplit], description: str
) -> DetectionLayout:
    if "val" not in splits:
        # A "test" stays "test" where something else is for validation.
        names = [name for name in VAL_NAMES if name in splits]
        if names and (names[0] != "test" or "train" in splits):
            splits = {("val" if n == names[0] else n): split for n, split in splits.items()}
    rank = {name: number for number, name in enumerate(_ORDER)}
    ordered = dict(sorted(splits.items(), key=lambda item: rank.get(item[0], len(rank))))
    return DetectionLayout(format, root, ordered, f"{description} in {root}: {', '.join(ordered)}")
