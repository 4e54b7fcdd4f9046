"""Environments in processes of their own: a simulator that crashes, or hangs in C, does not take its rank along.

A child is started, never forked: MPI is initialised in the rank. Requests and answers are messages on a pair of
sockets; elements of spaces that are arrays lie in memory that both processes map, everything else is pickled.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hpcrl.errors import ConfigError, EnvironmentFailure
from hpcrl.spaces import ACTION_MASK

#: Variables by which a process takes itself for a rank, or an environment's own MPI would.
LAUNCHER_PREFIXES = ("OMPI_", "OPAL_", "PMIX_", "PMI_", "PRTE_", "HYDRA_", "MPIR_", "MPIEXEC_", "MPI4PY_", "SLURM_")
#: Making an environment may take longer than a step: it loads what it needs.
MAKING_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 5.0
_LOOK_EVERY_S = 1.0
_DUMP_S = 0.1
_LONGEST_DUMP = 1 << 16
#: Arrays in shared memory begin at cache lines.
_ALIGNMENT = 64

# What messages are. From the rank:
START, STEP, RESET, CLOSE = b"m", b"s", b"r", b"c"
# From the child:
MADE, SHARED, PICKLED, RAISED = b"d", b"o", b"p", b"e"


@dataclass(frozen=True)
class Call:
    """A callable as `package.module:name`, and the keyword arguments that it gets."""

    path: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How one environment is made, in any process; it can be pickled where its arguments can.

    Attributes:
        env: Gymnasium id, `package.module:id`, or `package.module:function` that makes one.
        kwargs: what it is made with.
        wrappers: called one after the other, each with what the one before made as its first argument.
    """

    env: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[Call, ...] = ()


def make(recipe: Recipe) -> gym.Env:
    """The environment, without Gymnasium's wrappers that check the order of calls and what is returned.

    Raises:
        ConfigError: what was made is no environment.
        Exception: whatever the environment raises, or `gymnasium.error.Error` for an id that is not registered.
    """
    module, _, name = recipe.env.rpartition(":")
    function = getattr(importlib.import_module(module), name, None) if module else None
    env = function(**recipe.kwargs) if callable(function) else _make_registered(name, recipe.kwargs)
    for wrapper in recipe.wrappers:
        module, _, name = wrapper.path.rpartition(":")
        env = getattr(importlib.import_module(module), name)(env, **wrapper.kwargs)
    if not isinstance(env, gym.Env):
        raise ConfigError(f"{recipe.env} must make a gymnasium.Env, got {type(env).__name__}")
    return env


def _make_registered(name: str, kwargs: Mapping[str, Any]) -> gym.Env:
    spec = copy.copy(gym.spec(name))
    spec.order_enforce = False
    return gym.make(spec, disable_env_checker=True, **kwargs)


class Message(NamedTuple):
    """A message: what it is, how a step ended where it is the answer to one, and the rest."""

    kind: bytes
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    body: bytes = b""


class Channel:
    """One end of a pair of stream sockets that carries messages."""

    _HEADER = struct.Struct("<cd??Q")

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)

    def send(self, message: Message) -> None:
        """Raises BrokenPipeError or ConnectionResetError where nobody is at the other end."""
        kind, reward, terminated, truncated, body = message
        self._socket.sendall(self._HEADER.pack(kind, reward, terminated, truncated, len(body)) + body)

    def wait(self, timeout_s: float) -> bool:
        """Whether there is something to receive, the end included, within `timeout_s` seconds."""
        return bool(self._poll.poll(max(0.0, timeout_s) * 1000))

    def receive(self) -> Message:
        """The next message; EOFError where the other end is closed."""
        kind, reward, terminated, truncated, size = self._HEADER.unpack(self._read(self._HEADER.size))
        return Message(kind, reward, terminated, truncated, self._read(size) if size else b"")

    def _read(self, size: int) -> bytes:
        data = self._read_some(size)
        # A signal may cut it short.
        while len(data) < size:
            data += self._read_some(size - len(data))
        return data

    def _read_some(self, size: int) -> bytes:
        try:
            data = self._socket.recv(size, socket.MSG_WAITALL)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        return data

    def close(self) -> None:
        """The other end reads EOF from now on."""
        self._socket.close()


class Slot:
    """Elements of a Box, Discrete, MultiDiscrete or MultiBinary space in shared memory."""

    def __init__(self, view: NDArray) -> None:
        self._view = view
        self._type = np.ndarray if view.shape else view.dtype.type

    def write(self, element: Any) -> bool:
        """Write it if it is exactly of the space's dtype and shape, so that the reader gets the same; whether it is."""
        view = self._view
        if type(element) is not self._type or element.dtype != view.dtype or element.shape != view.shape:
            return False
        view[...] = element
        return True

    def read(self) -> Any:
        """A copy of the element."""
        return self._view.copy() if self._view.shape else self._view[()]


class DictSlot:
    """Elements of a Dict or Tuple space in shared memory: a slot for each part."""

    def __init__(self, kind: type, slots: Mapping[Any, Slot | DictSlot]) -> None:
        self._kind, self._slots = kind, slots

    def write(self, element: Any) -> bool:
        """As `Slot.write`."""
        return self._has_parts(element) and all(slot.write(element[key]) for key, slot in self._slots.items())

    def _has_parts(self, element: Any) -> bool:
        if self._kind is dict:
            return type(element) is dict and element.keys() == self._slots.keys()
        return type(element) is tuple and len(element) == len(self._slots)

    def read(self) -> Any:
        """As `Slot.read`, the parts in the order of the space."""
        parts = {key: slot.read() for key, slot in self._slots.items()}
        return parts if self._kind is dict else tuple(parts.values())


