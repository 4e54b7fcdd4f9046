"""Environments in processes of their own: a simulator that crashes, or hangs in C, does not take its rank along.

A child is started, never forked: MPI is initialised in the rank. Requests and answers are messages on a pair of
sockets; elements of spaces that are arrays lie in memory that both processes map, everything else is pickled.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Collection
from typing import Any

import gymnasium as gym
import numpy as np

from hpcrl.envs.child_channel import CLOSE, PICKLED, RAISED, RESET, STEP, Made, Message, Start
from hpcrl.envs.child_memory import SharedMemory
from hpcrl.envs.child_process import Child, Ending
from hpcrl.envs.recipe import Recipe
from hpcrl.errors import EnvironmentFailure
from hpcrl.spaces import ACTION_MASK

#: Making an environment may take longer than a step: it loads what it needs.
MAKING_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 5.0
#: For a process that has closed its socket, and so is about to end.
_DYING_TIMEOUT_S = 1.0


class IsolatedEnv(gym.Env[Any, Any]):
    """An environment in a process of its own, which looks like it: `step` and `reset` return what it returns.

    Only of its infos what is asked for comes along. Making one starts the process and returns; whatever needs the
    environment waits until it is made, so that many of them are made at once. Likewise `send` to all of them, then
    `receive` from each, steps all at once; `send_reset` and `receive_reset` do that for resets.

    After an EnvironmentFailure there is nothing left but to close it, but for one in which the environment raised.

    Args:
        recipe: how the environment is made, in its process.
        timeout_s: seconds after which a step or reset counts as hung, and the process is killed; None for no limit.
        info_keys: what comes along of its infos; must be picklable.

    Raises:
        EnvironmentFailure: (wherever an answer of the environment is needed) it raised, or can't be made, with its
            own traceback; its process ended, with how; or it gave no answer in time.
    """

    def __init__(
        self, recipe: Recipe, timeout_s: float | None = None, info_keys: Collection[str] = (ACTION_MASK,)
    ) -> None:
        self._name, self._timeout_s = recipe.env, timeout_s
        self._making_timeout_s = None if timeout_s is None else max(timeout_s, MAKING_TIMEOUT_S)
        self._made: Made | None = None
        self._slots: SharedMemory | None = None
        self._child: Child | None = Child(Start(recipe, tuple(info_keys), os.environ.get("PYTHONPATH")))
        self._asked_to_close = False
        self._deadline = 0.0
        self._began = time.monotonic()

    @property
    def observation_space(self) -> gym.Space:  # type: ignore[override]
        """The environment's."""
        return self._await_made().observation_space

    @property
    def action_space(self) -> gym.Space:  # type: ignore[override]
        """The environment's."""
        return self._await_made().action_space

    @property
    def metadata(self) -> dict[str, Any]:  # type: ignore[override]
        """The environment's."""
        return self._await_made().metadata

    @property
    def render_mode(self) -> str | None:  # type: ignore[override]
        """The environment's."""
        return self._await_made().render_mode

    @property
    def spec(self) -> Any:  # type: ignore[override]
        """The environment's; None where it has none, or one that can't be pickled."""
        return self._await_made().spec

    @property
    def pid(self) -> int | None:
        """Of the environment's process, None when that has ended."""
        return None if self._child is None else self._child.pid

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the environment's."""
        self.send(action)
        return self.receive()

    def send(self, action: Any) -> None:
        """Begin a step."""
        self._await_made()
        assert self._slots is not None
        body = b"" if self._slots.action.write(action) else pickle.dumps(action, 5)
        self._ask(Message(STEP, body=body))

    def receive(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """What the step that was begun returns."""
        answer = self._receive("a step", self._deadline, self._timeout_s)
        assert self._slots is not None
        if answer.kind == PICKLED:
            return pickle.loads(answer.body)
        info = pickle.loads(answer.body) if answer.body else {}
        return self._slots.observation.read(), answer.reward, answer.terminated, answer.truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's."""
        self.send_reset(seed, options)
        return self.receive_reset()

    def send_reset(self, seed: int | None, options: dict[str, Any] | None = None) -> None:
        """Begin a reset; the environment need not be made yet."""
        self._ask(Message(RESET, body=pickle.dumps((seed, options), 5)))

    def receive_reset(self) -> tuple[Any, dict[str, Any]]:
        """What the reset that was begun returns."""
        self._await_made()
        answer = self._receive("a reset", self._deadline, self._timeout_s)
        assert self._slots is not None
        if answer.kind == PICKLED:
            return pickle.loads(answer.body)
        return self._slots.observation.read(), pickle.loads(answer.body) if answer.body else {}

    def send_close(self) -> None:
        """Ask it to close, without waiting; `close` then waits until it has."""
        if self._child is not None and not self._asked_to_close:
            self._asked_to_close = True
            self._child.send(Message(CLOSE))

    def close(self) -> None:
        """Close the environment; its process is killed where that takes 5 s. Does nothing the second time."""
        if self._child is not None:
            self.send_close()
            self._let_go(_CLOSE_TIMEOUT_S)

    def _ask(self, message: Message) -> None:
        child = self._running()
        self._set_deadline()
        child.send(message)

    def _set_deadline(self) -> None:
        self._deadline = time.monotonic() + (np.inf if self._timeout_s is None else self._timeout_s)

    def _await_made(self) -> Made:
        if self._made is not None:
            return self._made
        limit = self._making_timeout_s
        answer = self._receive("being made", self._began + (np.inf if limit is None else limit), limit)
        made = pickle.loads(answer.body)
        self._slots = SharedMemory(self._running().memory_file, made.observation_space, made.action_space)
        self._made = made
        # What was asked ahead is only begun now.
        self._set_deadline()
        return made

    def _receive(self, what: str, deadline: float, limit_s: float | None) -> Message:
        """The answer to `what`, which had until `deadline`, `limit_s` seconds."""
        child = self._running()
        try:
            answer = child.receive(deadline)
        except TimeoutError:
            child.tell_where()
            traceback = self._let_go(0.0).traceback
            sentence = f"{self._name} hung in its process: no answer to {what} within {limit_s:g} s"
            raise EnvironmentFailure(_with(traceback, sentence)) from None
        except EOFError:
            how, traceback = self._let_go(_DYING_TIMEOUT_S)
            raise EnvironmentFailure(_with(traceback, f"{self._name}: the environment's process {how}")) from None
        if answer.kind == RAISED:
            summary, traceback = pickle.loads(answer.body)
            if self._made is None:
                self._let_go(_CLOSE_TIMEOUT_S)
            raise EnvironmentFailure(_with(traceback, f"{self._name} raised in its process: {summary}"))
        return answer

    def _running(self) -> Child:
        if self._child is None:
            raise EnvironmentFailure(f"{self._name}: the environment's process has ended")
        return self._child

    def _let_go(self, patience_s: float) -> Ending:
        child = self._running()
        self._child = None
        return child.end(patience_s)


def _with(traceback: str, sentence: str) -> str:
    return f"{sentence}\n{traceback}" if traceback else sentence
