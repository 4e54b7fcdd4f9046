"""CartPole with all sub-environments in numpy, each of which starts from its own seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from hpcrl.errors import ConfigError, EnvironmentFailure, ShapeError

_SEED_LIMIT = 2**63
_START_WIDTH = 0.1
# splitmix64 (Steele, Lea, Flood 2014) from the seed on: a tenth of Philox for the few rows of a reset. Its first four
# steps, uint64 [4, 1], and the shifts and factors of its finaliser.
_WEYL = np.array([[0x9E3779B97F4A7C15 * number % 2**64] for number in range(1, 5)], np.uint64)
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


class SeededCartPole(CartPoleVectorEnv):
    """Gymnasium's CartPole vector environment without autoreset and with a seed for every sub-environment.

    A sub-environment's episode depends on its seed and actions only, not on `num_envs` or its neighbours.
    Dynamics, rewards and spaces are those of `gymnasium.make("CartPole-v1")`; pass `max_episode_steps=200` for v0.
    """

    metadata = {  # noqa: RUF012 (Gymnasium declares it so)
        **CartPoleVectorEnv.metadata,
        "autoreset_mode": AutoresetMode.DISABLED,
    }
    # Rows x, x_dot, theta, theta_dot: float64 [4, num_envs], as the inherited `render` reads it.
    state: NDArray[np.float64]  # type: ignore[assignment]
    # int64 [num_envs]; -1 marks a sub-environment that was never reset.
    steps: NDArray[np.int64]  # type: ignore[assignment]

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int = 500,
        render_mode: str | None = None,
        sutton_barto_reward: bool = False,
    ) -> None:
        """Takes Gymnasium's arguments.

        Raises:
            ConfigError: `num_envs` or `max_episode_steps` is below 1.
        """
        for name, number in (("num_envs", num_envs), ("max_episode_steps", max_episode_steps)):
            if number < 1:
                raise ConfigError(f"SeededCartPole expected {name} of at least 1, got {number}.")
        super().__init__(num_envs, max_episode_steps, render_mode, sutton_barto_reward)
        self.state = np.zeros((4, num_envs))
        self.steps = np.full(num_envs, -1, np.int64)
        self.prev_done = np.ones(num_envs, np.bool_)
        self._limits = np.array([[self.x_threshold], [self.theta_threshold_radians]])
        self._forces = np.array([-self.force_mag, self.force_mag])
        self._ones = np.ones(num_envs, np.float32)
        # Memory of one step's terms; new arrays would cost as much as the sums in them.
        self._terms, self._change = np.empty((4, num_envs)), np.empty((4, num_envs))

    def reset(
        self,
        *,
        seed: int | Sequence[int] | NDArray[np.integer[Any]] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Starts an episode in every sub-environment, or in those of `options["reset_mask"]`.

        Args:
            seed: integers [num_envs] in [0, 2**63), those outside the mask unused; an int stands for seed,
                seed + 1, ...; None draws seeds from `np_random`, which `get_state` doesn't hold.
            options: may hold `reset_mask`, bool [num_envs].

        Returns:
            Observations, float32 [num_envs, 4], also of the sub-environments that go on; and an empty info.

        Raises:
            ConfigError: a seed is no integer in range, their number isn't `num_envs`, or an option is unknown.
            ShapeError: the mask has another shape or dtype.
        """
        mask = self._checked_mask(options)
        seeds = self._checked_seeds(seed)
        rows = np.arange(self.num_envs) if mask is None else mask.nonzero()[0]
        self.reset_rows(rows, seeds[rows])
        return self._observation(), {}

    def reset_rows(self, rows: NDArray[np.intp], seeds: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Starts an episode in each of `rows`, int [n], from `seeds`, int64 or uint64 [n] in [0, 2**63), unchecked.

        Returns:
            Their first observations, float32 [n, 4].
        """
        starts = _start_states(seeds)
        self.state[:, rows] = starts
        self.steps[rows] = 0
        self.prev_done[rows] = False
        return starts.T.astype(np.float32)

    def step(
        self, action: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Moves every sub-environment once; nothing it returns is written to later.

        Args:
            action: integers [num_envs], 0 left or 1 right.

        Returns:
            Observations, float32 [num_envs, 4]; rewards, float32 [num_envs]; terminated and truncated,
            bool [num_envs]; and an empty info.

        Raises:
            EnvironmentFailure: a sub-environment is finished or was never reset.
            ShapeError: the actions have another shape or dtype.
            ConfigError: an action is neither 0 nor 1.
        """
        if np.count_nonzero(self.prev_done):
            raise EnvironmentFailure(
                "SeededCartPole.step expected every sub-environment to have an episode under way, got finished or "
                f"never reset ones at {np.flatnonzero(self.prev_done)[:8].tolist()}."
            )
        self._check_actions(action)
        self._integrate(action)
        self.steps += 1
        terminated, truncated = self._terminated(), self.steps >= self.max_episode_steps
        self.prev_done = terminated | truncated
        return self._observation(), self._rewards(terminated), terminated, truncated, {}

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Returns copies of `state`, float64 [num_envs, 4], and `steps`, int64 [num_envs] (-1: never reset)."""
        return {"state": self.state.T.copy(), "steps": self.steps.copy()}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on exactly where `get_state` was called; finished sub-environments stay finished.

        Args:
            state: `state`, float64 [num_envs, 4], and `steps`, int64 [num_envs].

        Raises:
            EnvironmentFailure: the state has other keys, shapes or dtypes, or can't occur.
        """
        if set(state) != {"state", "steps"}:
            raise EnvironmentFailure(
                f"SeededCartPole.set_state expected the keys state and steps, got {sorted(state)}."
            )
        values = _checked_array(state["state"], "state", (self.num_envs, 4), np.float64)
        steps = _checked_array(state["steps"], "steps", (self.num_envs,), np.int64)
        if not np.isfinite(values).all() or steps.min() < -1 or steps.max() > self.max_episode_steps:
            raise EnvironmentFailure(
                f"SeededCartPole.set_state expected finite states and steps of -1 to {self.max_episode_steps}, "
                f"got {int((~np.isfinite(values)).sum())} not finite and steps of {steps.min()} to {steps.max()}."
            )
        self.state, self.steps = np.array(values.T, order="C"), steps.copy()
        self.prev_done = self._terminated() | (self.steps >= self.max_episode_steps) | (self.steps < 0)

    def _integrate(self, action: NDArray[np.integer[Any]]) -> None:
        """One Euler step, with the terms of CartPoleEnv.step in its order, so that every bit is the same."""
        theta, theta_dot = self.state[2], self.state[3]
        costheta, sintheta, temp, other = self._terms
        x_acceleration, theta_acceleration = self._change[1], self._change[3]
        np.cos(theta, out=costheta)
        np.sin(theta, out=sintheta)
        # temp = (force + polemass_length * theta_dot**2 * sintheta) / total_mass
        np.square(theta_dot, out=temp)
        temp *= self.polemass_length
        temp *= sintheta
        temp += self._forces[action]
        temp /= self.total_mass
        # thetaacc = (gravity * sintheta - costheta * temp) / (length * (4 / 3 - masspole * costheta**2 / total_mass))
        np.square(costheta, out=other)
        other *= self.masspole
        other /= self.total_mass
        np.subtract(4.0 / 3.0, other, out=other)
        other *= self.length
        sintheta *= self.gravity
        np.multiply(costheta, temp, out=theta_acceleration)
        np.subtract(sintheta, theta_acceleration, out=theta_acceleration)
        theta_acceleration /= other
        # xacc = temp - polemass_length * thetaacc * costheta / total_mass
        np.multiply(theta_acceleration, self.polemass_length, out=other)
        other *= costheta
        other /= self.total_mass
        np.subtract(temp, other, out=x_acceleration)
        self._change[0::2] = self.state[1::2]
        self._change *= self.tau
        self.state += self._change

    def _observation(self) -> NDArray[np.float32]:
        """float32 [num_envs, 4]."""
        observation = np.empty((self.num_envs, 4), np.float32)
        observation[...] = self.state.T
        return observation

    def _terminated(self) -> NDArray[np.bool_]:
        """bool [num_envs]: the cart or the pole is out of bounds."""
        outside = np.abs(self.state[0::2], out=self._terms[:2]) > self._limits
        return np.asarray(outside[0] | outside[1], np.bool_)

    def _rewards(self, terminated: NDArray[np.bool_]) -> NDArray[np.float32]:
        if self._sutton_barto_reward:
            return -terminated.astype(np.float32)
        return self._ones.copy()

    def _check_actions(self, action: NDArray[np.integer[Any]]) -> None:
        # In place of action_space.contains, which takes longer than the dynamics of 64 sub-environments.
        if not isinstance(action, np.ndarray) or action.shape != (self.num_envs,) or action.dtype.kind not in "iu":
            raise ShapeError(
                f"SeededCartPole.step expected actions as an integer array [{self.num_envs}], got {_kind(action)}."
            )
        if int(np.bitwise_or.reduce(action)) >> 1:
            raise ConfigError(f"SeededCartPole.step expected actions of 0 or 1, got {action.min()} to {action.max()}.")

    def _checked_mask(self, options: dict[str, Any] | None) -> NDArray[np.bool_] | None:
        if not options:
            return None
        if set(options) != {"reset_mask"}:
            raise ConfigError(f"SeededCartPole.reset expected the option reset_mask, got {sorted(options)}.")
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ShapeError(
                f"SeededCartPole.reset expected reset_mask as bool array [{self.num_envs}], got {_kind(mask)}."
            )
        return mask

    def _checked_seeds(self, seed: int | Sequence[int] | NDArray[np.integer[Any]] | None) -> NDArray[np.uint64]:
        """uint64 [num_envs]."""
        if seed is None:
            return self.np_random.integers(_SEED_LIMIT, size=self.num_envs, dtype=np.uint64)
        if isinstance(seed, (int, np.integer)):
            first = int(seed)
            if first >= 0:
                VectorEnv.reset(self, seed=first)
            seed = [first + index for index in range(self.num_envs)]
        seeds = np.asarray(seed)
        if seeds.shape != (self.num_envs,) or seeds.dtype.kind not in "iu":
            raise ConfigError(
                f"SeededCartPole.reset expected {self.num_envs} integer seeds in [0, 2**63), got {_kind(seeds)}."
            )
        if seeds.min() < 0 or seeds.max() >= _SEED_LIMIT:
            raise ConfigError(f"SeededCartPole.reset expected seeds in [0, 2**63), got {seeds.min()} to {seeds.max()}.")
        return seeds.astype(np.uint64)


def _start_states(seeds: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """float64 [4, n] in [-0.05, 0.05), column i from seed i alone, int64 or uint64 [n]."""
    words = seeds.view(np.uint64) + _WEYL
    for shift, factor in _MIX:
        words ^= words >> shift
        words *= factor
    # The high half is all that counts, to which the finaliser's last shift adds next to nothing.
    words >>= np.uint64(32)
    states = words.astype(np.float64)
    states *= _START_WIDTH * 2.0**-32
    states -= _START_WIDTH / 2
    return states


def _checked_array(array: Any, name: str, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        raise EnvironmentFailure(
            f"SeededCartPole.set_state expected {name} as {np.dtype(dtype)} {list(shape)}, got {_kind(array)}."
        )
    return array


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
