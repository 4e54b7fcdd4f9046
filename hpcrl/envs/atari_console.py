"""An emulated Atari 2600: the emulator and the pictures, through ale-py and OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from hpcrl.errors import ConfigError, EnvironmentFailure

if TYPE_CHECKING:
    from ale_py import ALEInterface


def import_atari() -> tuple[Any, Any]:
    """The modules ale_py, whose games are then registered with Gymnasium, and cv2.

    Raises:
        ConfigError: one of them isn't installed.
    """
    try:
        import ale_py
        import cv2
    except ImportError as error:
        raise ConfigError(f"Atari games need ale-py and OpenCV ({error}), pip install 'hpcrl[atari]'.") from None
    gym.register_envs(ale_py)
    return ale_py, cv2


class Console:
    """One emulated console with one game in it, seen as gray frames.

    Args:
        game: ale-py's name, as ms_pacman.

    Attributes:
        ale: the emulator.

    Raises:
        ConfigError: ale-py or OpenCV isn't installed.
    """

    def __init__(self, game: str) -> None:
        self._ale_py, self._cv2 = import_atari()
        self._ale_py.ALEInterface.setLoggerMode(self._ale_py.LoggerMode.Error)
        self.ale: ALEInterface = self._ale_py.ALEInterface()
        # Neither matters without ALE's own sticky actions, whose memory would be missing in its saved states.
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.setInt("random_seed", 0)
        self.ale.loadROM(self._ale_py.roms.get_rom_path(game))
        self.ale.reset_game()
        self._power_on = self.ale.cloneState()
        height, width = self.ale.getScreenDims()
        self._frames = np.empty((2, height, width), np.uint8)
        self._first_frame = self.ale.getScreenGrayscale()

    def actions(self, full: bool) -> list[int]:
        """ALE's codes of the actions that the game uses, or of all."""
        chosen = self.ale.getLegalActionSet() if full else self.ale.getMinimalActionSet()
        return [action.value for action in chosen]

    def begin(self, actions: Sequence[int], out: NDArray[np.uint8]) -> None:
        """Switch the console on, play a frame with each of `actions`, and show the last frame in `out`."""
        self._rewind(self._power_on)
        for action in actions:
            self.ale.act(action)
        frame = self._frames[0]
        if actions:
            self.ale.getScreenGrayscale(frame)
        else:
            frame[...] = self._first_frame
        self._show(frame, out)

    def _rewind(self, state: Any) -> None:
        # In some games a reset alone leaves traces of what was played before; in others a state alone lacks whether the
        # emulator is in the middle of a frame. Together they begin all games of ale-py 0.12 exactly alike.
        self.ale.reset_game()
        self.ale.restoreState(state)

    def play(self, actions: Sequence[int], out: NDArray[np.uint8]) -> int:
        """Play a frame with each of `actions`, show the maximum of the last two in `out`; the score gained.

        After the end of a game ALE ignores actions, so the last frames are those of the end.
        """
        act, last = self.ale.act, len(actions) - 1
        reward = 0
        for number, action in enumerate(actions):
            reward += act(action)
            if number >= last - 1:
                self.ale.getScreenGrayscale(self._frames[number - last])
        frame = self._frames[0]
        if last:
            np.maximum(frame, self._frames[1], out=frame)
        self._show(frame, out)
        return reward

    def save(self, into: NDArray[np.uint8]) -> int:
        """Write the state of the game to the beginning of `into` [n]; how many bytes it takes.

        Raises:
            EnvironmentFailure: it takes more than n bytes.
        """
        state = self.ale.cloneState().serialize()
        if len(state) > len(into):
            raise EnvironmentFailure(
                f"the state of an Atari game takes {len(state)} bytes, {len(into)} are kept for it"
            )
        into[: len(state)] = np.frombuffer(state, np.uint8)
        return len(state)

    def load(self, state: NDArray[np.uint8]) -> None:
        """Go on where `save` wrote `state` [n].

        Raises:
            EnvironmentFailure: no state of this game.
        """
        try:
            self._rewind(self._ale_py.ALEState(state.tobytes()))
        except (RuntimeError, SystemError, ValueError, IndexError, MemoryError) as error:
            raise EnvironmentFailure(f"the state of an Atari game can't be restored: {error}") from error

    def _show(self, frame: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        self._cv2.resize(frame, out.shape, dst=out, interpolation=self._cv2.INTER_AREA)
