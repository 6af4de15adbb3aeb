"""Masks from polygons and COCO run-length codes, and back.

A run-length code goes down the columns, from the left one to the right one: the number of pixels
outside, then inside, then outside, and so on. COCO writes it as a list of counts or, shorter, as a
text; the text is what is used here. Coding and the drawing of polygons are those of
faster-coco-eval, which are those of pycocotools, so that evaluation and training see the same
pixels.

Shape legend: N objects, H rows, W columns, R rings, P points of a ring.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image

from wavevit.data.detection.segment_table import Polygons
from wavevit.data.images import UnreadableImageError

_FIRST_CHARACTER = 48
_SIGN_BIT, _MORE_BIT, _VALUE_BITS = 0x10, 0x20, 0x1F
_MAX_CHARACTERS = 7  # of one count: 35 bits


def encode_mask(mask: NDArray[np.uint8] | NDArray[np.bool_]) -> bytes:
    """The run-length code of a mask.

    Args:
        mask: (H, W), 0 outside.
    """
    code: bytes = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return code


def decode_masks(codes: Sequence[bytes], height: int, width: int) -> NDArray[np.uint8]:
    """The masks of run-length codes.

    Args:
        codes: N codes of pictures of this size.
        height: H.
        width: W.

    Returns:
        (N, H, W), 1 inside and 0 outside.
    """
    masks = np.zeros((len(codes), height, width), np.uint8)
    for mask, code in zip(masks, codes, strict=True):
        _draw(mask, code_to_counts(code))
    return masks


def encode_polygons(polygons: Polygons, height: int, width: int) -> bytes:
    """The run-length code of the union of polygons; pixels outside of the picture are left out.

    Args:
        polygons: R rings (P, 2) of points x, y in pixels; each has 3 points or more.
        height: H of the picture.
        width: W of the picture.
    """
    rings = [np.ascontiguousarray(ring, np.float64).ravel().tolist() for ring in polygons]
    coded = coco_mask.frPyObjects(rings, height, width)
    if len(coded) > 1:
        coded = coco_mask.merge(coded)
    # Versions differ in whether one code comes alone.
    code: bytes = (coded[0] if isinstance(coded, list) else coded)["counts"]
    return code


def encode_counts(counts: Sequence[int], height: int, width: int) -> bytes:
    """The run-length code of a list of counts.

    Args:
        counts: Numbers of pixels outside, inside, outside, ... down the columns.
        height: H of the picture.
        width: W of the picture.

    Raises:
        ValueError: If they are no whole numbers of at least 0, or not H x W in all.
    """
    if not all(type(count) is int for count in counts):
        raise ValueError("counts that are no whole numbers")
    _check_counts(np.array(counts, np.float64), height, width)
    code: bytes = coco_mask.frPyObjects(
        {"size": [height, width], "counts": list(counts)}, height, width
    )["counts"]
    return code


def code_to_counts(code: bytes) -> NDArray[np.int64]:
    """The counts of a run-length code.

    Each count is written in pieces of 5 bits, the lowest first, and from the fourth one on as the
    difference to the one two before it.

    Args:
        code: Characters "0" to "o".

    Returns:
        Numbers of pixels outside, inside, outside, ...

    Raises:
        ValueError: If it is no such text.
    """
    pieces = np.frombuffer(code, np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if len(pieces) == 0:
        return np.zeros(0, np.int64)
    if pieces.min() < 0 or pieces.max() > _VALUE_BITS + _MORE_BIT:
        raise ValueError("a character that is not used in run-length codes")
    ends = np.flatnonzero((pieces & _MORE_BIT) == 0)
    if len(ends) == 0 or ends[-1] != len(pieces) - 1:
        raise ValueError("a run-length code that breaks off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        raise ValueError("a count that is too large")
    places = np.arange(len(pieces)) - np.repeat(starts, lengths)
    values = np.add.reduceat((pieces & _VALUE_BITS) << (5 * places), starts)
    values -= np.where(pieces[ends] & _SIGN_BIT, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def check_code(code: bytes, height: int, width: int) -> None:
    """Raises a ValueError unless a run-length code is sound and covers H x W pixels.

    Args:
        code: The code.
        height: H of the picture.
        width: W of the picture.

    Raises:
        ValueError: As said; the message names what is wrong, without the object.
    """
    _check_counts(code_to_counts(code), height, width)


def read_instance_map(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The numbers in a PNG file whose pixels are numbers of objects.

    Args:
        path: Of the file, grey or with a palette.
        size: Height and width that it must have.

    Returns:
        (H, W) numbers: 0 for the background, 255 for pixels that belong to nothing in particular.

    Raises:
        UnreadableImageError: If it cannot be read, or is of another kind or size.
    """
    height, width = size
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.size == (width, height) and image.mode in ("L", "P"):
                return np.asarray(image)
            got = f"mode {image.mode}, {image.width} x {image.height} pixels"
    except Exception as error:
        # Whatever damaged files make the decoder raise, as in `images`.
        raise UnreadableImageError(str(path), str(error) or type(error).__name__) from error
    expected = f"a PNG of 8 bits, grey or with a palette, {width} x {height} pixels"
    raise UnreadableImageError(str(path), f"expected {expected}, got {got}")


def _draw(mask: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    """Sets the pixels of a code in an empty (H, W) mask.

    Only between the object's first and last column, which makes it some ten times as fast as the
    library on COCO's objects; the picture is the same.
    """
    H = mask.shape[0]
    ends = np.cumsum(counts)
    if len(counts) < 2:
        return
    last = len(counts) // 2 * 2  # runs up to and with the last one inside
    first_column, end_column = int(ends[0]) // H, -(-int(ends[last - 1]) // H)
    lengths = np.empty(last + 1, np.int64)
    lengths[:last] = counts[:last]
    lengths[0] -= first_column * H
    lengths[last] = end_column * H - ends[last - 1]
    values = np.arange(last + 1, dtype=np.int64) % 2
    columns = np.repeat(values.astype(np.uint8), lengths).reshape(-1, H)
    mask[:, first_column:end_column] = columns.T


def _check_counts(counts: NDArray[np.int64] | NDArray[np.float64], height: int, width: int) -> None:
    if len(counts) and counts.min() < 0:
        raise ValueError("a negative count")
    total = counts.sum()
    if total != height * width:
        raise ValueError(f"counts for {total:,.0f} pixels, not {height} x {width}")
