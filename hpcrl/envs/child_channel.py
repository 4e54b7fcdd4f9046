"""Messages between a rank and the process of an isolated environment."""

from __future__ import annotations

import select
import socket
import struct
from typing import Any, NamedTuple

import gymnasium as gym

from hpcrl.envs.recipe import Recipe

# What messages are. From the rank:
START, STEP, RESET, CLOSE = b"m", b"s", b"r", b"c"
# From the child:
MADE, SHARED, PICKLED, RAISED = b"d", b"o", b"p", b"e"


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
