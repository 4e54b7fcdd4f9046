"""The loss of every algorithm, by its name in the configuration."""

from __future__ import annotations

from typing import Any, Protocol

from hpcrl.algorithms.a2c import a2c_loss
from hpcrl.algorithms.appo import appo_loss
from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.bc import bc_loss
from hpcrl.algorithms.impala import impala_loss
from hpcrl.algorithms.loss import Loss, Normaliser, Targets
from hpcrl.algorithms.ppo import ppo_loss
from hpcrl.models.policy import Policy


class LossFunction(Protocol):
    """One loss over a batch; its `targets` are given back to the next update from the same batch."""

    def __call__(
        self,
        policy: Policy,
        batch: Batch,
        config: Any,
        entropy_coef: float,
        normalise: Normaliser | None,
        targets: Targets | None = None,
    ) -> Loss: ...


#: a3c has the loss of a2c: what differs is when gradients are applied.
LOSSES: dict[str, LossFunction] = {
    "a2c": a2c_loss,
    "ppo": ppo_loss,
    "a3c": a2c_loss,
    "impala": impala_loss,
    "appo": appo_loss,
    "bc": bc_loss,
}
