"""`wavevit check-data`: read every file of a data set once and list what is wrong."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wavevit.cli.console import write_lines

if TYPE_CHECKING:
    import jsonargparse

    from wavevit.data.check_report import CheckReport
    from wavevit.data.detection.report import DetectionReport
    from wavevit.data.segmentation.layouts import PairPattern
    from wavevit.data.segmentation.masks import LabelRule
    from wavevit.data.segmentation.report import SegmentationReport

Task = Literal["classification", "detection", "segmentation"]
OnProgress = Callable[[int, int, int], None]


def check_data(
    data: str,
    *,
    num_workers: int = 2,
    json: Path | None = None,
    overwrite: bool = False,
    task: Task | None = None,
    format: Literal["coco", "yolo", "voc"] | None = None,
    num_classes: int | None = None,
    ignore_index: int | None = None,
    reduce_zero_label: bool = False,
    image_folder: str | None = None,
    mask_folder: str | None = None,
    image_suffix: str | None = None,
    mask_suffix: str | None = None,
) -> int:
    """Read every image of a data set once and list what is wrong with it.

    Of images in class folders, lists unreadable, duplicate, tiny, huge and mislabelled files,
    pictures that are in training and in validation, extensions that contradict the content, and
    other files among the images, each with its path; and class counts and image sizes. Of images
    with boxes or masks, lists every annotation that is wrong, with its file and id or line, and the
    images as above; and classes, sizes of boxes, crowd, and images without objects. Of images with
    label masks, lists masks that are missing, of another size or kind, or with labels that no class
    has, and the images as above; and how many pixels each class has. Exit code 0: nothing wrong; 1:
    problems found.

    Args:
        data: Folder with train/ and val/ class folders, folder of class folders, CSV file with the
            columns path,label and perhaps split, or folder or URL of tar shards. Or folder of a
            COCO, YOLO or Pascal VOC data set, or its .json or .yaml file. Or folder of images and
            label masks, such as images/train and annotations/train.
        num_workers: Threads that decode images; 0 decodes in the main thread.
        json: File to write the full report to as JSON.
        overwrite: Replace the JSON file if it exists.
        task: What the data is for, where the names of its files do not tell.
        format: Layout of data for detection that looks like more than one.
        num_classes: Number of classes of label masks, where no classes.txt names them.
        ignore_index: Label of mask files that is ignored, beside 255.
        reduce_zero_label: Ignore the label 0 of mask files; the first class is 1.
        image_folder: Folder of images that have label masks, where it is called otherwise.
        mask_folder: Folder of label masks.
        image_suffix: How names of images end that have label masks, such as "_rgb.jpg".
        mask_suffix: How names of label masks end, such as "_labels.png".

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: If `data` or the folder of `json` does not exist.
        FileExistsError: If `json` exists and `overwrite` is not given.
        OSError: If `data` is a URL that cannot be read.
        ValueError: If `data` is no data set, or an option is for data of another kind.
    """
    if json is not None:
        _check_output(json, overwrite)
    folders = (image_folder, mask_folder, image_suffix, mask_suffix)
    has_mask_options = reduce_zero_label or any(
        value is not None for value in (num_classes, ignore_index, *folders)
    )
    task = task or _task_of(data, format, has_mask_options)
    if has_mask_options and task != "segmentation":
        raise ValueError(f"options of label masks are given, but the task is {task}")
    if format is not None and task != "detection":
        raise ValueError(f"--format is for detection, but the task is {task}")
    report: CheckReport | DetectionReport | SegmentationReport
    lines: Iterable[str]
    with _progress() as on_progress:
        if task == "segmentation":
            from wavevit.data.segmentation.layouts import PairPattern
            from wavevit.data.segmentation.masks import LabelRule

            pattern, rule = PairPattern(*folders), LabelRule(ignore_index, reduce_zero_label)
            report, lines = _check_masks(data, pattern, rule, num_classes, num_workers, on_progress)
        elif task == "detection":
            report, lines = _check_boxes(data, format, num_workers, on_progress)
        else:
            report, lines = _check_classes(data, num_workers, on_progress)
    for line in lines:
        write_lines(line)
    if json is not None:
        _write_json(json, report.as_dict(), overwrite)
        write_lines(f"full report: {json}")
    return 1 if report.problems else 0


def _task_of(data: str, format: str | None, has_mask_options: bool) -> Task:
    from wavevit.data.detection.layouts import detection_formats
    from wavevit.data.segmentation.layouts import is_segmentation

    if has_mask_options:
        return "segmentation"
    if format is not None or detection_formats(data):
        return "detection"
    return "segmentation" if is_segmentation(data) else "classification"


def _check_classes(
    data: str, num_workers: int, on_progress: OnProgress
) -> "tuple[CheckReport, Iterator[str]]":
    from wavevit.data.check import check_dataset
    from wavevit.data.check_report import report_lines

    report = check_dataset(data, num_workers=num_workers, on_progress=on_progress)
    return report, report_lines(report)


def _check_boxes(
    data: str,
    format: Literal["coco", "yolo", "voc"] | None,
    num_workers: int,
    on_progress: OnProgress,
) -> "tuple[DetectionReport, Iterator[str]]":
    from wavevit.data.detection.check import check_detection
    from wavevit.data.detection.report import report_lines

    report = check_detection(data, format=format, num_workers=num_workers, on_progress=on_progress)
    return report, report_lines(report)


def _check_masks(
    data: str,
    pattern: "PairPattern",
    rule: "LabelRule",
    num_classes: int | None,
    num_workers: int,
    on_progress: OnProgress,
) -> "tuple[SegmentationReport, Iterator[str]]":
    from wavevit.data.segmentation.check import check_segmentation
    from wavevit.data.segmentation.report import report_lines

    report = check_segmentation(
        data,
        pattern=pattern,
        rule=rule,
        num_classes=num_classes,
        num_workers=num_workers,
        on_progress=on_progress,
    )
    return report, report_lines(report)


def add_arguments(parser: "jsonargparse.ArgumentParser") -> None:
    """Adds the command's options to its parser."""
    parser.add_argument("folder", nargs="?", default=None, help="Short for --data.")
    parser.add_argument("--data", type=str, default=None, help=_help_of_data())
    parser.add_function_arguments(check_data, skip={"data"})


