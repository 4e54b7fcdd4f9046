"""The loss of every algorithm, by its name in the configuration, or a user's own in its place."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from hpcrl.algorithms.a2c import a2c_loss
from hpcrl.algorithms.appo import appo_loss
from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.bc import bc_loss
from hpcrl.algorithms.impala import impala_loss
from hpcrl.algorithms.loss import Loss, Normaliser, Targets
from hpcrl.algorithms.ppo import ppo_loss
from hpcrl.config import ActorCriticConfig
from hpcrl.errors import ConfigError
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


def loss_of(config: ActorCriticConfig) -> LossFunction:
    """The loss that `config.loss` names: the algorithm's own, or a user's `package.module:function`.

    Raises:
        ConfigError: there is no such function.
    """
    if config.loss == "auto":
        return LOSSES[config.algorithm]
    module, separator, name = config.loss.partition(":")
    if not (module and separator and name):
        raise ConfigError(f"--loss must be auto or package.module:function, got {config.loss!r}")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--loss {config.loss} can't be imported: {error}") from error
    if not callable(function):
        raise ConfigError(f"--loss {config.loss} must be a function, got {type(function).__name__}")
    return function
