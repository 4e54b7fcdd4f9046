"""Environments that raise, hang or crash are made anew, and nothing else changes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from hpcrl.envs import rebuilding
from hpcrl.envs.autoreset import make_stepper
from hpcrl.envs.isolated import IsolatedEnv
from hpcrl.envs.rebuilding import FragileEnvs
from hpcrl.envs.recipe import Recipe, make
from hpcrl.envs.restarts import BrokenEpisode, Restarts
from hpcrl.envs.sequential import SequentialEnvs
from hpcrl.envs.watch import Hung, Watch, guarded_call
from hpcrl.errors import EnvironmentFailure, ShapeError
from tests.environments import Breaking

TIMEOUT_S = 0.1
#: Seeds of episodes that break, and of others.
BAD, GOOD = 17, 18
ACTIONS = np.array([1, 0, 1])


@pytest.fixture(autouse=True)
def _alarms() -> Iterator[None]:
    """No test leaves a timer or a handler behind."""
    yield
    left = signal.getitimer(signal.ITIMER_REAL), signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    assert left == ((0.0, 0.0), signal.SIG_DFL)


def patient(cap: int = 100) -> Restarts:
    """Restarts without pauses."""
    return Restarts(cap, sleep=lambda _: None)


def fragile(*makers: Callable[[], gym.Env], cap: int = 100, timeout_s: float | None = None) -> FragileEnvs:
    return FragileEnvs(makers, timeout_s, patient(cap))


# Calls that hang.


def test_a_call_that_returns_is_left_alone() -> None:
    assert guarded_call(lambda: 5, TIMEOUT_S) == 5
    assert guarded_call(lambda: 6, None) == 6
    with pytest.raises(KeyError):
        guarded_call(partial({"there": 1}.__getitem__, "missing"), TIMEOUT_S)


@pytest.mark.parametrize("how", ["sleep", "stubborn"])
def test_a_call_that_hangs_is_interrupted(how: str) -> None:
    start = time.monotonic()
    with pytest.raises(EnvironmentFailure, match=r"no answer within 0\.1 s") as failure:
        guarded_call(partial(Breaking("reset", how).reset, seed=BAD), TIMEOUT_S)
    assert TIMEOUT_S <= time.monotonic() - start < 5
    assert isinstance(failure.value.__cause__, Hung)


def test_a_call_within_a_call_and_the_timer_of_others() -> None:
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 3 * TIMEOUT_S)

    def inner() -> str:
        with pytest.raises(EnvironmentFailure):
            guarded_call(partial(time.sleep, 100), TIMEOUT_S / 4)
        time.sleep(100)
        raise AssertionError("unreachable")

    with pytest.raises(EnvironmentFailure):
        guarded_call(inner, TIMEOUT_S)
    assert not rung
    assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 3 * TIMEOUT_S
    time.sleep(4 * TIMEOUT_S)
    assert len(rung) == 1
    signal.signal(signal.SIGALRM, before)


def test_what_makes_progress_does_not_hang() -> None:
    watch = Watch(TIMEOUT_S)
    progress: list[int] = []
    start = time.monotonic()
    watch.begin(progress, 100)
    for _ in range(4):
        time.sleep(0.5 * TIMEOUT_S)
        progress.append(1)
    watch.pause()
    # The timer stops by itself once there is nothing to watch.
    time.sleep(TIMEOUT_S)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert time.monotonic() - start > 2 * TIMEOUT_S
    watch.begin(progress, len(progress))
    time.sleep(2 * TIMEOUT_S)
    watch.begin(progress, 100)
    with pytest.raises(Hung):
        time.sleep(100)
    watch.stop()


def test_a_watch_takes_over_from_another_and_gives_back() -> None:
    outer, inner = Watch(TIMEOUT_S), Watch(TIMEOUT_S)
    outer.begin([], 1)
    outer.pause()
    inner.begin([], 1)
    inner.pause()
    time.sleep(TIMEOUT_S)
    for watch in (outer, inner, outer):
        watch.begin([], 1)
        with pytest.raises(Hung):
            time.sleep(100)
        watch.pause()
    outer.stop()
    inner.stop()


def test_python_may_end_while_the_timer_runs() -> None:
    script = f"""
