"""The process of an isolated environment: `python -m hpcrl.envs.isolated_child SOCKET MEMORY TRACEBACK PARENT`.

SOCKET, MEMORY and TRACEBACK are numbers of open files, PARENT is the process of the rank. It serves one environment
until it is asked to close it, and ends when the rank does.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from hpcrl.envs.child_channel import CLOSE, MADE, PICKLED, RAISED, SHARED, STEP, Channel, Made, Message, Start
from hpcrl.envs.child_memory import SharedMemory
from hpcrl.envs.recipe import make

_PR_SET_PDEATHSIG = 1
#: Rewards that are the same as a float64.
_NUMBERS = (float, int, np.floating, np.integer)
_MEANT_FOR_THE_RANK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
#: Signals are handled on it, maybe all at once; each takes 3 KB, and more on processors with wider registers.
_SIGNAL_STACK = ctypes.create_string_buffer(1 << 18)


def main(arguments: Sequence[str]) -> None:
    """Serve the environment that the first message tells of."""
    end, memory_file, traceback_file, parent = map(int, arguments)
    _die_with(parent)
    for number in _MEANT_FOR_THE_RANK:
        # A handler, which what the environment starts doesn't inherit, as it would inherit that a signal is ignored.
        signal.signal(number, lambda *_: None)
    for file in (end, memory_file, traceback_file):
        os.set_inheritable(file, False)
    faulthandler.enable(traceback_file)
    faulthandler.register(signal.SIGQUIT, traceback_file)
    _make_room_for_signals()
    channel = Channel(socket.socket(fileno=end))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _Server(channel, memory_file).serve()


def _die_with(parent: int) -> None:
    """A process that hangs in C never sees that its socket was closed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


class _Stack(ctypes.Structure):
    """Linux's stack_t."""

    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


def _make_room_for_signals() -> None:
    """Replace the stack that faulthandler made for signals: all of them at once write beyond its 16 KB."""
    if sys.platform == "linux":
        stack = _Stack(ctypes.addressof(_SIGNAL_STACK), 0, len(_SIGNAL_STACK))
        ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None)


class _Server:
    """Answers the rank's requests."""

    def __init__(self, channel: Channel, memory_file: int) -> None:
        self._channel, self._memory_file = channel, memory_file

    def serve(self) -> None:
        """Make the environment and answer requests until one is to close it; EOFError when the rank has ended."""
        try:
            made = self._make(pickle.loads(self._channel.receive().body))
        except EOFError:
            raise
        except BaseException as error:
            self._channel.send(_raised(error))
            return
        self._channel.send(made)
        while (request := self._channel.receive()).kind != CLOSE:
            self._channel.send(self._answer(request))
        self._env.close()

    def _make(self, start: Start) -> Message:
        if start.python_path is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = start.python_path
        self._info_keys = start.info_keys
        self._env = make(start.recipe)
        self._slots = SharedMemory(self._memory_file, self._env.observation_space, self._env.action_space)
        return Message(MADE, body=pickle.dumps(_made(self._env), 5))

    def _answer(self, request: Message) -> Message:
        try:
            return self._step(request) if request.kind == STEP else self._reset(request)
        except BaseException as error:
            return _raised(error)

    def _step(self, request: Message) -> Message:
        action = pickle.loads(request.body) if request.body else self._slots.action.read()
        observation, reward, terminated, truncated, info = self._env.step(action)
        kept = self._kept(info)
        if not isinstance(reward, _NUMBERS) or not self._slots.observation.write(observation):
            return Message(PICKLED, body=pickle.dumps((observation, reward, terminated, truncated, kept), 5))
        return Message(SHARED, float(reward), bool(terminated), bool(truncated), _body(kept))

    def _reset(self, request: Message) -> Message:
        seed, options = pickle.loads(request.body)
        observation, info = self._env.reset(seed=seed, options=options)
        kept = self._kept(info)
        if not self._slots.observation.write(observation):
            return Message(PICKLED, body=pickle.dumps((observation, kept), 5))
        return Message(SHARED, body=_body(kept))

    def _kept(self, info: dict[str, Any]) -> dict[str, Any]:
        return {key: info[key] for key in self._info_keys if key in info}


def _body(kept: dict[str, Any]) -> bytes:
    return pickle.dumps(kept, 5) if kept else b""


def _made(env: gym.Env) -> Made:
    spec = env.spec
    try:
        pickle.dumps(spec)
    except Exception:
        spec = None
    return Made(env.observation_space, env.action_space, env.metadata, env.render_mode, spec)


def _raised(error: BaseException) -> Message:
    """What an exception says in one line, and its traceback."""
    summary = " ".join("".join(traceback.format_exception_only(error)).split())
    text = "".join(traceback.format_exception(error)).rstrip()
    return Message(RAISED, body=pickle.dumps((summary, text), 5))


if __name__ == "__main__":
    main(sys.argv[1:])
