"""Environments that raise, hang or crash: each is closed, made anew, and begins another episode."""

from __future__ import annotations

import atexit
import signal
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from hpcrl.envs.autoreset import BROKEN, NextSeeds
from hpcrl.envs.isolated import MAKING_TIMEOUT_S, IsolatedEnv
from hpcrl.envs.restarts import BrokenEpisode, Restarts
from hpcrl.envs.sequential import SequentialEnvs
from hpcrl.envs.watch import Hung, Watch, guarded_call
from hpcrl.errors import ShapeError

_CLOSE_TIMEOUT_S = 10.0


class FragileEnvs(SequentialEnvs):
    """SequentialEnvs whose sub-environments may raise, hang or, where they are `IsolatedEnv`s, crash.

    One that does is closed. In a step its row is reported in the info, and waits for `reset_rows` (or a `reset` that
    includes it), which makes it anew. A reset that fails is tried again with the environment made anew. Where they
    all are IsolatedEnvs they step, and reset, all at once.

    Args:
        makers: make the sub-environments, at first and anew.
        timeout_s: seconds after which a step or reset counts as hung; None for no limit. IsolatedEnvs have their own.
            Others are only interrupted in the main thread, and not in C code.
        restarts: counts what breaks, and ends it.
        mask_size: as of SequentialEnvs.
    """

    def __init__(
        self,
        makers: Sequence[Callable[[], gym.Env]],
        timeout_s: float | None,
        restarts: Restarts,
        mask_size: int = 0,
    ) -> None:
        # Python may close what could not be made.
        self._broken: set[int] = set()
        self._is_isolated = False
        self._watch = Watch(None)
        self._env_index, self._episode_number = list(range(len(makers))), np.zeros(len(makers), np.int64)
        super().__init__(makers, mask_size)
        self.restarts = restarts
        self._is_isolated = all(isinstance(env, IsolatedEnv) for env in self.envs)
        self._timeout_s = None if self._is_isolated else timeout_s
        self._making_timeout_s = None if self._timeout_s is None else max(self._timeout_s, MAKING_TIMEOUT_S)
        self._watch = Watch(self._timeout_s)
        self._all_rows = range(self.num_envs)
        self._steps = [env.step for env in self.envs]
        self._seeds: list[int | None] = [None] * self.num_envs
        self._next_seeds: NextSeeds | None = None
        if self._timeout_s is not None:
            # When Python ends it puts the default handler back, which ends the process.
            atexit.register(signal.setitimer, signal.ITIMER_REAL, 0.0)

    def belong_to(
        self,
        env_index: NDArray[np.int64],
        episode_number: NDArray[np.int64],
        next_seeds: NextSeeds | None = None,
    ) -> None:
        """Tell which episodes these are.

        Args:
            env_index: global indices [num_envs].
            episode_number: of the running episodes [num_envs], for messages; the caller goes on writing to it.
            next_seeds: asked for another seed whenever a reset failed; None tries again with the same.
        """
        self._env_index, self._episode_number = env_index.tolist(), episode_number
        self._next_seeds = next_seeds

    def step(self, actions: NDArray) -> tuple[NDArray, NDArray, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """As SequentialEnvs.step.

        The info is empty, or holds `broken`, bool [num_envs]: rows that did not make the step. Their observations are
        those of before, their rewards 0, their flags false.

        Raises:
            EnvironmentFailure: more broke than `restarts` allows.
        """
        assert not self._broken, "an environment that broke must be reset before the next step"
        arguments = self._reader.rows(actions)
        if len(arguments) != self.num_envs:
            raise ShapeError(f"expected actions of {self.num_envs} environments, got {len(arguments)}")
        if self._is_isolated:
            for env, action in zip(self.envs, arguments, strict=True):
                env.send(action)  # type: ignore[attr-defined]
            steps = self._collect(self._all_rows, [IsolatedEnv.receive] * self.num_envs, self.envs)
        else:
            steps = self._collect(self._all_rows, self._steps, arguments)
        return self._gather_whole(steps) if self._broken else self._gather(steps)

    def _collect(self, rows: Sequence[int], calls: Sequence[Callable], arguments: Sequence[Any]) -> list[Any]:
        """What each call returns with its argument, in the order of their rows; None where it broke."""
        results: list[Any] = []
        while (first := len(results)) < len(rows):
            self._watch.begin(results, len(rows))
            # Around all of them, as most steps are whole: the results count how far it came.
            try:
                for call, argument in zip(calls[first:], arguments[first:], strict=True):
                    results.append(call(argument))
            except (Exception, Hung) as error:
                self._watch.pause()
                self._break(rows[len(results)], error)
                results.append(None)
        self._watch.pause()
        return results

    def _gather_whole(
        self, steps: Sequence[Any]
    ) -> tuple[NDArray, NDArray, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """As `_gather`, of the steps that are not None, beside zeros."""
        reward = np.zeros(self.num_envs, np.float64)
        terminated, truncated, broken = np.zeros((3, self.num_envs), np.bool_)
        for row, step in enumerate(steps):
            if step is None:
                broken[row] = True
                continue
            observation, reward[row : row + 1], terminated[row], truncated[row], info = step
            self._writer.write(row, observation, info)
        return self._memory, reward, terminated, truncated, {BROKEN: broken}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[NDArray, dict[str, Any]]:
        """As SequentialEnvs.reset; raises as `step`."""
        options = dict(options or {})
        rows = np.flatnonzero(options.pop("reset_mask", np.ones(self.num_envs, np.bool_))).tolist()
        if seed is None or isinstance(seed, int):
            seed = [seed if seed is None else seed + row for row in range(self.num_envs)]
        self._begin(rows, [seed[row] for row in rows], options or None)
        return self._memory, {}

    def reset_rows(self, rows: NDArray[np.intp], seeds: NDArray[np.int64]) -> NDArray:
        """As SequentialEnvs.reset_rows; raises as `step`."""
        chosen = rows.tolist()
        for row in chosen:
            if row not in self._broken:
                self.restarts.recovered(self._env_index[row])
        self._begin(chosen, seeds.tolist(), None)
        return self._memory[rows]

    def _begin(self, rows: Sequence[int], seeds: Sequence[int | None], options: dict[str, Any] | None) -> None:
        """Begin an episode in each of `rows`, however often that takes; write their first observations."""
        while rows:
            self._make_anew(rows)
            for row, seed in zip(rows, seeds, strict=True):
                self._seeds[row] = seed
            resets = self._reset_each(rows, seeds, options)
            for row, reset in zip(rows, resets, strict=True):
                if reset is not None:
                    self._writer.write(row, *reset)
            rows = [row for row, reset in zip(rows, resets, strict=True) if reset is None]
            seeds = [self._seeds[row] for row in rows]
            if rows and self._next_seeds is not None:
                seeds = self._next_seeds(np.array(rows)).tolist()

    def _reset_each(
        self, rows: Sequence[int], seeds: Sequence[int | None], options: dict[str, Any] | None
    ) -> list[tuple[Any, dict[str, Any]] | None]:
        envs = [self.envs[row] for row in rows]
        if not self._is_isolated:
            return self._collect(rows, [partial(_reset, env, options) for env in envs], seeds)
        for env, seed in zip(envs, seeds, strict=True):
            env.send_reset(seed, options)  # type: ignore[attr-defined]
        return self._collect(rows, [IsolatedEnv.receive_reset] * len(rows), envs)

    def _make_anew(self, rows: Iterable[int]) -> None:
        """Make those of `rows` that broke."""
        for row in rows:
            while row in self._broken:
                try:
                    env = guarded_call(self.env_fns[row], self._making_timeout_s)
                except Exception as error:
                    self._break(row, error)
                else:
                    self.envs[row], self._steps[row] = env, env.step
                    self._broken.remove(row)

    def _break(self, row: int, error: BaseException) -> None:
        """Close a sub-environment after `error`, and pause."""
        if row not in self._broken:
            self._close(row)
            self._broken.add(row)
        episode = BrokenEpisode(self._env_index[row], int(self._episode_number[row]), self._seeds[row])
        self.restarts.failed(episode, error)

    def _close(self, row: int) -> None:
        """Close a sub-environment, come what may; one in a process of its own takes care of that itself."""
        try:
            guarded_call(self.envs[row].close, None if self._is_isolated else _CLOSE_TIMEOUT_S)
        except Exception as error:
            message = f"environment {self._env_index[row]} could not be closed: {type(error).__name__}: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def replay(self, row: int, seed: int, actions: NDArray) -> NDArray | None:
        """As SequentialEnvs.replay; None too where the sub-environment breaks, which then waits for `reset_rows`."""
        self._make_anew([row])
        self._seeds[row] = seed
        limit = None if self._timeout_s is None else self._timeout_s * (1 + len(actions))
        try:
            return guarded_call(partial(super().replay, row, seed, actions), limit)
        except Exception as error:
            self._break(row, error)
            return None

    def close_extras(self, **_kwargs: Any) -> None:
        """Close all sub-environments; warns of those that fail, or take longer than 10 s."""
        rows = [row for row in range(len(getattr(self, "envs", []))) if row not in self._broken]
        for row in rows:
            if self._is_isolated:
                self.envs[row].send_close()  # type: ignore[attr-defined]
        for row in rows:
            self._close(row)
        self._watch.stop()


def _reset(env: gym.Env, options: dict[str, Any] | None, seed: int | None) -> tuple[Any, dict[str, Any]]:
    return env.reset(seed=seed, options=options)
