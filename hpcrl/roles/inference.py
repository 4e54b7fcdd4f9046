"""Where an actor's action distributions come from: its own network, or its learner's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.cluster.inference import AnswerChannel, QuestionChannel
from hpcrl.cluster.waiting import Waiter
from hpcrl.models.acting import ActingNetwork


class Answer(NamedTuple):
    """What the network says of a group's observations; parameters and state are valid until the next question.

    Attributes:
        parameters: float32 [b, P], of the action distributions.
        state: float32 [b, S], the recurrent state after the observations.
        version: of the weights, where they are not the actor's own; else None.
        value: float32 [b], of the observations, where it was asked for; else None.
    """

    parameters: Tensor
    state: Tensor
    version: int | None
    value: Tensor | None = None


class Inference(Protocol):
    """Parameters of action distributions, for each group of an actor's environments apart."""

    def begin(self) -> None:
        """Called before every unroll: use the weights at hand. Local."""

    def ask(self, group: int, observation: Tensor, state: Tensor) -> None:
        """Ask for the environments of a group. Local.

        Args:
            group: which.
            observation: [b, ...], what the policy sees; it and the state must stay as they are until the answer.
            state: float32 [b, S], the recurrent state before.
        """

    def answer(self, group: int) -> Answer:
        """To the last question about the group. Local."""


class OwnInference:
    """The actor's own network."""

    def __init__(self, network: ActingNetwork, num_groups: int) -> None:
        self._network = network
        self._questions = [(torch.empty(0), torch.empty(0))] * num_groups

    def begin(self) -> None:
        self._network.refresh()

    def ask(self, group: int, observation: Tensor, state: Tensor) -> None:
        self._questions[group] = observation, state

    def answer(self, group: int) -> Answer:
        parameters, state = self._network.step(*self._questions[group])
        return Answer(parameters, state, None, self._network.value)


class LearnerInference:
    """The learner's network.

    Args:
        channels: to it, one for each group.
        waiter: of the rank.
        with_value: whether answers have the value behind their parameters.
    """

    def __init__(self, channels: Sequence[QuestionChannel], waiter: Waiter, with_value: bool = False) -> None:
        self._channels, self._waiter = channels, waiter
        self._answers = []
        for channel in channels:
            answer, state = torch.from_numpy(channel.parameters), torch.from_numpy(channel.next_state)
            parameters, value = (answer[:, :-1], answer[:, -1]) if with_value else (answer, None)
            self._answers.append((parameters, state, value))

    def begin(self) -> None:
        """Nothing to do: the learner knows its weights."""

    def ask(self, group: int, observation: Tensor, state: Tensor) -> None:
        channel = self._channels[group]
        channel.observation[:] = observation.numpy()
        channel.state[:] = state.numpy()
        channel.ask()

    def answer(self, group: int) -> Answer:
        channel = self._channels[group]
        self._waiter.until(channel.is_answered)
        # Kept for the log-probabilities of the whole unroll, while the channel's memory is used again.
        parameters, state, value = self._answers[group]
        parameters = parameters.clone(memory_format=torch.contiguous_format)
        return Answer(parameters, state.clone(), int(channel.version[0]), None if value is None else value.clone())


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
            state = np.concatenate([channel.state for channel in asking])
            with torch.inference_mode():
                parameters, next_state = self._network.step(torch.from_numpy(observation), torch.from_numpy(state))
            reply(asking, parameters, next_state, self._version, self._network.value)
        self._waiter.activity.beat()
        return True

    def _take_new_weights(self) -> None:
        if (version := self._policy_version()) != self._version:
            self._network.refresh()
            self._version = version


def reply(
    channels: Sequence[AnswerChannel], parameters: Tensor, state: Tensor, version: int, value: Tensor | None = None
) -> None:
    """Give their answers to channels, whose environments lie one after the other. Local.

    Args:
        channels: that asked.
        parameters, state: float32 [b, P] and [b, S] of all of them.
        version: of the weights.
        value: float32 [b], where answers have it behind their parameters.
    """
    if value is not None:
        parameters = torch.cat([parameters, value[:, None]], 1)
    first = 0
    for channel in channels:
        end = first + len(channel.observation)
        channel.parameters[:] = parameters[first:end].numpy()
        channel.next_state[:] = state[first:end].numpy()
        channel.version[0] = version
        channel.reply()
        first = end
