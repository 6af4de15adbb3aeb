"""Label maps as index PNGs: a byte per pixel, shown in the colours of the classes.

Shape legend: H rows, W columns, K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wavevit.files import replacing

_IGNORED = 255
_MAX_CLASSES = 255
_VALUES = 256


def to_index_picture(
    labels: NDArray[np.uint8],
    palette: Sequence[Sequence[int]],
    *,
    reduce_zero_label: bool = False,
) -> Image.Image:
    """The label map as a picture with a palette, which any viewer shows in colours.

    Its values are those of the data set's own label files: with `reduce_zero_label` a class is
    stored one higher than its label, and 0 is what has no class, as in ADE20K. Otherwise a class is
    stored as its label, and 255 is what has no class.

    Args:
        labels: (H, W) in 0..K-1, or 255 for no class.
        palette: K colours: red, green and blue in 0..255. What has no class is black.
        reduce_zero_label: How the data set stores labels.

    Returns:
        Mode "P", one byte a pixel.

    Raises:
        ValueError: Not such labels, more than 255 classes, or a label without a colour.
    """
    K = len(palette)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"expected labels (H, W) in uint8, got {labels.dtype} {labels.shape}")
    if K > _MAX_CLASSES:
        raise ValueError(f"an index PNG holds up to {_MAX_CLASSES} classes, got {K}")
    table = np.zeros(_VALUES, np.uint8)
    first = int(reduce_zero_label)
    table[:K] = np.arange(first, K + first)
    table[_IGNORED] = 0 if reduce_zero_label else _IGNORED
    used = np.flatnonzero(np.bincount(labels.ravel(), minlength=_VALUES)[:_IGNORED])
    if len(used) and used[-1] >= K:
        raise ValueError(f"label {used[-1]} has no colour: the palette has {K}")
    colors = np.zeros((_VALUES, 3), np.uint8)
    colors[first : K + first] = np.asarray(palette, np.uint8).reshape(-1, 3)
    picture = Image.fromarray(table[labels])
    # All 256 colours: with fewer, Pillow packs several pixels into a byte, which not all read.
    picture.putpalette(colors.tobytes())
    return picture


def write_index_png(
    path: Path,
    labels: NDArray[np.uint8],
    palette: Sequence[Sequence[int]],
    *,
    reduce_zero_label: bool = False,
) -> None:
    """Writes a label map as `to_index_picture` makes it; a file is replaced in one step.

    Args:
        path: PNG file to write.
        labels: (H, W) in 0..K-1, or 255 for no class.
        palette: K colours: red, green and blue in 0..255.
        reduce_zero_label: How the data set stores labels.

    Raises:
        ValueError: Not such labels, more than 255 classes, or a label without a colour.
        OSError: The file cannot be written.
    """
    picture = to_index_picture(labels, palette, reduce_zero_label=reduce_zero_label)
    with replacing(path, durable=False) as partial:
        picture.save(partial, "PNG")
