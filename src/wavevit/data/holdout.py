"""Holding a validation split out of a data set that has none."""

import hashlib
import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def choose_val(
    sample_ids: Iterable[str], labels: NDArray[np.int64], *, fraction: float, seed: int
) -> NDArray[np.bool_]:
    """(N,) True for the images to hold out: of each class, those with the smallest hashes.

    A file's hash depends on the seed and its own id only. So its side does not depend on other
    classes, and changes with its own class only where the number to hold out does.

    Args:
        sample_ids: N ids.
        labels: (N,) class of each.
        fraction: Part of each class, in (0, 1). A class of two or more images gets at least one on
            each side; a single image is not held out.
        seed: Any integer.

    Returns:
        The choice.
    """
    key = str(seed).encode()
    ranks = np.fromiter((_rank(sample_id, key) for sample_id in sample_ids), np.uint64, len(labels))
    order = np.lexsort((ranks, labels))
    classes, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    is_val = np.zeros(len(labels), np.bool_)
    for start, count in zip(starts[: len(classes)], counts, strict=True):
        if count >= 2:
            num_val = min(max(round(int(count) * fraction), 1), int(count) - 1)
            is_val[order[start : start + num_val]] = True
    return is_val


def _rank(sample_id: str, key: bytes) -> int:
    digest = hashlib.blake2b(os.fsencode(sample_id), digest_size=8, key=key).digest()
    return int.from_bytes(digest, "little")
