"""Where an actor's action distributions come from: its own network, or its learner's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.cluster.inference import AnswerChannel, QuestionChannel
from hpcrl.cluster.waiting import Waiter
from hpcrl.models.acting import ActingNetwork


class Inference(Protocol):
    """Parameters of action distributions, for each group of an actor's environments apart."""

    def begin(self) -> None:
        """Called before every unroll: use the weights at hand. Local."""

    def ask(self, group: int, observation: Tensor) -> None:
        """Ask for the environments of a group; observation [b, ...] must stay as it is until the answer. Local."""

    def answer(self, group: int) -> tuple[Tensor, int | None]:
        """Parameters float32 [b, P] for the last question, and the version of the weights where it is not the actor's.

        Valid until the next question. Local.
        """


class OwnInference:
    """The actor's own network."""

    def __init__(self, network: ActingNetwork, num_groups: int) -> None:
        self._network = network
        self._questions = [torch.empty(0)] * num_groups

    def begin(self) -> None:
        self._network.refresh()

    def ask(self, group: int, observation: Tensor) -> None:
        self._questions[group] = observation

    def answer(self, group: int) -> tuple[Tensor, int | None]:
        return self._network.parameters_of(self._questions[group]), None


class LearnerInference:
    """The learner's network."""

    def __init__(self, channels: Sequence[QuestionChannel], waiter: Waiter) -> None:
        self._channels, self._waiter = channels, waiter
        self._answers = [torch.from_numpy(channel.parameters) for channel in channels]

    def begin(self) -> None:
        """Nothing to do: the learner knows its weights."""

    def ask(self, group: int, observation: Tensor) -> None:
        channel = self._channels[group]
        channel.observation[:] = observation.numpy()
        channel.ask()

    def answer(self, group: int) -> tuple[Tensor, int | None]:
        channel = self._channels[group]
        self._waiter.until(channel.is_answered)
        # Kept for the log-probabilities of the whole unroll, while the channel's memory is used again.
        return self._answers[group].clone(), int(channel.version[0])


class AnsweringService:
    """The learner's side: answers all questions that are there with one pass of its network.

    Args:
        network: with the learner's weights.
        channels: of all groups of all actors of this learner.
        policy_version: learner updates in the weights.
        waiter: of the rank.
    """

    def __init__(
        self,
        network: ActingNetwork,
        channels: Sequence[AnswerChannel],
        policy_version: Callable[[], int],
        waiter: Waiter,
    ) -> None:
        self._network, self._channels, self._waiter = network, channels, waiter
        self._policy_version = policy_version
        self._version = -1

    def serve(self) -> bool:
        """Answer what has been asked; whether there was anything. Local."""
        asking = [channel for channel in self._channels if channel.is_asked()]
        if not asking:
            return False
        with self._waiter.activity.during(Phase.INFERENCE):
            self._take_new_weights()
            observation = np.concatenate([channel.observation for channel in asking])
            with torch.inference_mode():
                parameters = self._network.parameters_of(torch.from_numpy(observation)).numpy()
            first = 0
            for channel in asking:
                count = len(channel.observation)
                channel.parameters[:] = parameters[first : first + count]
                channel.version[0] = self._version
                channel.reply()
                first += count
        self._waiter.activity.beat()
        return True

    def _take_new_weights(self) -> None:
        if (version := self._policy_version()) != self._version:
            self._network.refresh()
            self._version = version
