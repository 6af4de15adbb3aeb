"""Flat arrays that every loader worker sees and none has to itself, however it was started."""

from multiprocessing.context import get_spawning_popen
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T", bound=np.generic)


class SharedArray(Generic[T]):
    """A one-dimensional array to be read by any number of processes.

    A forked worker shares its parent's memory anyway. When a worker is spawned (also by a fork
    server), the array moves to shared memory, once for all workers, instead of being copied into
    each of them. Any other pickling copies the values.

    Args:
        array: (N,) numbers of any type; not to be changed afterwards.
    """

    def __init__(self, array: NDArray[T]) -> None:
        if array.ndim != 1:
            raise ValueError(f"expected a flat array, got the shape {array.shape}")
        self._dtype = array.dtype
        # Bytes, because torch does not know every type of number that numpy has.
        flat = np.require(array, requirements=["C", "W"])
        self._bytes = torch.from_numpy(flat.view(np.uint8))
        self._view: NDArray[T] | None = None

    def __len__(self) -> int:
        return len(self.array)

    @property
    def array(self) -> NDArray[T]:
        """(N,) a view of the memory; it stays valid as long as it is held."""
        if self._view is None:
            # Kept, as several are looked at for every image, and torch takes its time.
            self._view = self._bytes.numpy().view(self._dtype)
        return self._view

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None:
            return SharedArray, (self.array,)
        if not self._bytes.is_shared():
            # A new tensor: moving the old one would pull the memory from under views of it.
            self._bytes = self._bytes.clone().share_memory_()
            self._view = None
        return _from_bytes, (self._bytes, self._dtype)


def _from_bytes(tensor: Tensor, dtype: np.dtype[T]) -> SharedArray[T]:
    result: SharedArray[T] = SharedArray(np.empty(0, dtype))
    result._bytes, result._view = tensor, None
    return result
