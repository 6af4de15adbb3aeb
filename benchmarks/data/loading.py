"""Images per second of one loader worker: ours and timm's, in turns, with the same augmentation.

    python benchmarks/data/loading.py --data IMAGENETTE_DIR --enlarge \
        --csv benchmarks/results/data_loading.csv

Every round reads the same images once with each loader, through the augmentation of the recipe;
that both augment alike is checked first. The clock runs from the first batch to the last, so the
start of the worker does not count. `cpu_ms_per_image` is the processor time of the worker process
alone, which other programs on the machine disturb less than images per second. Besides timm's
loader and ours ("wavevit"), ours is measured with label maps of 18 x 18 cells and 1000 classes
("wavevit+maps") and from tar shards ("wavevit+shards").
"""

import argparse
import functools
import gc
import multiprocessing
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import yaml
from PIL import Image
from timm.data import ImageDataset, create_loader
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from wavevit.data.classification import ClassificationDataset, open_classification
from wavevit.data.geometry import policy_operations
from wavevit.data.image_files import ImageFileDataset
from wavevit.data.label_maps.index import read_index, write_index
from wavevit.data.label_maps.packed import write_shard
from wavevit.data.label_maps.reader import PackedLabelMaps, map_key
from wavevit.data.loader import LabelMapCrops, train_loader
from wavevit.data.samplers import TrainSampler
from wavevit.data.shards.writer import write_shards
from wavevit.data.transforms import TracedTransform, Transform, train_transform
from wavevit.profiling.timing import Summary, append_rows, environment, paired_ratio

RECIPE = "configs/classification/imagenet_wavevit_s_300e.yaml"
IMAGE_SIZE = (224, 224)
NORMAL = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
LOADERS = ("timm", "wavevit", "wavevit+maps", "wavevit+shards")

Loader = Callable[[], Iterable[Any]]
"""Makes a fresh loader of one pass over the images."""


