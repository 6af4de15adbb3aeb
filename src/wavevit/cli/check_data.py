"""`wavevit check-data`: read every file of a data set once and list what is wrong."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import jsonargparse

    from wavevit.data.check_report import CheckReport
    from wavevit.data.detection.report import DetectionReport


def check_data(
    data: str,
    *,
    num_workers: int = 2,
    json: Path | None = None,
    overwrite: bool = False,
    task: Literal["classification", "detection"] | None = None,
    format: Literal["coco", "yolo", "voc"] | None = None,
) -> int:
    """Read every image of a data set once and list what is wrong with it.

    Of images in class folders, lists unreadable, duplicate, tiny, huge and mislabelled files,
    pictures that are in training and in validation, extensions that contradict the content, and
    other files among the images, each with its path; and class counts and image sizes. Of images
    with boxes or masks, lists every annotation that is wrong, with its file and id or line, and the
    images as above; and classes, sizes of boxes, crowd, and images without objects. Exit code 0:
    nothing wrong; 1: problems found.

    Args:
        data: Folder with train/ and val/ class folders, folder of class folders, CSV file with the
            columns path,label and perhaps split, or folder or URL of tar shards. Or folder of a
            COCO, YOLO or Pascal VOC data set, or its .json or .yaml file.
        num_workers: Threads that decode images; 0 decodes in the main thread.
        json: File to write the full report to as JSON.
        overwrite: Replace the JSON file if it exists.
        task: What the data is for, where the names of its files do not tell.
        format: Layout of data for detection that looks like more than one.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: If `data` or the folder of `json` does not exist.
        FileExistsError: If `json` exists and `overwrite` is not given.
        OSError: If `data` is a URL that cannot be read.
        ValueError: If `data` is no data set.
    """
    from wavevit.data.detection.layouts import detection_formats

    if json is not None:
        _check_output(json, overwrite)
    if task is None:
        is_detection = format is not None or bool(detection_formats(data))
        task = "detection" if is_detection else "classification"
    report: CheckReport | DetectionReport
    lines: Iterable[str]
    with _progress() as on_progress:
        if task == "detection":
            from wavevit.data.detection import report as detection_report
            from wavevit.data.detection.check import check_detection

            report = check_detection(
                data, format=format, num_workers=num_workers, on_progress=on_progress
            )
            lines = detection_report.report_lines(report)
        else:
            from wavevit.data import check_report
            from wavevit.data.check import check_dataset

            report = check_dataset(data, num_workers=num_workers, on_progress=on_progress)
            lines = check_report.report_lines(report)
    for line in lines:
        _write(line)
    if json is not None:
        _write_json(json, report.as_dict(), overwrite)
        _write(f"full report: {json}")
    return 1 if report.problems else 0


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


def _write(line: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