import atexit, time
import numpy as np
from hpcrl.envs.rebuilding import FragileEnvs
from hpcrl.envs.restarts import Restarts
from tests.environments import Breaking
envs = FragileEnvs([Breaking], {TIMEOUT_S}, Restarts(0))
envs.reset(seed=1)
envs.step(np.zeros(1, np.int64))
class Late:
    def __del__(self, sleep=time.sleep):
        sleep({2 * TIMEOUT_S})
late = Late()
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


# Restarts.


def test_pauses_grow_until_an_episode_is_finished() -> None:
    pauses: list[float] = []
    restarts = Restarts(100, pause_s=0.1, longest_pause_s=1.0, sleep=pauses.append)

    def fail(env_index: int) -> None:
        with pytest.warns(RuntimeWarning, match=rf"environment {env_index} .*ValueError: no"):
            restarts.failed(BrokenEpisode(env_index, 3, 5), ValueError("no\nmore"))

    for _ in range(6):
        fail(4)
    fail(2)
    restarts.recovered(4)
    fail(4)
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 0.1, 0.1])
    assert restarts.count == 8


def test_a_failure_too_many_ends_it_with_the_environments_traceback() -> None:
    envs = fragile(partial(Breaking, "step"), cap=0)
    envs.belong_to(np.array([41]), np.array([6]))
    envs.reset(seed=BAD)
    envs.step(ACTIONS[:1])
    envs.step(ACTIONS[:1])
    expected = rf"^environment 41 broke in its episode 6 \(seed {BAD}\), and --env-restarts 0 allows"
    with pytest.raises(EnvironmentFailure, match=expected) as failure:
        envs.step(ACTIONS[:1])
    assert 'raise KeyError("at home")' in str(failure.value)
    assert isinstance(failure.value.__cause__, KeyError)


# Vectors of them.