def run(options: "jsonargparse.Namespace") -> int:
    """Runs the command; returns the exit code."""
    given = [place for place in (options.folder, options.data) if place is not None]
    if len(given) != 1:
        raise ValueError("expected one data set to check: wavevit check-data DATA")
    return check_data(
        given[0],
        num_workers=options.num_workers,
        json=options.json,
        overwrite=options.overwrite,
        task=options.task,
        format=options.format,
        num_classes=options.num_classes,
        ignore_index=options.ignore_index,
        reduce_zero_label=options.reduce_zero_label,
        image_folder=options.image_folder,
        mask_folder=options.mask_folder,
        image_suffix=options.image_suffix,
        mask_suffix=options.mask_suffix,
    )


def _help_of_data() -> str:
    text = check_data.__doc__ or ""
    return " ".join(text.partition("data: ")[2].partition("num_workers: ")[0].split())


def _check_output(path: Path, overwrite: bool) -> None:
    # Found out now, and not after an hour of reading.
    if path.is_dir():
        raise ValueError(f"--json expects a file, got the folder {str(path)!r}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists; pass --overwrite to replace it")
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder for --json: {str(folder)!r}; create it first")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise PermissionError(f"cannot write {str(path)!r}; choose another place for --json")


def _write_json(path: Path, content: dict[str, object], overwrite: bool) -> None:
    import json

    with open(path, "w" if overwrite else "x", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")


@contextmanager
def _progress() -> Iterator[Callable[[int, int, int], None]]:
    """A callback that shows progress, from the first file on: before, their number is not known."""
    from wavevit.cli.counter import counter

    with ExitStack() as stack:
        advance: Callable[[int], None] | None = None

        def on_progress(done: int, total: int, num_problems: int) -> None:
            nonlocal advance
            if advance is None:
                advance = stack.enter_context(counter(total, "reading", "files"))
            advance(1)

        yield on_progress