class NoSlot:
    """Elements of any other space, which are never written."""

    def write(self, _element: Any) -> bool:
        """False."""
        return False

    def read(self) -> Any:
        """Not to be called."""
        raise AssertionError("nothing was written")


class SharedMemory:
    """An element of each of two spaces, in memory that two processes map.

    Args:
        file: open for reading and writing, the same in both processes; grows to the size that is needed.
        observation_space, action_space: of the environment.
    """

    def __init__(self, file: int, observation_space: gym.Space, action_space: gym.Space) -> None:
        self._size = 0
        places = [self._place(space) for space in (observation_space, action_space)]
        size = max(self._size, 1)  # nothing can't be mapped
        if os.fstat(file).st_size < size:
            os.ftruncate(file, size)
        memory = np.frombuffer(mmap.mmap(file, size), np.uint8)
        self.observation, self.action = (make_slot(memory) for make_slot in places)

    def _place(self, space: gym.Space) -> Callable[[NDArray[np.uint8]], Any]:
        """Take room for an element; what makes its slot once the memory is there."""
        if isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
            shape, dtype, first = space.shape or (), np.dtype(space.dtype), self._size
            end = first + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            self._size = -(-end // _ALIGNMENT) * _ALIGNMENT
            return lambda memory: Slot(memory[first:end].view(dtype).reshape(shape))
        if isinstance(space, (spaces.Dict, spaces.Tuple)):
            kind: type = dict if isinstance(space, spaces.Dict) else tuple
            items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
            places = {key: self._place(part) for key, part in items}
            return lambda memory: DictSlot(kind, {key: place(memory) for key, place in places.items()})
        return lambda _: NoSlot()


class Start(NamedTuple):
    """What a child needs to know first.

    Attributes:
        recipe: how its environment is made.
        info_keys: what the rank wants of the infos.
        python_path: the value of PYTHONPATH that programs of the environment's own get, None for none.
    """

    recipe: Recipe
    info_keys: tuple[str, ...]
    python_path: str | None


class Made(NamedTuple):
    """What a child tells of its environment once it is made."""

    observation_space: gym.Space
    action_space: gym.Space
    metadata: dict[str, Any]
    render_mode: str | None
    spec: Any


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables of a child: it is no rank, and finds modules where this process does."""
    ours = {name: value for name, value in environment.items() if not name.startswith(LAUNCHER_PREFIXES)}
    return ours | {"PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)}


class Ending(NamedTuple):
    """How a child ended, and where it crashed or hung as far as it could tell, else ""."""

    how: str
    traceback: str


class _Child:
    """The process of one environment. Making it does not wait until it runs."""

    def __init__(self, start: Start) -> None:
        first = Message(START, body=pickle.dumps(start, 5))
        ours, its = socket.socketpair()
        self.memory_file, self._dump_file = _anonymous_file("observations"), _anonymous_file("traceback")
        fds = (its.fileno(), self.memory_file, self._dump_file)
        arguments = map(str, (*fds, os.getpid()))
        # A group of its own: Ctrl-C and a launcher's signals are meant for the rank, and what the environment starts
        # in its turn can be ended together with it.
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "hpcrl.envs.isolated_child", *arguments],
                env=child_environment(os.environ),
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        self._channel = Channel(ours)
        self.send(first)

    def send(self, message: Message) -> None:
        """Send it; where the child is dead, `receive` will tell."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.send(message)

    def receive(self, deadline: float) -> Message:
        """Its next message.

        Args:
            deadline: in seconds of time.monotonic.

        Raises:
            TimeoutError: there was none in time.
            EOFError: it is dead, or about to die.
        """
        # Where it forked, somebody else holds its socket open.
        while not self._channel.wait(min(_LOOK_EVERY_S, deadline - time.monotonic())):
            if self._has_ended() and not self._channel.wait(0):
                raise EOFError
            if time.monotonic() >= deadline:
                raise TimeoutError
        return self._channel.receive()

    def _has_ended(self) -> bool:
        """Whether it is dead; it stays unreaped, so that its number and its group's remain its own."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def tell_where(self) -> None:
        """Let it write down where it is, for `end`; in C too."""
        self._process.send_signal(signal.SIGQUIT)
        time.sleep(_DUMP_S)

    def end(self, patience_s: float) -> Ending:
        """End it and its group, after so many seconds to end by itself, and let go of all."""
        give_up = time.monotonic() + patience_s
        while not self._has_ended() and time.monotonic() < give_up:
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        traceback = os.pread(self._dump_file, _LONGEST_DUMP, 0).decode(errors="replace").strip()
        self._channel.close()
        os.close(self.memory_file)
        os.close(self._dump_file)
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        return Ending(how, traceback)


def _anonymous_file(name: str) -> int:
    """A file that goes with the last process that has it open; in memory, where the system offers that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"hpcrl-{name}")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


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
        self._child: _Child | None = _Child(Start(recipe, tuple(info_keys), os.environ.get("PYTHONPATH")))
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
            how, traceback = self._let_go(_LOOK_EVERY_S)
            raise EnvironmentFailure(_with(traceback, f"{self._name}: the environment's process {how}")) from None
        if answer.kind == RAISED:
            summary, traceback = pickle.loads(answer.body)
            if self._made is None:
                self._let_go(_CLOSE_TIMEOUT_S)
            raise EnvironmentFailure(_with(traceback, f"{self._name} raised in its process: {summary}"))
        return answer

    def _running(self) -> _Child:
        if self._child is None:
            raise EnvironmentFailure(f"{self._name}: the environment's process has ended")
        return self._child

    def _let_go(self, patience_s: float) -> Ending:
        child = self._running()
        self._child = None
        return child.end(patience_s)


def _with(traceback: str, sentence: str) -> str:
    return f"{sentence}\n{traceback}" if traceback else sentence
