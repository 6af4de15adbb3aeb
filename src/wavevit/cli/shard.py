"""``wavevit shard``: write a data set as tar shards, or index tar files that are there."""

import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from wavevit.data.classification import ClassificationSplits
    from wavevit.data.shards.index import Manifest


def shard(
    data: str,
    out: str | None = None,
    samples_per_shard: int = 10_000,
    megabytes_per_shard: float = 256.0,
    shuffle_seed: int | None = 0,
    val_fraction: float = 0.0,
    split_seed: int = 0,
    index_only: bool = False,
    class_names: Path | None = None,
    overwrite: bool = False,
) -> int:
    """Writes a data set as tar files in the WebDataset layout, with an index for random access.

    Files are copied byte for byte. Training on the result is the same as on the data set itself:
    same samples, same order, same validation images. The folder appears when it is complete.

    Args:
        data: Folder with train/ and val/ class folders, folder of class folders, CSV file, or
            other shards; with --index-only the folder of the tar files.
        out: Folder to write; must not exist, or be empty. Not with --index-only.
        samples_per_shard: Images in a tar file at most.
        megabytes_per_shard: Size of a tar file at most, in millions of bytes.
        shuffle_seed: Seed of the order in which images go to the tar files, for readers that go
            through them one after the other; null keeps the order of the data set.
        val_fraction: Share of each class to write as val split where the data has none; with 0
            training holds images out, as it does with the data itself.
        split_seed: Seed of that choice.
        index_only: Write only index and manifest, beside train*.tar and val*.tar that others made;
            no other settings than --class-names and --overwrite go with it.
        class_names: With --index-only: text file with a class name per line, label 0 first.
        overwrite: Replace shards in the output folder, or the index.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No such data.
        FileExistsError: The output folder is not empty.
        ValueError: No data set, an image file that is missing or empty, or unfit tar files.
        OSError: The output cannot be written.
    """
    if index_only:
        if out is not None and os.path.realpath(out) != os.path.realpath(data):
            raise ValueError(
                f"--index-only writes beside the tar files in {data!r}; leave out {out!r}"
            )
        _refuse_unused(
            samples_per_shard=samples_per_shard,
            megabytes_per_shard=megabytes_per_shard,
            shuffle_seed=shuffle_seed,
            val_fraction=val_fraction,
            split_seed=split_seed,
        )
        manifest = _index(data, class_names, overwrite)
        out = data
    else:
        if class_names is not None:
            raise ValueError("--class-names is for --index-only; other data names its classes")
        if samples_per_shard < 1 or not 0 < megabytes_per_shard < 1e9:
            raise ValueError(
                "--samples-per-shard must be at least 1 and --megabytes-per-shard in (0, 1e9), got "
                f"{samples_per_shard} and {megabytes_per_shard}"
            )
        if shuffle_seed is not None and shuffle_seed < 0:
            raise ValueError(f"--shuffle-seed is at least 0, or null, got {shuffle_seed}")
        target = _check_places(data, out, overwrite)
        splits = _open(data, val_fraction, split_seed)
        max_bytes = round(megabytes_per_shard * 1e6)
        manifest = _write(splits, target, samples_per_shard, max_bytes, shuffle_seed, overwrite)
    for name, split in manifest.splits.items():
        megabytes = sum(shard.num_bytes for shard in split.shards) / 1e6
        files = f"{len(split.shards):,} tar file{'s' * (len(split.shards) > 1)}"
        sys.stdout.write(f"{name}: {split.num_samples:,} images in {files}, {megabytes:,.1f} MB\n")
    sys.stdout.write(f"{len(manifest.class_names):,} classes\nwritten: {out}\n")
    return 0


def add_arguments(parser: "ArgumentParser") -> None:
    """Adds the command's options to its parser.

    Args:
        parser: The command's parser.
    """
    parser.add_function_arguments(shard, as_positional=True, skip={"out"})
    parser.add_argument(
        "out",
        nargs="?",
        default=None,
        help="Folder to write; must not exist, or be empty. Not with --index-only.",
    )


def run(options: "Namespace") -> int:
    """Runs the command; returns the exit code.

    Args:
        options: Parsed options.
    """
    names = inspect.signature(shard).parameters
    return shard(**{name: getattr(options, name) for name in names})


def _refuse_unused(**settings: object) -> None:
    """Refuses what says how to write tar files, where they are there already."""
    parameters = inspect.signature(shard).parameters
    for name, value in settings.items():
        if value != parameters[name].default:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option} is for writing tar files, not for --index-only; leave it out"
            )


def _check_places(data: str, out: str | None, overwrite: bool) -> Path:
    from wavevit.data.shards.store import is_url
    from wavevit.data.shards.writer import prepare_folder

    if data == "shapes":
        raise ValueError("'shapes' is generated and has no files to put into shards")
    if out is None:
        raise ValueError("expected the folder to write: wavevit shard DATA OUT")
    if is_url(out):
        raise ValueError(
            f"shards are written to a local folder, got {out!r}; copy the folder there afterwards"
        )
    target = prepare_folder(out, overwrite=overwrite)
    if not is_url(data) and os.path.isdir(data):
        source = Path(os.path.realpath(data))
        if target == source or source in target.parents or target in source.parents:
            raise ValueError(
                f"the output {out!r} and the data {data!r} lie in one another; name a folder beside"
            )
    return target


def _open(data: str, val_fraction: float, split_seed: int) -> "ClassificationSplits":
    from wavevit.data.classification import open_classification

    return open_classification(data, val_fraction=val_fraction, split_seed=split_seed)


def _write(
    splits: "ClassificationSplits",
    target: Path,
    samples_per_shard: int,
    bytes_per_shard: int,
    shuffle_seed: int | None,
    overwrite: bool,
) -> "Manifest":
    from wavevit.cli.counter import counter
    from wavevit.data.image_files import ImageFileDataset
    from wavevit.data.shards.dataset import ShardDataset
    from wavevit.data.shards.writer import write_shards

    sys.stdout.write(f"{splits.description}\n")
    sys.stdout.flush()
    parts = {}
    for name in ("train", "val"):
        images = splits.parts.get(name)
        if isinstance(images, ImageFileDataset | ShardDataset):
            parts[name] = images
    with counter(sum(map(len, parts.values())), "writing shards", "images") as advance:
        return write_shards(
            parts,
            splits.class_names,
            target,
            samples_per_shard=samples_per_shard,
            bytes_per_shard=bytes_per_shard,
            shuffle_seed=shuffle_seed,
            overwrite=overwrite,
            on_progress=advance,
        )


def _index(data: str, class_names: Path | None, overwrite: bool) -> "Manifest":
    from wavevit.cli.counter import counter
    from wavevit.data.shards.foreign_tars import find_tars, index_tars
    from wavevit.data.shards.store import is_url

    if is_url(data):
        raise ValueError(
            f"--index-only reads every tar file, from a local folder, got {data!r}; copy the tar "
            "files, make the index, and copy it to them"
        )
    names = None
    if class_names is not None:
        lines = class_names.read_text(encoding="utf-8-sig").splitlines()
        names = [line.strip() for line in lines if line.strip()]
        if len(set(names)) < len(names) or len(names) < 2:
            raise ValueError(f"{class_names}: expected two or more class names, each one once")
    tars = find_tars(Path(data))
    with counter(sum(map(len, tars.values())), "reading", "tar files") as advance:
        return index_tars(
            data, class_names=names, overwrite=overwrite, on_progress=lambda _: advance(1)
        )
