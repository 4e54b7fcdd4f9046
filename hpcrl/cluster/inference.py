"""Questions from actors to their learner: observations up, parameters of action distributions down.

A recurrent state travels with both, so that the learner remembers nothing between two questions.
An actor asks for each group of its environments apart, so that it steps one while the other's answer is on its way.
On a node both lie in shared memory; between nodes they are messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hpcrl.cluster.mpi import MPI, Comm, Request
from hpcrl.cluster.shared_memory import CACHE_LINE, counters
from hpcrl.spaces import Space

#: Two messages of a group never travel at once, so a tag each way and group is enough.
_TAG = 20


@dataclass(frozen=True)
class QuestionSpec:
    """Sizes of one group's questions.

    Attributes:
        observation: space of one environment's observations.
        num_envs: b, environments of the group.
        num_parameters: P, numbers that describe one action distribution.
        state_size: S, numbers of one recurrent state.
    """

    observation: Space
    num_envs: int
    num_parameters: int
    state_size: int = 0

    @property
    def question_nbytes(self) -> int:
        """Bytes of the observations [b, ...] and the states [b, S]."""
        return _rounded(self.num_envs * self.observation.nbytes) + self._state_nbytes

    @property
    def answer_nbytes(self) -> int:
        """Bytes of the policy version, the parameters [b, P] and the states [b, S]."""
        return CACHE_LINE + _rounded(self.num_envs * self.num_parameters * 4) + self._state_nbytes

    @property
    def _state_nbytes(self) -> int:
        return _rounded(self.num_envs * self.state_size * 4)

    @property
    def nbytes(self) -> int:
        """Bytes of both with their counters, in shared memory."""
        return 2 * CACHE_LINE + self.question_nbytes + self.answer_nbytes

    def question(self, memory: NDArray[np.uint8]) -> tuple[NDArray, NDArray[np.float32]]:
        """Observations [b, ...] and states float32 [b, S] in a question's memory."""
        shape = (self.num_envs, *self.observation.shape)
        observation = memory[: self.num_envs * self.observation.nbytes].view(self.observation.dtype).reshape(shape)
        return observation, self._state(memory)

    def answer(self, memory: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """Version int64 [1], parameters float32 [b, P] and states float32 [b, S] in an answer's memory."""
        count = self.num_envs * self.num_parameters
        parameters = memory[CACHE_LINE:][: count * 4].view(np.float32)
        return memory[:8].view(np.int64), parameters.reshape(self.num_envs, self.num_parameters), self._state(memory)

    def _state(self, memory: NDArray[np.uint8]) -> NDArray[np.float32]:
        """At the end of either memory."""
        first, nbytes = len(memory) - self._state_nbytes, self.num_envs * self.state_size * 4
        return memory[first : first + nbytes].view(np.float32).reshape(self.num_envs, self.state_size)


class QuestionChannel(Protocol):
    """The actor's end of one group.

    Attributes:
        observation, state: [b, ...] and float32 [b, S], to be written before `ask`.
        version: int64 [1], of the weights that gave the last answer.
        parameters, next_state: float32 [b, P] and [b, S], the last answer.
    """

    observation: NDArray
    state: NDArray[np.float32]
    version: NDArray[np.int64]
    parameters: NDArray[np.float32]
    next_state: NDArray[np.float32]

    def ask(self) -> None:
        """Ask for `observation`. Local."""

    def is_answered(self) -> bool:
        """Whether the answer to the last question is there. Local."""


class AnswerChannel(Protocol):
    """The learner's end of one group.

    Attributes:
        observation, state: [b, ...] and float32 [b, S], of the question at hand.
        version: int64 [1], to be written before `reply`.
        parameters, next_state: float32 [b, P] and [b, S], to be written before `reply`.
    """

    observation: NDArray
    state: NDArray[np.float32]
    version: NDArray[np.int64]
    parameters: NDArray[np.float32]
    next_state: NDArray[np.float32]

    def is_asked(self) -> bool:
        """Whether there is a question without an answer. Local."""

    def reply(self) -> None:
        """Give the answer. Local."""


class SharedChannel:
    """Either end of one group in shared memory: questions and answers are counted."""

    def __init__(self, spec: QuestionSpec, memory: NDArray[np.uint8], fence: Callable[[], None]) -> None:
        self._asked, self._answered = counters(memory, 2)
        self._fence = fence
        question = memory[2 * CACHE_LINE :][: spec.question_nbytes]
        self.observation, self.state = spec.question(question)
        self.version, self.parameters, self.next_state = spec.answer(memory[2 * CACHE_LINE + spec.question_nbytes :])

    def ask(self) -> None:
        self._fence()
        self._asked[0] += 1
        self._fence()

    def is_answered(self) -> bool:
        self._fence()
        return bool(self._answered[0] == self._asked[0])

    def is_asked(self) -> bool:
        return not self.is_answered()

    def reply(self) -> None:
        self._fence()
        self._answered[0] += 1
        self._fence()


class MessageQuestions:
    """The actor's end between nodes."""

    def __init__(self, spec: QuestionSpec, group: int, world: Comm, learner: int) -> None:
        self._world, self._learner, self._tag = world, learner, _TAG + 2 * group
        self._outgoing = np.zeros(spec.question_nbytes, np.uint8)
        self._incoming = np.zeros(spec.answer_nbytes, np.uint8)
        self.observation, self.state = spec.question(self._outgoing)
        self.version, self.parameters, self.next_state = spec.answer(self._incoming)
        self._pending: list[Request] = []

    def ask(self) -> None:
        self._pending = [
            self._world.Irecv([self._incoming, MPI.BYTE], self._learner, self._tag + 1),
            self._world.Isend([self._outgoing, MPI.BYTE], self._learner, self._tag),
        ]

    def is_answered(self) -> bool:
        return all([request.Test() for request in self._pending])


class MessageAnswers:
    """The learner's end between nodes."""

    def __init__(self, spec: QuestionSpec, group: int, world: Comm, actor: int) -> None:
        self._world, self._actor, self._tag = world, actor, _TAG + 2 * group
        self._incoming = np.zeros(spec.question_nbytes, np.uint8)
        self._outgoing = np.zeros(spec.answer_nbytes, np.uint8)
        self.observation, self.state = spec.question(self._incoming)
        self.version, self.parameters, self.next_state = spec.answer(self._outgoing)
        self._receive = self._post()
        self._send: Request | None = None
        self._is_asked = False

    def _post(self) -> Request:
        return self._world.Irecv([self._incoming, MPI.BYTE], self._actor, self._tag)

    def is_asked(self) -> bool:
        if not self._is_asked:
            self._is_asked = bool(self._receive.Test())
        # The next question comes after the last answer went, but its send may not have been seen to end.
        return self._is_asked and (self._send is None or bool(self._send.Test()))

    def reply(self) -> None:
        self._send = self._world.Isend([self._outgoing, MPI.BYTE], self._actor, self._tag + 1)
        self._receive = self._post()
        self._is_asked = False

    def cancel(self) -> None:
        """Withdraw the receive of a question that won't come. Local."""
        if not self._is_asked:
            self._receive.Cancel()
            self._receive.Wait()
        if self._send is not None:
            self._send.Wait()


def group_sizes(num_envs: int) -> Sequence[int]:
    """Environments of an actor's groups: two halves that are in flight in turn."""
    return [size for size in (num_envs - num_envs // 2, num_envs // 2) if size]


def _rounded(nbytes: int) -> int:
    return -(-nbytes // CACHE_LINE) * CACHE_LINE
