"""Stacks columns of several unrolls into one batch in the memory of an accelerator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.algorithms.batch import Batch, moved
from hpcrl.cluster.waiting import Waiter
from hpcrl.devices.accelerator import SHORT_SLEEP_S, Accelerator
from hpcrl.devices.stopwatch import Stopwatch
from hpcrl.roles.batching import STACKED, Batcher
from hpcrl.roles.inbox import Piece
from hpcrl.roles.uploads import Uploaded, Uploads
from hpcrl.spaces import Task
from hpcrl.unroll import NO_MEMORY, Memory, Unroll


class DeviceBatcher:
    """`Batcher` on an accelerator: unrolls go there when they arrive, and columns are joined there.

    Args:
        task, unroll_length, memory: see `Batcher`.
        accelerator: where batches are.
        waiter: of the rank.
    """

    def __init__(
        self, task: Task, unroll_length: int, accelerator: Accelerator, waiter: Waiter, memory: Memory = NO_MEMORY
    ) -> None:
        self._accelerator, self._waiter = accelerator, waiter
        self._uploads = Uploads(accelerator)
        self._empty = moved(Batcher(task, unroll_length, memory).batch, accelerator.device)
        self.batch, self.num_steps = self._empty, 0
        self.upload_bytes = 0
        self.watch: Stopwatch[Any] = Stopwatch(accelerator.copies.stamp)

    def arrived(self, unroll: Unroll) -> None:
        """Start to copy the unroll."""
        self.watch.begin()
        self.upload_bytes += self._uploads.begin(unroll)
        self.watch.lap("copy")

    def stack(self, pieces: Sequence[Piece]) -> None:
        """Join columns as `batch`; their unrolls may be overwritten afterwards."""
        self.num_steps = sum(int(unroll.valid[:, first:end].sum()) for unroll, first, end in pieces)
        if not pieces:
            self.batch = self._empty
            return
        uploaded = [self._uploads.of(unroll) for unroll, _, _ in pieces]
        self.batch = self._join(pieces, uploaded)
        used = self._accelerator.compute.mark()
        for each in uploaded:
            each.used = used
            assert each.arrived is not None
            self._waiter.until(each.arrived.is_passed, Phase.TRANSPORT, SHORT_SLEEP_S)

    def _join(self, pieces: Sequence[Piece], uploaded: Sequence[Uploaded]) -> Batch:
        device = self._accelerator.device
        both = list(zip(pieces, uploaded, strict=True))
        stacked = {
            name: torch.cat([getattr(there, name)[:, piece.first : piece.end] for piece, there in both], 1)
            for name in STACKED
        }
        first_envs = [piece.unroll.spec.first_env for piece in pieces]
        indices = [
            torch.arange(piece.first + first_env, piece.end + first_env, device=device)
            for piece, first_env in zip(pieces, first_envs, strict=True)
        ]
        finals, final_index = _finals(both)
        return Batch(
            **stacked,
            core_state=torch.cat([there.core_state[piece.first : piece.end] for piece, there in both]),
            env_index=torch.cat(indices),
            final_observation=torch.cat(finals) if finals else self._empty.final_observation,
            final_index=torch.cat(final_index) if final_index else self._empty.final_index,
        )


def _finals(both: Sequence[tuple[Piece, Uploaded]]) -> tuple[list[Tensor], list[Tensor]]:
    """Final observations of the columns of each piece, and their (t, b) in the batch."""
    observations, indices = [], []
    column = 0
    for (unroll, first, end), there in both:
        env = unroll.final_index[: unroll.num_finals, 1]
        if len(env):
            ours: Tensor | slice = slice(len(env))
            if end - first < unroll.spec.num_envs:
                chosen = np.flatnonzero((env >= first) & (env < end))
                ours = torch.from_numpy(chosen).to(there.final_index.device)
            index = there.final_index[ours].clone()
            index[:, 1] += column - first
            observations.append(there.final_observation[ours])
            indices.append(index)
        column += end - first
    return observations, indices
