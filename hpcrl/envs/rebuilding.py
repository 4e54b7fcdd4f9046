"""Environments that raise, hang or crash: each is closed, made anew, and begins another episode."""

from __future__ import annotations

import atexit
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence, Sized
from functools import partial
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from hpcrl.envs.autoreset import BROKEN, NextSeeds
from hpcrl.envs.isolated import MAKING_TIMEOUT_S, IsolatedEnv
from hpcrl.envs.sequential import SequentialEnvs
from hpcrl.errors import EnvironmentFailure, ShapeError

_T = TypeVar("_T")
_CLOSE_TIMEOUT_S = 10.0
_TICKS = 4


class Hung(BaseException):
    """Raised in the middle of a call that takes too long; no Exception, as many an environment catches all of those."""


class Watch:
    """Interrupts a call in this process that makes no progress, by a timer that is not touched from call to call.

    The timer ticks four times in `timeout_s`; a call that four ticks in a row find where it was is interrupted, so
    between 1 and 1.25 `timeout_s` after it began. Ticks are counted, not seconds, as a process that was stopped in
    between did not hang. The timer stops at the first tick that finds nothing to watch.

    Main thread only. What hangs in C code, without ever coming back to Python, is not interrupted. Watches may begin
    and stop one within the other: the timer and the handler of SIGALRM that were there go on afterwards.

    Args:
        timeout_s: None watches nothing.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._is_on = timeout_s is None  # one that watches nothing is never turned on
        self._progress: Sized | None = None
        self._end = 0
        self._seen: tuple[Sized | None, int] = None, 0
        self._ticks = 0
        self._before: tuple[Any, float, float] = None, 0.0, 0.0

    def begin(self, progress: Sized, end: int) -> None:
        """Expect `progress` to grow until its length is `end`; raises Hung where it does not."""
        self._end = end
        self._progress = progress
        if not self._is_on:
            self._turn_on()

    def pause(self) -> None:
        """Expect nothing."""
        self._progress = None

    def _turn_on(self) -> None:
        assert self._timeout_s is not None
        self._is_on = True
        handler = signal.signal(signal.SIGALRM, self._tick)
        interval = self._timeout_s / _TICKS
        self._before = (handler, *signal.setitimer(signal.ITIMER_REAL, interval, interval))

    def stop(self) -> None:
        """Expect nothing, and leave timer and handler as they were, unless another watch has begun since."""
        self._progress = None
        if self._timeout_s is None or signal.getsignal(signal.SIGALRM) != self._tick:
            return
        handler, rest_s, interval_s = self._before
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        signal.setitimer(signal.ITIMER_REAL, rest_s, interval_s)
        self._is_on = False

    def _tick(self, _number: int, _frame: FrameType | None) -> None:
        progress = self._progress
        if progress is None:
            self.stop()
            return
        seen, self._seen = self._seen, (progress, len(progress))
        if progress is not seen[0] or len(progress) != seen[1]:
            self._ticks = 0
            return
        self._ticks += 1
        if self._ticks >= _TICKS and len(progress) < self._end:
            self._ticks = 0
            raise Hung(f"no answer within {self._timeout_s:g} s")


def guarded_call(function: Callable[[], _T], timeout_s: float | None) -> _T:
    """`function()`, interrupted where it takes longer than `timeout_s` seconds (None: no limit), as `Watch` does.

    Raises:
        EnvironmentFailure: it was interrupted; its cause says where.
    """
    done: list[_T] = []
    watch = Watch(timeout_s)
    watch.begin(done, 1)
    try:
        done.append(function())
    except Hung as hung:
        raise EnvironmentFailure(str(hung)) from hung
    finally:
        watch.stop()
    return done[0]


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
