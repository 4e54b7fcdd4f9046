"""Memory that a rank shares with the process of an isolated environment: the newest observation and action."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

#: Arrays in shared memory begin at cache lines.
_ALIGNMENT = 64


class Slot:
    """Elements of a Box, Discrete, MultiDiscrete or MultiBinary space in shared memory."""

    def __init__(self, view: NDArray) -> None:
        self._view = view
        self._type = np.ndarray if view.shape else view.dtype.type

    def write(self, element: Any) -> bool:
        """Write it if it is exactly of the space's dtype and shape, so that the reader gets the same; whether it is."""
        view = self._view
        if type(element) is not self._type or element.dtype != view.dtype or element.shape != view.shape:
            return False
        view[...] = element
        return True

    def read(self) -> Any:
        """A copy of the element."""
        return self._view.copy() if self._view.shape else self._view[()]


class DictSlot:
    """Elements of a Dict or Tuple space in shared memory: a slot for each part."""

    def __init__(self, kind: type, slots: Mapping[Any, Slot | DictSlot]) -> None:
        self._kind, self._slots = kind, slots

    def write(self, element: Any) -> bool:
        """As `Slot.write`."""
        return self._has_parts(element) and all(slot.write(element[key]) for key, slot in self._slots.items())

    def _has_parts(self, element: Any) -> bool:
        if self._kind is dict:
            return type(element) is dict and element.keys() == self._slots.keys()
        return type(element) is tuple and len(element) == len(self._slots)

    def read(self) -> Any:
        """As `Slot.read`, the parts in the order of the space."""
        parts = {key: slot.read() for key, slot in self._slots.items()}
        return parts if self._kind is dict else tuple(parts.values())


class NoSlot:
    """Elements of any other space, which are never written."""

    def write(self, _element: Any) -> bool:
        """False."""
        return False

    def read(self) -> Any:
        """Not to be called."""
        raise AssertionError("nothing was written")


class SharedMemory:
    """An element of each of two spaces, in memory that two processes map.

    Args:
        file: open for reading and writing, the same in both processes; grows to the size that is needed.
        observation_space, action_space: of the environment.
    """

    def __init__(self, file: int, observation_space: gym.Space, action_space: gym.Space) -> None:
        self._size = 0
        places = [self._place(space) for space in (observation_space, action_space)]
        size = max(self._size, 1)  # nothing can't be mapped
        if os.fstat(file).st_size < size:
            os.ftruncate(file, size)
        memory = np.frombuffer(mmap.mmap(file, size), np.uint8)
        self.observation, self.action = (make_slot(memory) for make_slot in places)

    def _place(self, space: gym.Space) -> Callable[[NDArray[np.uint8]], Any]:
        """Take room for an element; what makes its slot once the memory is there."""
        if isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
            shape, dtype, first = space.shape or (), np.dtype(space.dtype), self._size
            end = first + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            self._size = -(-end // _ALIGNMENT) * _ALIGNMENT
            return lambda memory: Slot(memory[first:end].view(dtype).reshape(shape))
        if isinstance(space, (spaces.Dict, spaces.Tuple)):
            kind: type = dict if isinstance(space, spaces.Dict) else tuple
            items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
            places = {key: self._place(part) for key, part in items}
            return lambda memory: DictSlot(kind, {key: place(memory) for key, place in places.items()})
        return lambda _: NoSlot()
