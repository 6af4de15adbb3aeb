"""``wavevit predict`` for detectors: objects in images and video."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wavevit.cli.prediction_loop import MAX_WAIT_S, Counts, interrupts, listed, write_all

if TYPE_CHECKING:
    from wavevit.cli.detection_drawing import ObjectPainter
    from wavevit.cli.detection_inference import Finder
    from wavevit.cli.detection_records import ObjectRecord, ObjectWriter
    from wavevit.cli.image_ids import ImageIds
    from wavevit.detection.inference import FoundObjects, PreparedImage


def predict_objects(
    images: list[str],
    checkpoint: Path,
    output: Path | None = None,
    draw: Path | None = None,
    overwrite: bool = False,
    null: bool = False,
    batch_size: int = 1,
    num_workers: int = 2,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    score_threshold: float = 0.3,
    tile: int | None = None,
    overlap: float = 0.25,
    whole: bool | None = None,
    annotations: Path | None = None,
    max_frames: int | None = None,
) -> int:
    """Finds objects in images or video and writes them, in the order of the images.

    An image that cannot be read is reported, gets a record with the error, and does not stop the
    rest. Exit code 0: all went well; 1: some images failed; 2: nothing could be done.

    Args:
        images: Files, folders (with subfolders), quoted patterns, or - for a list on stdin; or
            video files, and camera:0 for the first camera.
        checkpoint: Model file, run directory with a best.safetensors, or exported folder.
        output: File to write: .json in COCO's results format, .jsonl or .csv; null writes JSON
            lines to stdout.
        draw: Folder for copies of the images, or of video as .mp4, with the objects drawn in.
        overwrite: Replace an existing output file and existing pictures.
        null: The list on stdin is separated by NUL characters, as by find -print0.
        batch_size: Images, frames or tiles per forward pass. Above 1, images are padded to the
            largest of their batch, which changes results slightly.
        num_workers: Threads that decode images ahead of the model, at least 1.
        device: Where the model runs; "auto" takes CUDA where there is some.
        precision: Number format inside the model.
        score_threshold: Objects of a lower score are left out, in [0, 1]. To measure AP with the
            results, take the model's own threshold, 0.05.
        tile: Side of the square tiles, in pixels, that large images are looked at in; null looks at
            whole images. Each tile is resized as an image would be.
        overlap: Share of its side that a tile has in common with the next, in [0, 0.9]; objects up
            to that size are whole in some tile.
        whole: Look at the whole image, too, for objects larger than a tile; null does so where its
            longer side is at most two tiles.
        annotations: COCO file with the ids of the images, by their names, and of the categories,
            for a .json output. Without it images are numbered, and a table stands beside.
        max_frames: Frames of each video to look at, from its start; null takes all.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No such image, folder, checkpoint or output folder.
        FileExistsError: The output exists and `overwrite` is not given.
        ValueError: No images, a wrong checkpoint, or a value out of range.
    """
    from wavevit.cli.detection_drawing import ObjectPainter
    from wavevit.cli.detection_inference import load_predictor, make_finder
    from wavevit.cli.detection_records import open_writer
    from wavevit.cli.image_paths import check_arguments
    from wavevit.cli.video import check_videos, is_video

    if batch_size < 1 or num_workers < 1:
        raise ValueError(
            f"--batch-size and --num-workers must be at least 1, got {batch_size} and {num_workers}"
        )
    is_film = any(map(is_video, images))
    if is_film:
        check_videos(images, draw, max_frames)
    else:
        check_arguments(images)
        if max_frames is not None:
            raise ValueError("--max-frames goes with video, and there is none among the images")
    ids = _ids_for(output, annotations, overwrite, is_film=is_film)
    predictor = load_predictor(
        checkpoint, device=device, precision=precision, score_threshold=score_threshold
    )
    card = predictor.card
    work = Work(
        make_finder(predictor, tile=tile, overlap=overlap, batch_size=batch_size, whole=whole),
        ObjectPainter(card.class_names, tile),
        open_writer(
            output,
            card.class_names,
            ids.categories(card.class_names, card.category_ids),
            ids,
            overwrite,
        ),
        num_workers,
        precision,
        writes_to_stdout=output is None,
    )
    counts = Counts(unit="frames" if is_film else "images")
    if is_film:
        from wavevit.cli.detection_video import predict_videos

        predict_videos(images, work, counts, draw=draw, overwrite=overwrite, max_frames=max_frames)
    else:
        _predict_images(images, work, counts, ids, draw=draw, overwrite=overwrite, null=null)
    if counts.images == 0 and counts.failures == 0:
        raise ValueError("the list of images is empty")
    if counts.failures or output is not None:
        counts.say_sum()
    return 1 if counts.failures else 0


def _ids_for(
    output: Path | None, annotations: Path | None, overwrite: bool, *, is_film: bool
) -> "ImageIds":
    """Finds out whether the output can be written, and with which ids."""
    from wavevit.cli.detection_records import SUFFIXES
    from wavevit.cli.image_ids import ImageIds, table_path
    from wavevit.cli.prediction_files import check_output

    # A frame has no id in a COCO file.
    check_output(output, overwrite, SUFFIXES[1:] if is_film else SUFFIXES)
    is_coco = output is not None and output.suffix.lower() == ".json"
    if annotations is not None and not is_coco:
        raise ValueError("--annotations goes with an --output that ends in .json")
    if output is not None and is_coco and annotations is None:
        check_output(table_path(output), overwrite, SUFFIXES)
    return ImageIds(annotations)


@dataclass(frozen=True)
class Work:
    """What is done with every picture.

    Attributes:
        finder: Finds its objects.
        painter: Draws them.
        writer: Writes them.
        num_workers: Threads that decode, and that draw.
        precision: Of the network's inside, for messages.
        writes_to_stdout: Whether results show by themselves how far it is.
    """

    finder: "Finder"
    painter: "ObjectPainter"
    writer: "ObjectWriter"
    num_workers: int
    precision: str
    writes_to_stdout: bool

    def outcome(self, found: "FoundObjects") -> "tuple[FoundObjects | None, str | None]":
        """The objects, or why they are none.

        Args:
            found: In a picture.
        """
        if found.is_finite:
            return found, None
        hint = "" if self.precision == "fp32" else "; use --precision fp32"
        return None, f"the model's output is NaN or infinite in {self.precision}{hint}"


def _predict_images(
    images: list[str],
    work: Work,
    counts: Counts,
    ids: "ImageIds",
    *,
    draw: Path | None,
    overwrite: bool,
    null: bool,
) -> None:
    from wavevit.cli.image_paths import STDIN, base_folder
    from wavevit.cli.picture_folders import PictureFolder

    pictures = None
    if draw is not None:
        pictures = PictureFolder(draw, base_folder(images), overwrite, work.painter)
        pictures.prepare([image for image in images if image != STDIN])
    found = records(work, listed(images, null, counts), ids)
    with work.writer as writer, closing(found) as batches:
        write_all(
            batches,
            writer,
            pictures,
            work.num_workers,
            counts,
            writes_to_stdout=work.writes_to_stdout,
        )


@dataclass(frozen=True)
class _Decoded:
    path: str
    prepared: "PreparedImage | None" = None  # None after an error
    error: str | None = None


def records(
    work: Work, paths: Iterable[str], ids: "ImageIds"
) -> Generator[list["ObjectRecord"], None, None]:
    """Records of images, in batches, in the order of the paths.

    Paths are taken as needed: few images are ahead of the model, and results do not wait for the
    end of the list.

    Args:
        work: What is done with each.
        paths: Of the images.
        ids: Of the images, where they must be known.

    Yields:
        Records of one batch.
    """
    from wavevit.cli.read_ahead import ReadAhead, batches

    finder = work.finder
    with (
        interrupts() as interrupted,
        ReadAhead(
            paths,
            lambda path: _decode(path, finder, ids),
            num_threads=work.num_workers,
            depth=finder.ahead,
            interrupted=interrupted,
        ) as decoded,
    ):
        for batch in batches(decoded, finder.group, max_wait_s=MAX_WAIT_S):
            yield _find(work, batch)


def _decode(path: str, finder: "Finder", ids: "ImageIds") -> _Decoded:
    import numpy as np
    import torch

    from wavevit.data.images import UnreadableImageError, load_image

    try:
        ids.check(path)
        picture = load_image(path)
    except UnreadableImageError as error:
        return _Decoded(path, error=error.reason)
    except ValueError as error:
        return _Decoded(path, error=str(error))
    try:
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return _Decoded(path, finder.prepare(image))
    except MemoryError:
        size = f"{picture.width} x {picture.height}"
        return _Decoded(path, error=f"not enough memory to resize its {size} pixels")


def _find(work: Work, batch: Sequence[_Decoded]) -> list["ObjectRecord"]:
    from wavevit.cli.detection_records import ObjectRecord
    from wavevit.cli.memory import out_of_memory_explained

    prepared = [item.prepared for item in batch if item.prepared is not None]
    found: list[FoundObjects] = []
    if prepared:
        with out_of_memory_explained(work.finder.advice):
            found = work.finder.find(prepared)
    in_order = iter(found)
    return [
        ObjectRecord(item.path, *work.outcome(next(in_order)))
        if item.prepared is not None
        else ObjectRecord(item.path, error=item.error)
        for item in batch
    ]
