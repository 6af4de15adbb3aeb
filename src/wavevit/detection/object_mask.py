"""The pixels of one object, small enough to keep thousands of them for one large picture.

Legend: H W rows and columns of a picture, h w those of a window of it.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

_FASTEST = 1  # of zlib's levels; the others save little on masks


@dataclass(frozen=True)
class ObjectMask:
    """A binary mask: the window of the picture that holds all of the object, packed.

    Some hundred bytes for most objects, where a picture of 10,000 x 10,000 pixels would take 100
    megabytes for each.

    Attributes:
        top: First row of the window.
        left: First column of the window.
        height: Rows h of the window; 0 for an empty mask.
        width: Columns w of the window.
        packed: Its bits, row after row, compressed by zlib.
    """

    top: int
    left: int
    height: int
    width: int
    packed: bytes

    @classmethod
    def of(cls, pixels: NDArray[np.bool_], top: int = 0, left: int = 0) -> "ObjectMask":
        """The mask of a window, trimmed to the object.

        Args:
            pixels: ``(h, w)`` bool.
            top: Row of the picture where the window begins.
            left: Column of the picture where the window begins.
        """
        rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        if len(rows) == 0:
            return cls(top, left, 0, 0, b"")
        first_row, first_column = int(rows[0]), int(columns[0])
        tight = pixels[first_row : rows[-1] + 1, first_column : columns[-1] + 1]
        height, width = tight.shape
        packed = zlib.compress(np.packbits(tight).tobytes(), _FASTEST)
        return cls(top + first_row, left + first_column, height, width, packed)

    @classmethod
    def union(cls, masks: Sequence["ObjectMask"]) -> "ObjectMask":
        """The pixels of any of several masks.

        Args:
            masks: At least one, of the same picture.
        """
        filled = [mask for mask in masks if mask.height]
        if len(filled) < 2:
            return filled[0] if filled else masks[0]
        top, left = min(mask.top for mask in filled), min(mask.left for mask in filled)
        bottom = max(mask.top + mask.height for mask in filled)
        right = max(mask.left + mask.width for mask in filled)
        window = np.zeros((bottom - top, right - left), np.bool_)
        for mask in filled:
            y, x = mask.top - top, mask.left - left
            window[y : y + mask.height, x : x + mask.width] |= mask.pixels()
        return cls.of(window, top, left)

    def pixels(self) -> NDArray[np.bool_]:
        """``(h, w)`` bool, the window."""
        if self.height == 0:
            return np.zeros((0, 0), np.bool_)
        bits = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        window = np.unpackbits(bits, count=self.height * self.width)
        return window.view(np.bool_).reshape(self.height, self.width)

    def pasted(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """``(H, W)`` bool, the mask in the whole picture.

        Args:
            size: H and W; the window lies inside.
        """
        picture = np.zeros(size, np.bool_)
        rows = slice(self.top, self.top + self.height)
        picture[rows, self.left : self.left + self.width] = self.pixels()
        return picture

    def moved(self, rows: int, columns: int) -> "ObjectMask":
        """The mask further down and to the right.

        Args:
            rows: How far down, pixels.
            columns: How far to the right, pixels.
        """
        return replace(self, top=self.top + rows, left=self.left + columns)
