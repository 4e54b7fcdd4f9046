"""How often environments may break: counted, with a pause after each time."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable
from typing import NamedTuple

from hpcrl.errors import EnvironmentFailure


class BrokenEpisode(NamedTuple):
    """In which episode an environment broke: global index of the environment, number and seed of the episode."""

    env_index: int
    number: int
    seed: int | None


class Restarts:
    """Counts how often the environments of a rank broke, and how often they still may.

    Before an environment is made anew there is a pause: `pause_s` seconds, twice as long each time that the same
    environment breaks without having finished an episode, at most `longest_pause_s`.

    Args:
        cap: restarts that are allowed.
        pause_s, longest_pause_s: in seconds.
        sleep: sleeps so many seconds.

    Attributes:
        count: restarts so far.
    """

    def __init__(
        self,
        cap: int,
        pause_s: float = 0.1,
        longest_pause_s: float = 10.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.count = 0
        self._cap, self._pause_s, self._longest_pause_s, self._sleep = cap, pause_s, longest_pause_s, sleep
        self._in_a_row: dict[int, int] = {}

    def failed(self, episode: BrokenEpisode, error: BaseException) -> None:
        """Count a failure, and pause.

        Raises:
            EnvironmentFailure: it was one more than may be, with the environment's own traceback.
        """
        index, number, seed = episode
        where = f"environment {index} broke in its episode {number} (seed {seed})"
        if self.count >= self._cap:
            text = "".join(traceback.format_exception(error)).rstrip()
            raise EnvironmentFailure(
                f"{where}, and --env-restarts {self._cap} allows this rank no further restart:\n{text}"
            ) from error
        self.count += 1
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        message = f"{where} and is made anew, restart {self.count} of at most {self._cap} on this rank: {reason}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        earlier = self._in_a_row.get(index, 0)
        self._in_a_row[index] = earlier + 1
        self._sleep(min(self._longest_pause_s, self._pause_s * 2.0 ** min(earlier, 100)))

    def recovered(self, env_index: int) -> None:
        """The environment finished an episode."""
        self._in_a_row.pop(env_index, None)
