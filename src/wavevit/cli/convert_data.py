"""``wavevit convert-data``: rewrite annotated images as COCO, YOLO or Pascal VOC."""

import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wavevit.cli.console import write_lines

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from wavevit.data.detection.conversion import Source


def convert_data(
    source: Path,
    out: Path,
    to: Literal["coco", "yolo", "voc"],
    format: Literal["coco", "yolo", "voc"] | None = None,
    masks: bool = True,
    repair: bool = False,
    link: bool = False,
) -> int:
    """Writes annotated images in another layout, with the images, and says what is lost.

    Every annotation is checked first. The output folder appears when it is complete.

    Args:
        source: Folder of a COCO, YOLO or Pascal VOC data set, or its .json or .yaml file.
        out: Folder to write; must not exist.
        to: Layout to write.
        format: Layout of the source, where its files look like more than one.
        masks: Write outlines and masks too; with --no-masks only boxes.
        repair: Leave out what is wrong and clip what sticks out of an image, instead of refusing.
        link: Make hard links to the images instead of copies.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: No such source, or no folder for the output.
        FileExistsError: The output exists.
        ValueError: No such data set, or something is wrong with it and `repair` is not given.
        OSError: The output cannot be written.
    """
    from wavevit.cli.counter import counter
    from wavevit.data.detection.conversion import convert_detection, read_source
    from wavevit.data.detection.layouts import find_detection_layout

    _check_output(source, out)
    layout = find_detection_layout(source, format)
    sys.stdout.write(f"{layout.description}\n")
    sys.stdout.flush()
    found = read_source(layout, to, repair=repair, with_masks=masks)
    with counter(found.num_images, "converting", "images") as advance:
        lost = convert_detection(found, out, to, link=link, with_masks=masks, on_progress=advance)
    _report(found, lost)
    sys.stdout.write(f"written: {out}\n")
    return 0


def add_arguments(parser: "ArgumentParser") -> None:
    """Adds the command's options to its parser.

    Args:
        parser: The command's parser.
    """
    parser.add_argument(
        "source", type=Path, help="Folder of a COCO, YOLO or Pascal VOC data set, or its file."
    )
    parser.add_argument("out", type=Path, help="Folder to write; must not exist.")
    parser.add_function_arguments(convert_data, skip={"source", "out"})


def run(options: "Namespace") -> int:
    """Runs the command; returns the exit code.

    Args:
        options: Parsed options.
    """
    names = inspect.signature(convert_data).parameters
    return convert_data(**{name: getattr(options, name) for name in names})


def _check_output(source: Path, out: Path) -> None:
    # Found out now, and not after reading everything.
    if os.path.lexists(out):
        raise FileExistsError(f"{str(out)!r} exists; name a folder that is not there yet")
    parent = Path(os.path.realpath(out)).parent
    if not parent.is_dir():
        raise FileNotFoundError(f"no such folder: {str(parent)!r}; create it first")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"cannot write in {str(parent)!r}; choose another place")
    inside = Path(os.path.realpath(source))
    if inside.is_dir() and (parent == inside or inside in parent.parents):
        raise ValueError(f"the output {str(out)!r} lies in the source; name a folder beside it")


def _report(source: "Source", lost: list[str]) -> None:
    from wavevit.data.check_report import printable
    from wavevit.data.detection.problems import WARNING_KINDS

    lines = [
        f"{name}: {len(part):,} images, {part.num_objects.sum():,} objects, "
        f"{part.num_masks:,} of them with masks"
        for name, part in source.parts.items()
    ]
    lines += [f"left out: {problem}" for problem in source.problems if problem.is_error]
    for kind, meaning in WARNING_KINDS.items():
        count = sum(problem.kind == kind for problem in source.problems)
        if count:
            lines.append(f"warning: {count:,} {meaning} (`wavevit check-data` lists them)")
    lines += [f"not the same as before: {line}" for line in lost]
    write_lines(*map(printable, lines))
