"""What to say when memory runs out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What torch's allocators say on the CPU, where they have no error of their own.
_CPU = re.compile(r"DefaultCPUAllocator.*(?:can't|not enough) (?:allocate )?memory")


@contextmanager
def out_of_memory_explained(advice: str) -> Iterator[None]:
    """Inside, memory that cannot be had comes as one line with what to do about it.

    Args:
        advice: What to do.

    Raises:
        ValueError: The device has no memory left.
    """
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if not isinstance(error, torch.OutOfMemoryError) and not _CPU.search(text):
            raise
        raise ValueError(f"memory has run out ({text[:160]}); {advice}") from error
