"""Reading a validation set once before a run, so that it does not fail at its first evaluation."""

import logging
from typing import Any

from lightning_fabric import Fabric

from wavevit.data.loading import SampleSource, find_unreadable
from wavevit.training.processes import gather

logger = logging.getLogger(__name__)


def check_images(
    fabric: Fabric,
    images: SampleSource[Any],
    *,
    may_leave_out: bool,
    num_workers: int,
    timeout_s: float,
) -> tuple[list[int], dict[str, str]]:
    """Which images of a validation set can be read, and why the others cannot.

    Args:
        fabric: The processes, each of which reads a share.
        images: The set.
        may_leave_out: Whether images that cannot be read may be left out, as long as others are
            left: the user has not chosen them for validation.
        num_workers: Processes that read; 0 reads in this one.
        timeout_s: Longest wait for one of them, seconds; 0 waits for ever.

    Returns:
        Indices of the readable images, and the reasons of the others by sample id.

    Raises:
        ValueError: An image cannot be read and must not be left out.
        LoaderError: A process that loads images died.
    """
    mine = find_unreadable(
        images,
        num_workers=num_workers,
        rank=fabric.global_rank,
        num_processes=fabric.world_size,
        timeout_s=timeout_s,
    )
    num_images = len(images)
    found = {index: reason for part in gather(fabric, mine) for index, reason in part.items()}
    kept = [index for index in range(num_images) if index not in found]
    if not found:
        return kept, {}
    unreadable = {key: value for index in sorted(found) for key, value in found[index].items()}
    example = next(iter(unreadable.values()))
    if not may_leave_out or not kept:
        raise ValueError(
            f"{len(unreadable)} of {num_images} validation images cannot be read, and "
            f"evaluation does not skip: {example}; list them with `wavevit check-data`"
        )
    logger.warning(
        "%d of the images held out for validation cannot be read and are left out: %s",
        len(unreadable),
        example,
    )
    return kept, unreadable
