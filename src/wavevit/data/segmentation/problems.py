"""What can be wrong with images and their masks, and how one such thing is told."""

from dataclasses import dataclass

ERROR_KINDS = {
    "missing_mask": "images without a mask",
    "orphan_mask": "masks without an image",
    "duplicate_name": "images, or masks, whose names differ in their endings only",
    "unreadable_image": "images that cannot be decoded",
    "unreadable_mask": "masks that cannot be decoded",
    "mask_kind": "masks whose pixels are no numbers of classes",
    "mask_size": "masks of another size than their images",
    "unknown_label": "masks with labels that no class has",
}
"""What each kind of error means, in the order of the report. Training does not start."""

WARNING_KINDS = {
    "unused_label": "the largest label tells the number of classes, but no mask has some below it",
    "black_and_white": "all masks have but 0 and 255, which is ignored: an object's pixels are 1",
    "no_class": "a class whose name says that it is none: ignore_index leaves its pixels out",
    "nothing_labelled": "masks in which every pixel is ignored",
    "unused_file": "images beside the folders of splits: not used",
    "turned": "images that EXIF turns, with masks for the pixels as they are stored: used so",
    "leakage": "the same picture in more than one split",
    "duplicate_image": "the same picture more than once in a split",
    "extension": "the file name's extension contradicts the content",
}
"""What each kind of warning means, in the order of the report, after the errors."""


def counted(count: int, noun: str) -> str:
    """A number and what there is of it, such as "1 mask" and "1,200 masks".

    Args:
        count: How many.
        noun: The singular, of a word whose plural has an s.
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class SegmentationProblem:
    """One thing that is wrong."""

    kind: str
    """A key of `ERROR_KINDS` or `WARNING_KINDS`."""
    file: str
    """The file or folder that is meant."""
    detail: str
    """What was found, in one line."""

    @property
    def is_error(self) -> bool:
        """Whether training does not start with it."""
        return self.kind in ERROR_KINDS

    def __str__(self) -> str:
        return f"{self.file}: {self.detail}"
