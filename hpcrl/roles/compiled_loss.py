"""A loss, compiled: batches get one of a few shapes, and what changes from update to update becomes tensors."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.loss import Loss, Normaliser, Targets
from hpcrl.algorithms.registry import LossFunction
from hpcrl.devices.compiling import How, compiled, not_compiled, roomy, step_begins
from hpcrl.models.policy import Policy

#: Widths of batches from each power of two to the next: at most a quarter of the columns is added.
_WIDTHS = 4
_FEWEST_FINALS = 8
_COLUMNS_FIRST = ("core_state", "env_index")
_FINALS = ("final_observation", "final_index")


class CompiledLoss:
    """A loss over batches on an accelerator, compiled when it is first called; its results are the loss's.

    Args:
        function: the loss.
        how: "kernels" or "graphs".
    """

    def __init__(self, function: LossFunction, how: How) -> None:
        self._plain, self._compiled = function, compiled(function, how)
        # One object for all updates, as the compiler looks whether it is the same.
        self._outside = not_compiled(self._normalised)
        self._normalise: Normaliser | None = None
        self._num_finals = _FEWEST_FINALS

    def __call__(
        self,
        policy: Policy,
        batch: Batch,
        config: Any,
        entropy_coef: float,
        normalise: Normaliser | None,
        targets: Targets | None = None,
        **coefficients: float,
    ) -> Loss:
        if not batch.env_index.numel():
            return self._plain(policy, batch, config, entropy_coef, normalise, targets, **coefficients)
        width = roomy(len(batch.env_index), _WIDTHS)
        self._num_finals = max(self._num_finals, roomy(len(batch.final_index), 1))
        batch = with_finals(widened(batch, width), self._num_finals)
        if targets is not None:
            targets = Targets(*(_with_zeros(each, width, 1) for each in targets))
        self._normalise = normalise
        step_begins()
        loss = self._compiled(
            policy,
            batch,
            config,
            torch.full((), entropy_coef, device=batch.reward.device) if entropy_coef else 0.0,
            None if normalise is None else self._outside,
            targets,
            **{name: torch.full((), value, device=batch.reward.device) for name, value in coefficients.items()},
        )
        if loss.targets is not None:
            kept = Targets(*(each.clone() for each in loss.targets)) if targets is None else targets
            return loss._replace(targets=kept)
        return loss

    def _normalised(self, advantages: Tensor, valid: Tensor) -> Tensor:
        assert self._normalise is not None
        return self._normalise(advantages, valid)


def widened(batch: Batch, width: int) -> Batch:
    """The batch with columns of ignored rows behind its own, `width` in all."""
    return replace(
        batch,
        **{
            field.name: _with_zeros(getattr(batch, field.name), width, 0 if field.name in _COLUMNS_FIRST else 1)
            for field in fields(Batch)
            if field.name not in _FINALS
        },
    )


def with_finals(batch: Batch, number: int) -> Batch:
    """The batch with `number` final observations, those that are added without an effect.

    The last one comes again; without any it is the observation that follows the first row anyway.
    """
    observation, index = batch.final_observation, batch.final_index
    if not len(index):
        observation, index = batch.observation[1:2, 0], index.new_zeros(1, 2)
    last = torch.arange(number, device=index.device).clamp_(max=len(index) - 1)
    return replace(batch, final_observation=observation[last], final_index=index[last])


def _with_zeros(field: Tensor, size: int, axis: int) -> Tensor:
    """The field with zeros behind it, so that it is as long along the axis."""
    shape = list(field.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([field, field.new_zeros(shape)], axis) if shape[axis] else field