def copy_images(source: Path, count: int, root: Path, enlarge: bool) -> None:
    """Links some training images of all classes into root/train, or writes them anew, larger."""
    data = open_classification(source, val_fraction=0).train
    if not isinstance(data, ImageFileDataset):
        raise SystemExit("timm's loader reads files: name a folder of JPEGs, by class")
    rng = np.random.default_rng(0)
    for index in np.linspace(0, len(data) - 1, min(count, len(data))).astype(int).tolist():
        folder = root / "train" / data.class_names[data.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        path = data.path(index)
        if not enlarge:
            (folder / path.name).symlink_to(path.resolve())
            continue
        # The size of a common ImageNet picture, and grain for its 110 kB: enlarged pictures are
        # smooth, and so compress and decode far better than photographs.
        pixels = np.asarray(data.load(index).resize((500, 375), Image.Resampling.LANCZOS))
        grainy = (pixels + rng.normal(0, 8, (375, 500, 1))).clip(0, 255).astype(np.uint8)
        Image.fromarray(grainy).save(folder / f"{path.stem}.jpg", quality=95)


def timm_loader(root: Path, augment: dict[str, Any], batch_size: int) -> Any:
    """timm's loader of a folder of class folders."""
    loader = create_loader(
        ImageDataset(str(root / "train")),
        (3, *IMAGE_SIZE),
        batch_size,
        is_training=True,
        scale=augment["crop_scale"],
        ratio=augment["crop_ratio"],
        hflip=augment["hflip"],
        vflip=augment["vflip"],
        auto_augment=augment["rand_augment"],
        color_jitter=augment["color_jitter"],
        re_prob=augment["random_erasing"],
        re_mode="pixel",
        interpolation=augment["interpolation"],
        num_workers=1,
        use_prefetcher=False,
        persistent_workers=False,
        **NORMAL,
    )
    # Pillow 13 refuses timm's posterize to 0 bits, which the policy draws; ours is mended.
    ours = train_transform(IMAGE_SIZE, **augment, **NORMAL)
    pairs = zip(operations(loader.dataset.transform), operations(ours), strict=True)
    for their_operation, our_operation in pairs:
        their_operation.aug_fn = our_operation.aug_fn
    return loader


def operations(transform: Any) -> list[Any]:
    """The operations of a transform's RandAugment policy."""
    return [operation for step in transform.transforms for operation in policy_operations(step)]


def our_loader(
    data: ClassificationDataset,
    transform: Transform | TracedTransform,
    batch_size: int,
    label_maps: LabelMapCrops | None = None,
) -> Iterable[Any]:
    """Our loader, of one pass; like timm's it leaves out a last batch that is not full."""
    sampler = TrainSampler(len(data), batch_size, seed=0, start=0, stop=len(data) // batch_size)
    return train_loader(data, transform, sampler, num_workers=1, label_maps=label_maps)


def random_label_maps(folder: Path, data: ClassificationDataset) -> LabelMapCrops:
    """Packed maps of random scores, five of some fifty classes per cell, in the official size."""
    rng = np.random.default_rng(0)
    shape = (5, 18, 18)
    scores = rng.normal(size=(len(data), *shape)).astype(np.float16)
    own = rng.integers(0, 1000, (len(data), 50))
    picked = rng.integers(0, 50, (len(data), 5 * 18 * 18))
    classes = np.take_along_axis(own, picked, 1).reshape(len(data), *shape)
    keys = [map_key(data.sample_id(index)) for index in range(len(data))]
    folder.mkdir()
    write_shard(folder, 0, keys=keys, scores=scores, classes=classes)
    write_index(folder, num_classes=1000, class_names=None, source="random", num_shards=1)
    maps = PackedLabelMaps(folder, read_index(folder), np.arange(len(data)))
    return LabelMapCrops(maps, (IMAGE_SIZE[0] // 32, IMAGE_SIZE[1] // 32))


def make_loaders(
    names: list[str], root: Path, augment: dict[str, Any], batch_size: int
) -> dict[str, Loader]:
    """The loaders by name, over what they need on disk."""
    splits = open_classification(root, val_fraction=0)
    data, transform = splits.train, train_transform(IMAGE_SIZE, **augment, **NORMAL)
    check_same_augmentation(timm_loader(root, augment, batch_size), transform, data)
    made: dict[str, Loader] = {}
    for name in names:
        if name == "timm":
            made[name] = functools.partial(timm_loader, root, augment, batch_size)
        elif name == "wavevit":
            made[name] = functools.partial(our_loader, data, transform, batch_size)
        elif name == "wavevit+maps":
            maps = random_label_maps(root / "maps", data)
            traced = TracedTransform(transform)
            made[name] = functools.partial(our_loader, data, traced, batch_size, maps)
        else:
            write_shards(
                {"train": data},
                splits.class_names,
                root / "shards",
                samples_per_shard=1000,
                bytes_per_shard=1 << 30,
                shuffle_seed=0,
            )
            sharded = open_classification(root / "shards", val_fraction=0).train
            made[name] = functools.partial(our_loader, sharded, transform, batch_size)
    return made


def check_same_augmentation(theirs: Any, ours: Transform, data: ClassificationDataset) -> None:
    """Stops unless both make the same tensors from the same random numbers."""
    for index in range(min(32, len(data))):
        results = []
        for transform in (theirs.dataset.transform, ours):
            random.seed(index)
            np.random.seed(index)
            torch.manual_seed(index)
            results.append(transform(data.load(index)))
        if not torch.equal(*results):
            raise SystemExit(f"image {index} comes out differently: this would compare two recipes")


def one_pass(make: Loader, batch_size: int) -> tuple[float, float]:
    """Images per second from the first batch to the last, and CPU milliseconds of the worker."""
    batches = iter(make())
    next(batches)
    (worker,) = multiprocessing.active_children()
    cpu, start = cpu_seconds(worker.pid), time.perf_counter()
    num_batches = 0
    # What is taken at the end belongs to the last batch: the worker has nothing else left to do.
    for _ in batches:
        num_batches += 1
        used, seconds = cpu_seconds(worker.pid) - cpu, time.perf_counter() - start
    del batches
    gc.collect()
    if num_batches == 0:
        raise SystemExit("one pass must have two full batches or more: take more --images")
    return num_batches * batch_size / seconds, 1e3 * used / (num_batches * batch_size)


def cpu_seconds(process: int | None) -> float:
    """User and system time of a process and its threads, from Linux."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spread(values: list[float], name: str) -> dict[str, float]:
    """Median and 20th and 80th percentile, as columns."""
    summary = Summary.of(values)
    return {
        name: round(summary.median, 2),
        f"{name}_p20": round(summary.p20, 2),
        f"{name}_p80": round(summary.p80, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of JPEGs, by class")
    parser.add_argument("--enlarge", action="store_true", help="to 500 x 375 pixels and ~110 kB")
    parser.add_argument("--images", type=int, default=1024, help="of the data, in one pass")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10, help="passes of each loader")
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, default=["timm", "wavevit"])
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parents[2] / RECIPE)
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    options = parser.parse_args()
    if "timm" not in options.loaders:
        parser.error("the loaders are compared with timm's: name it as well")
    recipe = yaml.safe_load(options.recipe.read_text())["augment"]
    names = ("crop_scale", "crop_ratio", "hflip", "rand_augment", "color_jitter")
    augment = {name: recipe[name] for name in (*names, "random_erasing", "interpolation")}
    augment["vflip"] = recipe.get("vflip", 0.0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        copy_images(options.data, options.images, root, options.enlarge)
        rows = measure(root, augment, options)
    if options.csv:
        append_rows(options.csv, rows)


def measure(
    root: Path, augment: dict[str, Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per loader."""
    loaders = make_loaders(options.loaders, root, augment, options.batch_size)
    sizes = [path.stat().st_size for path in root.glob("train/*/*")]
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    cpu_ms: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(options.rounds):
        for name, make in loaders.items():
            speed, milliseconds = one_pass(make, options.batch_size)
            speeds[name].append(speed)
            cpu_ms[name].append(milliseconds)
            print(
                f"round {number} {name:15} {speed:7.1f} images/s {milliseconds:6.2f} ms", flush=True
            )
    known = environment("cpu")
    rows = []
    for name in loaders:
        rows.append(
            {
                "date": known["date"],
                "device": f"{platform.machine()} CPU, {os.cpu_count()} cores, 1 worker process",
                "load_average": round(os.getloadavg()[0], 1),
                "python": platform.python_version(),
                "torch": known["torch"],
                "timm": known["timm"],
                "pillow": PIL.__version__,
                "images": len(sizes),
                "mean_kb": round(statistics.mean(sizes) / 1e3, 1),
                "batch": options.batch_size,
                "rounds": options.rounds,
                "loader": name,
                **spread(speeds[name], "images_per_s"),
                "ratio": round(paired_ratio(speeds[name], speeds["timm"]), 3),
                **spread(cpu_ms[name], "cpu_ms_per_image"),
                "cpu_ratio": round(paired_ratio(cpu_ms[name], cpu_ms["timm"]), 3),
                "command": f"python benchmarks/data/loading.py --data {options.data.name}"
                f"{' --enlarge' if options.enlarge else ''} --images {options.images} "
                f"--batch-size {options.batch_size} --rounds {options.rounds} "
                f"--loaders {' '.join(options.loaders)}",
            }
        )
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
