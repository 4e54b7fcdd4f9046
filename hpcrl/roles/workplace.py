"""Where a learner computes: on the rank's own policy, or on a copy of it in the memory of an accelerator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hpcrl.activity import Phase
from hpcrl.algorithms.loss import STATISTICS, Loss
from hpcrl.algorithms.registry import LossFunction
from hpcrl.cluster.waiting import Waiter
from hpcrl.config import TrainConfig
from hpcrl.devices.accelerator import SHORT_SLEEP_S, Accelerator
from hpcrl.devices.compiling import How, not_compiled
from hpcrl.devices.nvml import Usage
from hpcrl.devices.stopwatch import HostStamp, Stopwatch
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.batching import Batcher
from hpcrl.roles.compiled_loss import CompiledLoss
from hpcrl.roles.device_batching import DeviceBatcher
from hpcrl.spaces import Task


class Workplace(ABC):
    """What a learner works on.

    Attributes:
        policy, flat: that it learns.
        batcher: makes its batches, where the policy is.
        watch: times the parts of an update.
    """

    policy: Policy
    flat: FlatParameters
    batcher: Batcher | DeviceBatcher
    watch: Stopwatch[Any]

    @abstractmethod
    def loss(self, function: LossFunction) -> Callable[..., Loss]:
        """A loss as it is computed here. Local."""

    @abstractmethod
    def take_over(self) -> None:
        """Begin with the rank's own weights. Local."""

    @abstractmethod
    def look_around(self) -> None:
        """Look after others between two parts of an update, where these were only begun. Local."""

    @abstractmethod
    def settle(self) -> None:
        """Wait, politely, until all that was begun is done. Local."""

    @abstractmethod
    def usage(self) -> Usage | None:
        """Of the accelerator; None on the host. Local."""

    @abstractmethod
    def deliver(self) -> None:
        """Give the rank's own policy the weights as they are now. Local."""


class OnHost(Workplace):
    """The rank's own policy.

    Args:
        policy, flat: of the rank.
        batcher: of its batches.
    """

    def __init__(self, policy: Policy, flat: FlatParameters, batcher: Batcher) -> None:
        self.policy, self.flat, self.batcher = policy, flat, batcher
        self.watch = Stopwatch(HostStamp)

    def loss(self, function: LossFunction) -> Callable[..., Loss]:
        return function

    def take_over(self) -> None:
        """They are the same."""

    def look_around(self) -> None:
        """The update comes first: it is what the host works at."""

    def settle(self) -> None:
        """The host does one thing after the other."""

    def usage(self) -> None:
        """There is none."""

    def deliver(self) -> None:
        """They are the same."""


class OnAccelerator(Workplace):
    """A copy of the rank's policy, whose weights go back to it after every batch.

    Args:
        policy: the copy, see `copy_of`.
        own: the rank's own weights.
        batcher: of its batches, on the accelerator.
        accelerator: where the copy is.
        waiter: of the rank.
        how: losses are compiled.
    """

    def __init__(
        self,
        policy: Policy,
        own: FlatParameters,
        batcher: DeviceBatcher,
        accelerator: Accelerator,
        waiter: Waiter,
        how: How = "none",
    ) -> None:
        self.policy, self.flat = policy, FlatParameters(policy, len(STATISTICS))
        self.batcher = batcher
        self.watch = Stopwatch(accelerator.compute.stamp)
        self._own, self._accelerator, self._waiter, self._how = own, accelerator, waiter, how
        accelerator.pin([own.weights.detach().numpy().view(np.uint8)])

    def loss(self, function: LossFunction) -> Callable[..., Loss]:
        return function if self._how == "none" else CompiledLoss(function, self._how)

    @torch.no_grad()
    def take_over(self) -> None:
        self.flat.weights.copy_(self._own.weights)

    def look_around(self) -> None:
        self._waiter.tick()

    def settle(self) -> None:
        self._waiter.until(self._accelerator.compute.mark().is_passed, Phase.LEARNING, SHORT_SLEEP_S)

    def usage(self) -> Usage:
        return self._accelerator.usage()

    def deliver(self) -> None:
        copies = self._accelerator.copies
        copies.wait_for(self._accelerator.compute.mark())
        copies.copy(self.flat.weights.detach(), self._own.weights.detach())
        self._waiter.until(copies.mark().is_passed, Phase.PUBLISHING, SHORT_SLEEP_S)


@torch.no_grad()
def copy_of(policy: Policy, config: TrainConfig, task: Task, accelerator: Accelerator) -> Policy:
    """A policy of the same kind on the accelerator; its weights are still to be set. Local."""
    with accelerator.device:
        made = Policy(task, config)
    if config.compile != "none" and made.core is not None:
        # Row by row a compiler takes minutes over it.
        made.core.forward = not_compiled(made.core.forward)  # type: ignore[method-assign]
        made.core.step = not_compiled(made.core.step)  # type: ignore[method-assign]
    # A user's model may have drawn some.
    for there, here in zip(made.buffers(), policy.buffers(), strict=True):
        there.copy_(here)
    return made
