"""What can be wrong with annotated images, and how one such thing is told."""

from collections.abc import Sequence
from dataclasses import dataclass

from wavevit.data.problems import refuse_first_error

ERROR_KINDS = {
    "annotation_file": "annotation files that are missing, empty or of another kind",
    "entry": "entries with fields that are missing or wrong",
    "duplicate_id": "ids and names that are there more than once",
    "unknown_category": "classes that are not in the list of classes",
    "other_class": "classes that the model, or the training split, does not have",
    "unknown_image": "annotations of images that are not listed",
    "missing_image": "images that are listed, but not there",
    "unreadable_image": "images that cannot be decoded",
    "image_size": "images of another size than their annotations are for",
    "box_size": "boxes of negative or not finite size",
    "box_outside": "boxes that stick out of the image, or lie outside of it",
    "mask": "outlines and run-length codes that are broken",
    "mask_outside": "outlines that stick out of the image",
}
"""What each kind of error means, in the order of the report. Training does not start."""

WARNING_KINDS = {
    "clipped": "boxes and outlines that stuck out of the image: clipped to it",
    "empty_box": "boxes without width or height: not used",
    "empty_mask": "objects without a pixel in a picture of object numbers",
    "mask_part": "parts of outlines with fewer than three points: not used",
    "duplicate_box": "the same box with the same class more than once in an image",
    "unused_file": "annotation files without an image: not used",
    "unused_category": "classes without annotations that share their name with another: not used",
    "turned": "images that EXIF turns, with annotations for the pixels as they are stored: used so",
    "leakage": "the same picture in more than one split",
    "duplicate_image": "the same picture more than once in a split",
    "extension": "the file name's extension contradicts the content",
}
"""What each kind of warning means, in the order of the report, after the errors."""


@dataclass(frozen=True)
class DetectionProblem:
    """One thing that is wrong."""

    kind: str
    """A key of `ERROR_KINDS` or `WARNING_KINDS`."""
    file: str
    """The file it is in, or that is meant."""
    place: str
    """Where in the file, such as "annotation 17" or "line 3"; "" for the whole file."""
    detail: str
    """What was found, in one line."""

    @property
    def is_error(self) -> bool:
        """Whether training does not start with it."""
        return self.kind in ERROR_KINDS

    def __str__(self) -> str:
        place = f", {self.place}" if self.place else ""
        return f"{self.file}{place}: {self.detail}"


def refuse_errors(problems: Sequence[DetectionProblem], data: str) -> None:
    """Raises a ValueError with the first error and how many there are; warnings pass.

    Args:
        problems: Errors and warnings.
        data: What the user named, for the commands in the message.

    Raises:
        ValueError: If there is an error.
    """
    errors = [problem for problem in problems if problem.is_error]
    if errors and errors[0].kind == "other_class":
        num_others = sum(problem.kind == "other_class" for problem in errors)
        # Nothing is wrong with the data, so there is nothing to repair.
        raise ValueError(
            f"{errors[0]} (so it is with {num_others:,} objects: the data have other classes than "
            "the model, or than the training split; take data with its classes, or train on these)"
        )
    check = f"`wavevit check-data {data}`"
    repair = f"`wavevit convert-data {data} OUT --repair` writes a copy without them"
    refuse_first_error(
        problems, f"{check} shows more" if len(errors) == 1 else f"{check} lists all, {repair}"
    )
