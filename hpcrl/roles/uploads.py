"""Unrolls on their way to an accelerator: a slot is copied as it is, when it arrives, and taken apart there."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcrl.devices.accelerator import Accelerator, Mark
from hpcrl.unroll import Unroll


class Uploaded:
    """An unroll in the accelerator's memory: views by the table of fields, named as an unroll's arrays.

    Attributes:
        arrived: passed once all of it is there.
        used: passed once nobody reads it any more.
    """

    def __init__(self, unroll: Unroll, memory: Tensor) -> None:
        self.arrived: Mark | None = None
        self.used: Mark | None = None
        self._unroll, self._memory = unroll, memory
        self._source = torch.from_numpy(unroll.buffer)
        base = unroll.buffer.ctypes.data
        self._views: dict[str, Tensor] = {}
        for field in unroll.spec.fields:
            array = getattr(unroll, field.name)
            first = array.ctypes.data - base
            dtype = getattr(torch, field.dtype.name)
            self._views[field.name] = memory[first : first + array.nbytes].view(dtype).view(field.shape)

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self._views[name]
        except KeyError:
            raise AttributeError(name) from None

    def begin(self, accelerator: Accelerator) -> int:
        """Queue the copy of all fields; of the table of final observations only the rows in use; its bytes. Local."""
        copies = accelerator.copies
        if self.used is not None:
            copies.wait_for(self.used)
        unroll = self._unroll
        base = unroll.buffer.ctypes.data
        finals = unroll.final_observation
        first = finals.ctypes.data - base
        used = first + finals[: unroll.num_finals].nbytes
        rest = unroll.final_index.ctypes.data - base
        parts = ((0, used), (rest, unroll.spec.nbytes))
        for start, end in parts:
            if start < end:
                copies.copy(self._source[start:end], self._memory[start:end])
        self.arrived = copies.mark()
        return sum(end - start for start, end in parts)


class Uploads:
    """Unrolls in the memory of an accelerator, each in a place of its own there.

    Args:
        accelerator: where they go.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        # Slots are used again and again, so there are no more than actors have.
        self._places: dict[int, tuple[Unroll, Uploaded]] = {}

    def begin(self, unroll: Unroll) -> int:
        """Start to copy an unroll that has arrived, which must stay as it is until all is there; its bytes. Local."""
        known = self._places.get(id(unroll))
        if known is None or known[0] is not unroll:
            memory = torch.empty(unroll.spec.nbytes, dtype=torch.uint8, device=self._accelerator.device)
            known = unroll, Uploaded(unroll, memory)
            # The place may be one that something queued still uses.
            known[1].used = self._accelerator.compute.mark()
            self._places[id(unroll)] = known
        return known[1].begin(self._accelerator)

    def of(self, unroll: Unroll) -> Uploaded:
        """The unroll as the accelerator has it: what computes with it from now on waits until it is there. Local."""
        uploaded = self._places[id(unroll)][1]
        assert uploaded.arrived is not None
        self._accelerator.compute.wait_for(uploaded.arrived)
        return uploaded
