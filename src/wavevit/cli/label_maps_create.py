"""``wavevit label-maps create``: a teacher's label maps of a data set (spec section 4.1)."""

import inspect
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wavevit.cli.console import write_lines
from wavevit.files import write_text

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from wavevit.cli.label_map_job import Job, Oracle
    from wavevit.data.transforms import Transform

SETTINGS = "create-settings.json"
PICTURE = "label-maps.png"

_EXAMPLES = 8


def create(
    data: str,
    output: Path,
    teacher: str | None = None,
    weights: Path | None = None,
    pretrained: bool = False,
    split: Literal["train", "val", "all"] = "train",
    image_size: int | None = None,
    top_k: int = 5,
    map_size: int | None = None,
    batch_size: int = 32,
    num_workers: int = 2,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    maps_per_shard: int = 4096,
    resume: bool = False,
    val_fraction: float = 0.1,
    split_seed: int = 0,
) -> int:
    """Writes what a teacher sees where in every image of a data set, for token labeling.

    The teacher looks at the whole image, resized to a square. An image that cannot be read gets no
    map, is listed in unreadable.txt, and makes the exit code 1. A stopped command goes on with
    --resume and ends with the same files as an uninterrupted one.

    Args:
        data: Folder (train/ with class folders, or class folders), CSV file, folder or URL of tar
            shards, or "shapes" for the built-in generated set.
        output: New folder for the maps.
        teacher: timm name of a classifier of the data's classes; a model file of wavevit knows its
            own.
        weights: The teacher's weights: model file or run directory of wavevit, or a checkpoint.
        pretrained: Take the teacher's weights that timm downloads instead.
        split: Part of the data to make maps for.
        image_size: Rows and columns the teacher works at, pixels; null for its own.
        top_k: Classes kept per cell, the best ones.
        map_size: Rows and columns of a map; null for the teacher's own.
        batch_size: Images per forward pass; must divide --maps-per-shard.
        num_workers: Processes that decode images; 0 decodes in the main process.
        device: Where the teacher runs; "auto" takes CUDA where there is some.
        precision: Number format inside the teacher.
        maps_per_shard: Maps per file.
        resume: Go on with the maps in the output folder; starts them if there are none.
        val_fraction: Share of each class held out where the data has no split, as in training.
        split_seed: Seed of that choice, as in training.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No such data or weights.
        FileExistsError: The output folder is not empty.
        ValueError: A teacher that cannot be used, data of other classes, or other settings than
            those of the maps to go on with.
    """
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    from wavevit.cli.inference import find_device
    from wavevit.cli.label_map_job import Job, Oracle
    from wavevit.data.classification import open_classification
    from wavevit.models.teacher import Teacher

    _check_numbers(image_size, top_k, map_size, batch_size, num_workers, maps_per_shard)
    _check_output(output, data, resume)
    place = find_device(device)
    wanted = None if image_size is None else (image_size, image_size)
    network = Teacher(
        teacher,
        weights,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        image_size=wanted,
        pretrained=pretrained,
    ).to(place)
    size = wanted or network.card.image_size
    splits = open_classification(
        data, val_fraction=val_fraction, split_seed=split_seed, image_size=size[0]
    )
    network.check_classes(splits.class_names)
    oracle = Oracle(network, size, map_size, top_k, precision, place)
    job = Job(output, splits.get(split), batch_size, maps_per_shard, write_lines)
    oracle.try_out()
    _keep_settings(job, {**oracle.settings(), **job.settings()})
    write_lines(f"{splits.description}; {len(job.dataset):,} images ({split})")
    write_lines(_describe(oracle))
    return _work(job, oracle, splits.class_names, num_workers)


def add_arguments(parser: "ArgumentParser") -> None:
    """Adds the command's options to its parser.

    Args:
        parser: The command's parser.
    """
    parser.add_function_arguments(create)


def run(options: "Namespace") -> int:
    """Runs the command; returns the exit code.

    Args:
        options: Parsed options.
    """
    names = inspect.signature(create).parameters
    return create(**{name: getattr(options, name) for name in names})


# --- Before the work ------------------------------------------------------------------------------


