"""Chunks that were taken apart, kept while there is room: the newest used ones."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from numpy.typing import NDArray


class ChunkCache:
    """Threads may share it. A pickled one is empty.

    Args:
        limit_bytes: of all that is kept.

    Attributes:
        nbytes: of what is kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._arrays: OrderedDict[Hashable, NDArray] = OrderedDict()
        self.nbytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], NDArray]) -> NDArray:
        """The array of a key, made where it is not here; not to be written to."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        # Made twice at worst, but by threads that don't wait for one another.
        array = make()
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = array
                self.nbytes += array.nbytes
            while self.nbytes > self._limit_bytes:
                self.nbytes -= self._arrays.popitem(last=False)[1].nbytes
        return array

    def __reduce__(self) -> tuple[type[ChunkCache], tuple[int]]:
        return ChunkCache, (self._limit_bytes,)
