"""A learner's answers to its actors, computed on an accelerator: one pass is under way while the next one gathers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.cluster.inference import AnswerChannel
from hpcrl.cluster.waiting import Waiter
from hpcrl.devices.accelerator import Accelerator, Mark
from hpcrl.devices.compiling import How, compiled, roomy
from hpcrl.models.acting import ActingNetwork
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.inference import reply


class DeviceNetwork:
    """A policy that answers on a queue of its own, beside the updates of the one that it follows.

    Args:
        policy: on the accelerator, of its own memory; takes over the weights of the other.
        learned: weights of the policy that learns.
        accelerator: of both.
        num_envs: most environments of one pass.
        num_parameters: P, numbers that describe one action distribution.
        how: updates are compiled. Passes are compiled as "kernels" under "graphs" too: all that torch replays uses
            the same memory, and a pass may be under way beside an update.
        with_value: answers have the value behind their parameters.
    """

    def __init__(
        self,
        policy: Policy,
        learned: FlatParameters,
        accelerator: Accelerator,
        num_envs: int,
        num_parameters: int,
        how: How = "none",
        with_value: bool = False,
    ) -> None:
        self._accelerator, self._queue = accelerator, accelerator.new_queue()
        self._learned, self._flat = learned, FlatParameters(policy)
        self._network = ActingNetwork(policy, with_value)
        self._is_compiled = how != "none"
        self._step = compiled(self._answers, "kernels" if self._is_compiled else "none")
        dtype = getattr(torch, policy.space.dtype)
        # Questions and answers on the host, and the questions there.
        self.observation = accelerator.pinned(torch.empty(num_envs, *policy.space.shape, dtype=dtype))
        self.state = accelerator.pinned(torch.empty(num_envs, policy.state_size))
        self.parameters = accelerator.pinned(torch.empty(num_envs, num_parameters))
        self.next_state = accelerator.pinned(torch.empty(num_envs, policy.state_size))
        self._asked = self.observation.to(accelerator.device, copy=True)
        self._before = self.state.to(accelerator.device, copy=True)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the weights as they will be once all updates that were begun are done."""
        queue, compute = self._queue, self._accelerator.compute
        queue.wait_for(compute.mark())
        with queue.active():
            self._flat.weights.copy_(self._learned.weights)
            self._network.refresh()
        # The next update changes what is being read.
        compute.wait_for(queue.mark())

    def begin(self, num_rows: int) -> Mark:
        """Answer the first rows of `observation` and `state`, which stay as they are until the mark is passed."""
        queue = self._queue
        queue.copy(self.observation[:num_rows], self._asked[:num_rows])
        queue.copy(self.state[:num_rows], self._before[:num_rows])
        computed = self._num_computed(num_rows)
        with queue.active(), torch.inference_mode():
            answers = self._step(self._asked[:computed], self._before[:computed])
        for answer, target in zip(answers, (self.parameters, self.next_state), strict=True):
            queue.copy(answer[:num_rows], target[:num_rows])
        return queue.mark()

    def _answers(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        parameters, state = self._network.step(observation, state)
        value = self._network.value
        return parameters if value is None else torch.cat([parameters, value[:, None]], 1), state

    def _num_computed(self, num_rows: int) -> int:
        """Rows of a pass; compiled ones have few sizes, and answer what was asked before once more."""
        return min(len(self._asked), roomy(num_rows, 1)) if self._is_compiled else num_rows


class DeviceAnsweringService:
    """`AnsweringService` on an accelerator.

    Args:
        network: that follows the learner's weights.
        channels: of all groups of all actors of this learner.
        policy_version: learner updates in the weights.
        waiter: of the rank.
    """

    def __init__(
        self,
        network: DeviceNetwork,
        channels: Sequence[AnswerChannel],
        policy_version: Callable[[], int],
        waiter: Waiter,
    ) -> None:
        self._network, self._channels, self._waiter = network, channels, waiter
        self._policy_version = policy_version
        self._version = -1
        self._asking: list[AnswerChannel] = []
        self._mark: Mark | None = None

    def serve(self) -> bool:
        """Answer the questions of a pass that is over, and begin the next one; whether one is under way. Local."""
        if self._mark is not None:
            if not self._mark.is_passed():
                return True
            self._answer()
        asking = [channel for channel in self._channels if channel.is_asked()]
        if not asking:
            return False
        with self._waiter.activity.during(Phase.INFERENCE):
            if (version := self._policy_version()) != self._version:
                self._network.refresh()
                self._version = version
            self._mark = self._network.begin(self._gather(asking))
            self._asking = asking
        self._waiter.activity.beat()
        return True

    def _gather(self, asking: Sequence[AnswerChannel]) -> int:
        """Questions into the network's memory, one channel after the other; their rows."""
        num_rows = sum(len(channel.observation) for channel in asking)
        network = self._network
        np.concatenate([channel.observation for channel in asking], out=network.observation[:num_rows].numpy())
        np.concatenate([channel.state for channel in asking], out=network.state[:num_rows].numpy())
        return num_rows

    def _answer(self) -> None:
        with self._waiter.activity.during(Phase.INFERENCE):
            reply(self._asking, self._network.parameters, self._network.next_state, self._version)
        self._asking, self._mark = [], None
