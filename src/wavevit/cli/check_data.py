"""`wavevit check-data`: read every file of a data set once and list what is wrong."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jsonargparse

_SECONDS_BETWEEN_LINES = 5.0


def check_data(
    data: str, *, num_workers: int = 2, json: Path | None = None, overwrite: bool = False
) -> int:
    """Read every image of a data set once and list what is wrong with it.

    Lists unreadable, duplicate, tiny, huge and mislabelled files, pictures that are in training and
    in validation, extensions that contradict the content, and other files among the images, each
    with its path; and class counts and image sizes. Exit code 0: nothing wrong; 1: problems found.

    Args:
        data: Folder with train/ and val/ class folders, folder of class folders, CSV file with the
            columns path,label and perhaps split, or folder or URL of tar shards.
        num_workers: Threads that decode images; 0 decodes in the main thread.
        json: File to write the full report to as JSON.
        overwrite: Replace the JSON file if it exists.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: If `data` or the folder of `json` does not exist.
        FileExistsError: If `json` exists and `overwrite` is not given.
        OSError: If `data` is a URL that cannot be read.
        ValueError: If `data` is no data set.
    """
    from wavevit.data.check import check_dataset
    from wavevit.data.check_report import report_lines

    if json is not None:
        _check_output(json, overwrite)
    report = check_dataset(data, num_workers=num_workers, on_progress=_progress_lines())
    for line in report_lines(report):
        _write(line)
    if json is not None:
        _write_json(json, report.as_dict(), overwrite)
        _write(f"full report: {json}")
    return 1 if report.problems else 0


def add_arguments(parser: "jsonargparse.ArgumentParser") -> None:
    """Adds the command's options to its parser."""
    parser.add_function_arguments(check_data)


def run(options: "jsonargparse.Namespace") -> int:
    """Runs the command; returns the exit code."""
    return check_data(
        options.data,
        num_workers=options.num_workers,
        json=options.json,
        overwrite=options.overwrite,
    )


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


def _progress_lines() -> Callable[[int, int, int], None]:
    """A callback that writes a line to standard error every few seconds."""
    start = last = time.monotonic()

    def on_progress(done: int, total: int, num_problems: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            rate = done / (now - start)
            sys.stderr.write(
                f"{done:,} of {total:,} files read, {num_problems:,} problems so far, "
                f"{rate:,.0f} files/s, {(total - done) / rate:,.0f} s left\n"
            )
            sys.stderr.flush()

    return on_progress


def _write(line: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
