"""A grid world with walls, whose optimal policy is known from a breadth-first search."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hpcrl.errors import ConfigError, EnvironmentFailure

#: (row, column) change of the actions 0 to 3: up, right, down, left.
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
STEPS_PER_SIDE = 4


class GridNavigation(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Find the goal in a size x size grid; a move into a wall or the border stays where it is.

    Observation: the cell one-hot, float32 [size * size], index row * size + column. Actions: `MOVES`. The reward
    is 1 on arriving at the goal, which terminates, and 0 otherwise; truncated after 4 * size steps. `reset`
    starts uniformly on the cells from which the goal can be reached, the goal itself excluded.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 (Gymnasium declares it so)

    def __init__(
        self,
        size: int = 8,
        walls: Sequence[Sequence[int]] = (),
        goal: Sequence[int] | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Builds the grid.

        Args:
            size: cells along each side, at least 2.
            walls: (row, column) of every blocked cell.
            goal: (row, column); the last cell if None.
            render_mode: None or "ansi".

        Raises:
            ConfigError: an argument is out of range, or the goal can't be reached from any other cell.
        """
        if render_mode not in (None, "ansi"):
            raise ConfigError(f"GridNavigation expected render_mode None or 'ansi', got {render_mode!r}.")
        self.size = _checked_size(size)
        self.render_mode = render_mode
        self.max_episode_steps = STEPS_PER_SIDE * self.size
        self._blocked = self._checked_walls(walls)
        self._goal = self._checked_goal(goal)
        self._next_cell = self._move_table()
        self._distances = self._search()
        self._starts = np.flatnonzero(self._distances > 0)
        if not self._starts.size:
            raise ConfigError(
                f"GridNavigation expected at least one cell from which goal {self.goal} can be reached, got none "
                f"with {int(self._blocked.sum())} walls on a grid of size {self.size}."
            )
        self.action_space = spaces.Discrete(len(MOVES))
        self.observation_space = spaces.Box(0.0, 1.0, (self.size * self.size,), np.float32)
        self._cell: int | None = None
        self._steps = 0

    @property
    def goal(self) -> tuple[int, int]:
        """(row, column) of the goal."""
        return divmod(self._goal, self.size)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Starts an episode on a random cell; returns the observation, float32 [size * size], and an empty info."""
        super().reset(seed=seed, options=options)
        self._cell = int(self._starts[self.np_random.integers(self._starts.size)])
        self._steps = 0
        return self._observation(), {}

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Moves once.

        Args:
            action: index into `MOVES`.

        Returns:
            The observation, float32 [size * size], the reward, terminated, truncated and an empty info.

        Raises:
            EnvironmentFailure: there is no episode under way, or the action is none of the four.
        """
        if self._cell is None or self._cell == self._goal or self._steps >= self.max_episode_steps:
            got = "one that was never reset" if self._cell is None else "a finished one"
            raise EnvironmentFailure(f"GridNavigation.step expected an episode under way, got {got}.")
        if not self.action_space.contains(action):
            raise EnvironmentFailure(f"GridNavigation.step expected an action of 0 to 3, got {action!r}.")
        self._cell = int(self._next_cell[self._cell, int(action)])
        self._steps += 1
        terminated = self._cell == self._goal
        truncated = self._steps >= self.max_episode_steps
        return self._observation(), float(terminated), terminated, truncated, {}

    def render(self) -> str | None:
        """Returns the grid as text: A the agent, G the goal, # walls and . free cells; None without render_mode."""
        if self.render_mode is None:
            return None
        symbols = np.where(self._blocked, "#", ".")
        symbols[self._goal] = "G"
        if self._cell is not None:
            symbols[self._cell] = "A"
        return "\n".join("".join(row) for row in symbols.reshape(self.size, self.size)) + "\n"

    def distances(self) -> NDArray[np.int64]:
        """Returns the fewest moves from each cell to the goal, int64 [size, size]; -1 for walls and unreachable."""
        return self._distances.reshape(self.size, self.size).copy()

    def get_state(self) -> dict[str, NDArray[np.int64]]:
        """Returns what an episode needs to go on: `position`, int64 [2] (row, column), and `steps`, int64 [].

        The generator of `reset` isn't part of it: reset with a seed to make the next episode reproducible.

        Raises:
            EnvironmentFailure: the environment was never reset.
        """
        if self._cell is None:
            raise EnvironmentFailure("GridNavigation.get_state expected an environment that was reset, got none.")
        position = np.array(divmod(self._cell, self.size), np.int64)
        return {"position": position, "steps": np.array(self._steps, np.int64)}

    def set_state(self, state: Mapping[str, NDArray[np.int64]]) -> None:
        """Goes on from a `get_state` of an environment with the same arguments.

        Args:
            state: `position`, int64 [2], and `steps`, int64 [].

        Raises:
            EnvironmentFailure: the state has other keys, shapes or dtypes, or can't occur on this grid.
        """
        position, steps = _checked_state(state)
        row, column = int(position[0]), int(position[1])
        inside = 0 <= row < self.size and 0 <= column < self.size
        if not inside or self._distances[row * self.size + column] < 0:
            raise EnvironmentFailure(
                f"GridNavigation.set_state expected a position from which goal {self.goal} can be reached, "
                f"got {(row, column)}."
            )
        if not 0 <= int(steps) <= self.max_episode_steps:
            raise EnvironmentFailure(
                f"GridNavigation.set_state expected steps of 0 to {self.max_episode_steps}, got {int(steps)}."
            )
        self._cell, self._steps = row * self.size + column, int(steps)

    def _observation(self) -> NDArray[np.float32]:
        observation = np.zeros(self.size * self.size, np.float32)
        observation[self._cell] = 1.0
        return observation

    def _flat(self, cell: Sequence[int], name: str) -> int:
        """Index of a (row, column) cell after checking that it lies on the grid."""
        try:
            row, column = (operator.index(number) for number in cell)
        except (TypeError, ValueError):
            raise ConfigError(f"GridNavigation expected {name} as (row, column) integers, got {cell!r}.") from None
        if not (0 <= row < self.size and 0 <= column < self.size):
            raise ConfigError(
                f"GridNavigation expected {name} with row and column of 0 to {self.size - 1}, got {(row, column)}."
            )
        return row * self.size + column

    def _checked_walls(self, walls: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
        """bool [size * size], True on walls."""
        blocked = np.zeros(self.size * self.size, np.bool_)
        for wall in walls:
            blocked[self._flat(wall, "a wall")] = True
        return blocked

    def _checked_goal(self, goal: Sequence[int] | None) -> int:
        cell = self.size * self.size - 1 if goal is None else self._flat(goal, "goal")
        if self._blocked[cell]:
            raise ConfigError(
                f"GridNavigation expected the goal on a free cell, got a wall at {divmod(cell, self.size)}."
            )
        return cell

    def _move_table(self) -> NDArray[np.int64]:
        """int64 [size * size, 4]: the cell in which each move from each cell ends."""
        rows, columns = np.divmod(np.arange(self.size * self.size), self.size)
        table = np.empty((self.size * self.size, len(MOVES)), np.int64)
        for action, (down, right) in enumerate(MOVES):
            row = np.clip(rows + down, 0, self.size - 1)
            column = np.clip(columns + right, 0, self.size - 1)
            target = row * self.size + column
            table[:, action] = np.where(self._blocked[target], rows * self.size + columns, target)
        return table

    def _search(self) -> NDArray[np.int64]:
        """int64 [size * size]: breadth-first distances; from the goal, as every move between free cells has its
        opposite."""
        distances = np.full(self.size * self.size, -1, np.int64)
        distances[self._goal] = 0
        queue = deque([self._goal])
        while queue:
            cell = queue.popleft()
            for neighbour in self._next_cell[cell].tolist():
                if distances[neighbour] < 0:
                    distances[neighbour] = distances[cell] + 1
                    queue.append(neighbour)
        return distances


def _checked_size(size: int) -> int:
    try:
        number = operator.index(size)
    except TypeError:
        raise ConfigError(f"GridNavigation expected an integer size of at least 2, got {size!r}.") from None
    if number < 2:
        raise ConfigError(f"GridNavigation expected a size of at least 2, got {number}.")
    return number


def _checked_state(state: Mapping[str, NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if set(state) != {"position", "steps"}:
        raise EnvironmentFailure(f"GridNavigation.set_state expected the keys position and steps, got {sorted(state)}.")
    position, steps = np.asarray(state["position"]), np.asarray(state["steps"])
    for name, array, shape in (("position", position, (2,)), ("steps", steps, ())):
        if array.shape != shape or array.dtype != np.int64:
            raise EnvironmentFailure(
                f"GridNavigation.set_state expected {name} as int64 {list(shape)}, "
                f"got {array.dtype} {list(array.shape)}."
            )
    return position, steps