def _check_numbers(
    image_size: int | None,
    top_k: int,
    map_size: int | None,
    batch_size: int,
    num_workers: int,
    maps_per_shard: int,
) -> None:
    for name, value in (
        ("image-size", image_size),
        ("top-k", top_k),
        ("map-size", map_size),
        ("batch-size", batch_size),
        ("maps-per-shard", maps_per_shard),
    ):
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if num_workers < 0:
        raise ValueError(f"--num-workers must be at least 0, got {num_workers}")
    if maps_per_shard % batch_size:
        near = -(-maps_per_shard // batch_size) * batch_size
        raise ValueError(
            f"--batch-size must divide --maps-per-shard, got {batch_size} and {maps_per_shard}; "
            f"use --maps-per-shard {near}"
        )


def _check_output(folder: Path, data: str, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output names a folder, but {folder} is a file")
    if Path(data).is_dir() and Path(data).resolve() in (folder / "x").resolve().parents:
        raise ValueError(
            f"--output {folder} is in the folder of the images, where it would be taken for a "
            "class; choose another place"
        )
    if resume:
        for leftover in folder.glob(".*.partial"):  # of a file that was being written
            leftover.unlink()
    if folder.is_dir() and any(folder.iterdir()):
        if not resume:
            raise FileExistsError(
                f"{folder} is not empty; choose another --output, or pass --resume to go on with "
                "the maps in it"
            )
        if not (folder / SETTINGS).is_file():
            raise ValueError(
                f"--resume goes on with maps of this command, but {folder} has no {SETTINGS}; "
                "choose another --output"
            )
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".writable"
    probe.touch()
    probe.unlink()


def _keep_settings(job: "Job", settings: dict[str, Any]) -> None:
    """Writes what the maps are made with, or compares it with those that are there already."""
    from wavevit.data.label_maps.reader import shard_path

    path = job.folder / SETTINGS
    if not any(shard_path(job.folder, number).exists() for number in range(job.num_shards)):
        write_text(path, json.dumps(settings, indent=1) + "\n")
        return
    try:
        there = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); make the maps anew") from error
    different = [
        f"{name} {there.get(name)} there, {value} now"
        for name, value in settings.items()
        if there.get(name) != value
    ]
    if different:
        raise ValueError(
            f"the maps in {job.folder} were made with other settings ({'; '.join(different)}); "
            "use the same, or another --output"
        )


def _describe(oracle: "Oracle") -> str:
    rows, columns = oracle.grid
    return (
        f"{oracle.teacher.card.model} at {oracle.image_size[0]} x {oracle.image_size[1]} pixels in "
        f"{oracle.precision} on {oracle.device.type}: the best {oracle.num_kept} of "
        f"{oracle.teacher.num_classes:,} classes on {rows} x {columns} cells"
    )


def _whole_image(size: tuple[int, int], interpolation: str) -> "Transform":
    """The preparation of an image: all of it, whatever its proportions, in a square."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform

    transform: Transform = create_transform(
        (3, *size),
        is_training=False,
        crop_pct=1.0,
        crop_mode="squash",
        interpolation=interpolation,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )
    return transform


# --- The work ------------------------------------------------------------------------------------


def _work(job: "Job", oracle: "Oracle", class_names: list[str], num_workers: int) -> int:
    from wavevit.cli.counter import counter
    from wavevit.cli.label_map_job import make_maps

    started = time.monotonic()
    pending = [number for number in range(job.num_shards) if not job.is_done(number)]
    transform = _whole_image(oracle.image_size, oracle.teacher.card.interpolation)
    num_pending = sum(len(job.indices(number)) for number in pending)
    if num_pending < len(job.dataset):
        done = len(job.dataset) - num_pending
        write_lines(f"{done:,} images are done already, {num_pending:,} are left")
    try:
        with counter(num_pending, "label maps", "images") as advance:
            make_maps(job, oracle, pending, transform, num_workers, advance)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command with --resume goes on\n")
        raise
    _finish(job, oracle, class_names)
    rate = num_pending / max(time.monotonic() - started, 1e-6)
    now = (
        f"{num_pending:,} of them made now, {rate:,.0f} images/s" if pending else "all made before"
    )
    write_lines(
        f"{job.num_maps:,} label maps in {job.folder} ({now}); picture: {job.folder / PICTURE}"
    )
    return _report_unreadable(job)


# --- After the work -------------------------------------------------------------------------------


def _finish(job: "Job", oracle: "Oracle", class_names: list[str]) -> None:
    from wavevit.data.label_maps.reader import UNREADABLE_NAME, write_index

    rows, columns = oracle.image_size
    write_index(
        job.folder,
        num_classes=oracle.teacher.num_classes,
        class_names=class_names,
        source=(
            f"wavevit label-maps create: {oracle.teacher.card.model} at {rows} x {columns} pixels "
            f"in {oracle.precision}, weights {oracle.weights_sha256()[:16]}"
        ),
        num_shards=job.num_shards,
    )
    listing = job.folder / UNREADABLE_NAME
    if job.unreadable:
        lines = [f"{job.dataset.sample_id(i)}\t{job.unreadable[i]}" for i in sorted(job.unreadable)]
        write_text(listing, "\n".join(lines) + "\n")
    else:
        listing.unlink(missing_ok=True)
    _draw(job, oracle, class_names)


def _draw(job: "Job", oracle: "Oracle", class_names: list[str]) -> None:
    """A picture of some images from all over the data set, with the maps as they were written."""
    import numpy as np

    from wavevit.data.label_maps.reader import open_label_maps
    from wavevit.pictures.label_maps import MapExample, draw_label_maps

    there = [index for index in range(len(job.dataset)) if index not in job.unreadable]
    picked = np.linspace(0, len(there) - 1, min(_EXAMPLES, len(there))).round().astype(int)
    shown = [there[int(i)] for i in picked]
    ids = [job.dataset.sample_id(index) for index in shown]
    maps = open_label_maps(job.folder, ids, class_names)
    examples = []
    for position, index in enumerate(shown):
        label_map = maps.load(position)
        # Training takes the classes that were not kept for zeros before its softmax.
        highest = max(0.0, float(label_map.scores.max()))
        scores = np.exp(label_map.scores.astype(np.float64) - highest)
        rest = (oracle.teacher.num_classes - len(scores)) * np.exp(-highest)
        examples.append(
            MapExample(
                image=job.dataset.load(index),
                truth=class_names[int(job.dataset.labels[index])],
                classes=label_map.classes[0],
                probability=scores[0] / (scores.sum(axis=0) + rest),
            )
        )
    title = f"Label maps of {oracle.teacher.card.model}"
    draw_label_maps(examples, class_names, job.folder / PICTURE, title=title)


def _report_unreadable(job: "Job") -> int:
    from wavevit.data.label_maps.reader import UNREADABLE_NAME

    if not job.unreadable:
        return 0
    sys.stderr.write(
        f"wavevit: {len(job.unreadable):,} of {len(job.dataset):,} images cannot be read and have "
        f"no label map, such as {job.dataset.sample_id(min(job.unreadable))!r}; all are listed in "
        f"{job.folder / UNREADABLE_NAME}: remove them from the data before training, or replace "
        "them and run this again with --resume\n"
    )
    return 1