def assert_equal_steps(ours: Any, theirs: Any) -> None:
    for one, two in zip(ours[:4], theirs[:4], strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.dtype == two.dtype
    assert ours[4] == theirs[4] == {}


@pytest.mark.parametrize("timeout_s", [None, 30.0])
@pytest.mark.parametrize("env", ["CartPole-v1", "tests.worlds:Any-nested-multi_discrete-v0", "Pendulum-v1"])
def test_what_does_not_break_steps_as_ever(env: str, timeout_s: float | None) -> None:
    makers = [partial(make, Recipe(env))] * 3
    ours, theirs = FragileEnvs(makers, timeout_s, patient(0)), SequentialEnvs(makers)
    np.testing.assert_array_equal(ours.reset(seed=4)[0], theirs.reset(seed=4)[0])
    stored, rng = ours.stored_action, np.random.default_rng(5)
    for step in range(60):
        actions = rng.integers(2, size=(3, *stored.shape)).astype(stored.dtype)
        one, two = ours.step(actions), theirs.step(actions)
        assert_equal_steps(one, two)
        if len(rows := np.flatnonzero(one[2] | one[3])):
            np.testing.assert_array_equal(ours.reset_rows(rows, rows + step), theirs.reset_rows(rows, rows + step))
    mask = {"reset_mask": np.array([True, False, True])}
    mine, others = (envs.reset(seed=[1, 2, 3], options=mask)[0] for envs in (ours, theirs))
    np.testing.assert_array_equal(mine, others)
    with pytest.raises(ShapeError, match="3 environments, got 2"):
        ours.step(actions[:2])
    assert ours.restarts.count == 0
    ours.close()


@pytest.mark.parametrize(("how", "row"), [("raise", 0), ("raise", 1), ("raise", 2), ("sleep", 0), ("stubborn", 2)])
def test_a_row_that_breaks_in_a_step(how: str, row: int) -> None:
    timeout_s = None if how == "raise" else TIMEOUT_S
    envs = fragile(*[partial(Breaking, "step", how)] * 3, timeout_s=timeout_s)
    seeds = [GOOD + other for other in range(3)]
    seeds[row] = BAD
    envs.reset(seed=seeds)
    broken_env = envs.envs[row]
    for _ in range(2):
        assert envs.step(ACTIONS)[4] == {}
    with pytest.warns(RuntimeWarning, match=rf"environment {row} broke .*seed 17.*restart 1 of at most 100"):
        observation, reward, terminated, truncated, info = envs.step(ACTIONS)
    broken = np.arange(3) == row
    np.testing.assert_array_equal(info["broken"], broken)
    np.testing.assert_array_equal(observation, np.stack([seeds, np.where(broken, 2, 3)], 1))
    np.testing.assert_array_equal(reward, np.where(broken, 0, ACTIONS))
    assert not terminated.any()
    assert not truncated.any()
    assert (observation.dtype, reward.dtype, terminated.dtype) == (np.float32, np.float64, np.bool_)
    np.testing.assert_array_equal(envs.reset_rows(np.array([row]), np.array([28])), [[28, 0]])
    assert envs.envs[row] is not broken_env
    observation, *_, info = envs.step(ACTIONS)
    np.testing.assert_array_equal(observation[:, 1], np.where(broken, 1, 4))
    assert info == {}
    assert envs.restarts.count == 1
    envs.close()


def test_the_watch_rests_between_steps_and_in_pauses() -> None:
    pauses: list[float] = []

    def sleep(pause_s: float) -> None:
        time.sleep(2 * TIMEOUT_S)
        pauses.append(pause_s)

    envs = FragileEnvs([Breaking], TIMEOUT_S, Restarts(5, pause_s=0.5, sleep=sleep))
    for seed in (BAD, BAD, GOOD, BAD):
        envs.reset_rows(np.array([0]), np.array([seed]))
        for _ in range(2):
            envs.step(ACTIONS[:1])
        if seed == BAD:
            with pytest.warns(RuntimeWarning, match="KeyError"):
                envs.step(ACTIONS[:1])
        else:
            time.sleep(2 * TIMEOUT_S)
            assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
            # The episode is over.
            envs.reset_rows(np.array([0]), np.array([seed]))
    assert pauses == [0.5, 1.0, 0.5]
    envs.close()


def test_several_rows_break_in_one_step() -> None:
    envs = fragile(*[Breaking] * 3)
    envs.reset(seed=[BAD, GOOD, BAD])
    envs.step(ACTIONS)
    envs.step(ACTIONS)
    with pytest.warns(RuntimeWarning):
        info = envs.step(ACTIONS)[4]
    np.testing.assert_array_equal(info["broken"], [True, False, True])
    # A reset of all makes them anew as well.
    np.testing.assert_array_equal(envs.reset(seed=30)[0], [[30, 0], [31, 0], [32, 0]])
    assert envs.restarts.count == 2


@pytest.mark.parametrize("how", ["raise", "sleep"])
def test_a_reset_that_breaks_is_tried_with_other_seeds(how: str) -> None:
    timeout_s = None if how == "raise" else TIMEOUT_S
    envs = fragile(*[partial(Breaking, "reset", how)] * 3, timeout_s=timeout_s)
    seeds = iter([27, 28])
    asked: list[int] = []

    def next_seeds(rows: NDArray[np.intp]) -> NDArray[np.int64]:
        asked.extend(rows.tolist())
        return np.array([next(seeds) for _ in rows])

    envs.belong_to(np.arange(10, 13), np.zeros(3, np.int64), next_seeds)
    with pytest.warns(RuntimeWarning, match="environment 11 broke"):
        observation, _ = envs.reset(seed=[GOOD, BAD, GOOD])
    np.testing.assert_array_equal(observation[:, 0], [GOOD, 28, GOOD])
    assert asked == [1, 1]
    seeds = iter([99])
    with pytest.warns(RuntimeWarning, match="environment 12 broke"):
        begun = envs.reset_rows(np.array([0, 2]), np.array([40, 37]))
    np.testing.assert_array_equal(begun, [[40, 0], [99, 0]])
    assert envs.restarts.count == 3
    envs.close()


def test_a_reset_that_breaks_every_time_reaches_the_cap() -> None:
    envs = fragile(partial(Breaking, "reset"), cap=4)
    with pytest.warns(RuntimeWarning), pytest.raises(EnvironmentFailure, match="--env-restarts 4"):
        envs.reset(seed=BAD)
    assert envs.restarts.count == 4


def test_an_environment_that_can_not_be_made_again() -> None:
    results: list[Any] = [Breaking(), OSError("no licence"), OSError("no licence"), Breaking()]

    def maker() -> gym.Env:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    envs = fragile(maker)
    envs.reset(seed=BAD)
    for _ in range(2):
        envs.step(ACTIONS[:1])
    with pytest.warns(RuntimeWarning, match="at home"):
        envs.step(ACTIONS[:1])
    with pytest.warns(RuntimeWarning, match="no licence"):
        envs.reset_rows(np.array([0]), np.array([GOOD]))
    assert envs.restarts.count == 3
    assert not results


@pytest.mark.parametrize("how", ["raise", "sleep"])
def test_what_can_not_be_closed_is_let_go(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(rebuilding, "_CLOSE_TIMEOUT_S", TIMEOUT_S)
    envs = fragile(*[partial(Breaking, "close", how)] * 2)
    envs.reset(seed=[BAD, GOOD])
    with pytest.warns(RuntimeWarning, match="environment 0 could not be closed"):
        envs.close()


def test_episodes_go_on_around_one_that_broke() -> None:
    """With the stepper of an actor, against the same episodes one by one."""
    envs = fragile(*[Breaking] * 2)
    seeds = iter([27, 50, 51, 52, 53, 54])
    stepper = make_stepper(envs, lambda rows: np.array([next(seeds) for _ in rows]))
    observation, _ = envs.reset(seed=[BAD, GOOD])
    invalid, begun = [], []
    with pytest.warns(RuntimeWarning):
        for step in range(25):
            transition = stepper.step(ACTIONS[:2])
            if transition.valid is not None:
                invalid.append((step, *np.flatnonzero(~transition.valid)))
                assert not transition.ended_rows.size
            for row in transition.begun_rows:
                begun.append((step, row, *transition.observation[row]))
            assert transition.observation.shape == observation.shape
    # Row 0: breaks in its third step, twice, then goes on from seed 50; row 1: ends after ten steps.
    assert invalid == [(2, 0), (5, 0)]
    assert begun == [(2, 0, 27, 0), (5, 0, 50, 0), (9, 1, 51, 0), (15, 0, 52, 0), (19, 1, 53, 0)]


@pytest.mark.parametrize("how", ["raise", "sleep"])
def test_a_replay_that_breaks_leads_nowhere(how: str) -> None:
    envs = fragile(partial(Breaking, "step", how), timeout_s=TIMEOUT_S / 2)
    envs.reset(seed=GOOD)
    np.testing.assert_array_equal(envs.replay(0, GOOD, np.ones(4, np.int64)), [GOOD, 4])
    with pytest.warns(RuntimeWarning):
        assert envs.replay(0, BAD, np.ones(4, np.int64)) is None
    np.testing.assert_array_equal(envs.reset_rows(np.array([0]), np.array([28])), [[28, 0]])
    envs.close()


def test_those_in_processes_of_their_own() -> None:
    recipes = [Recipe("tests.environments:Breaking", {"how": how}) for how in ("crash", "sleep", "sleep")]
    envs = FragileEnvs([partial(IsolatedEnv, recipe, 0.5) for recipe in recipes], 0.5, patient())
    seeds = np.array([BAD, BAD, GOOD])
    np.testing.assert_array_equal(envs.reset(seed=seeds.tolist())[0][:, 0], seeds)
    for _ in range(2):
        envs.step(ACTIONS)
    with pytest.warns(RuntimeWarning) as warned:
        observation, reward, _, _, info = envs.step(ACTIONS)
    told = [str(warning.message) for warning in warned]
    assert "ended by SIGSEGV" in told[0]
    assert "hung in its process" in told[1]
    np.testing.assert_array_equal(info["broken"], [True, True, False])
    np.testing.assert_array_equal(observation[:, 1], [2, 2, 3])
    np.testing.assert_array_equal(reward, [0, 0, 1])
    rows = np.arange(2)
    np.testing.assert_array_equal(envs.reset_rows(rows, rows + 50), [[50, 0], [51, 0]])
    observation, *_, info = envs.step(ACTIONS)
    np.testing.assert_array_equal(observation[:, 1], [1, 1, 4])
    assert (info, envs.restarts.count) == ({}, 2)
    assert all(isinstance(env, IsolatedEnv) and env.pid is not None for env in envs.envs)
    envs.close()
    assert all(isinstance(env, IsolatedEnv) and env.pid is None for env in envs.envs)


def test_steps_in_processes_overlap() -> None:
    envs = FragileEnvs([partial(IsolatedEnv, Recipe("tests.environments:Slow"))] * 2, None, patient(0))
    envs.reset(seed=1)
    times = []
    for _ in range(4):
        start = time.monotonic()
        envs.step(ACTIONS[:2])
        times.append(time.monotonic() - start)
    assert 0.1 <= min(times) < 0.18
    envs.close()
