"""Environments of an actor: autoreset modes, seeds, any layout, and going on from a saved state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpcrl.envs.autoreset import make_stepper
from hpcrl.envs.episodes import EpisodeEnvs, EpisodeSeeds, Rows, Step, unroll_rows
from hpcrl.envs.factory import describe_task
from hpcrl.envs.restore import Restored
from hpcrl.envs.world import World
from hpcrl.errors import CheckpointError, ConfigError, EnvironmentFailure
from hpcrl.noise import Purpose, seeds, uniforms
from hpcrl.spaces import Space, Task
from hpcrl.unroll import Unroll, UnrollSpec

SEED = 11


class Scripted(gym.Env[NDArray[np.float32], np.int64]):
    """Episode k of environment i has a length and an end of its own; observes (i, k, steps made)."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, index: int) -> None:
        self._index, self._episode, self._steps = index, -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        self._episode, self._steps = self._episode + 1, 0
        return self._observation(), {}

    def _observation(self) -> NDArray[np.float32]:
        return np.array([self._index, self._episode, self._steps], np.float32)

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._steps += 1
        ends = self._steps == 1 + (3 * self._episode + self._index) % 4
        kind = (self._episode + self._index) % 3
        return self._observation(), self._steps + 10.0 * action, ends and kind != 0, ends and kind != 1, {}


class Spoilt(SyncVectorEnv):
    """Reports nonsense for the rows that it ignored."""

    def step(self, actions: Any) -> Any:
        ignored = self._autoreset_envs & (self.autoreset_mode == AutoresetMode.NEXT_STEP)
        observation, reward, terminated, truncated, info = super().step(actions)
        reward[ignored], terminated[ignored], truncated[ignored] = 99.0, True, True
        return observation, reward, terminated, truncated, info


SCRIPTED = Task(Space("box", (3,), "float32"), Space("discrete", (), "int64", 2), None, True)


def use_vector_env(monkeypatch: pytest.MonkeyPatch, make: Callable[[int], gym.vector.VectorEnv]) -> None:
    made = lambda _world, num_envs, _task, _restarts: make(num_envs)  # noqa: E731
    monkeypatch.setattr("hpcrl.envs.episodes.make_vector_env", made)


def scripted_envs(num_envs: int, mode: AutoresetMode, cls: type[SyncVectorEnv] = SyncVectorEnv) -> SyncVectorEnv:
    return cls([lambda i=i: Scripted(i) for i in range(num_envs)], autoreset_mode=mode)  # type: ignore[misc]


def scripted_episodes(monkeypatch: pytest.MonkeyPatch, mode: AutoresetMode) -> list[list[Any]]:
    """The first eight episodes of each of four environments."""
    use_vector_env(monkeypatch, lambda num_envs: scripted_envs(num_envs, mode, Spoilt))
    envs = EpisodeEnvs(World(""), SCRIPTED, 4, 0, SEED)
    episodes: list[list[Any]] = [[] for _ in range(4)]
    steps_acted = np.zeros(4, np.int64)
    while min(map(len, episodes)) < 8:
        before = envs.observation.copy()
        step = envs.step(((before[:, 1] + before[:, 2]) % 2).astype(np.int64))
        steps_acted += step.valid
        finals = {int(row): step.final_observations[n].tolist() for n, row in enumerate(step.final_rows)}
        assert set(finals) == set(np.flatnonzero(step.truncated & ~step.terminated))
        assert not (step.terminated | step.truncated)[~step.valid].any()
        for b in np.flatnonzero(step.terminated | step.truncated).tolist():
            facts = (
                step.episode_number[b],
                step.episode_return[b],
                step.episode_length[b],
                step.terminated[b],
            )
            episodes[b].append((*map(float, facts), finals.get(b)))
            assert steps_acted[b] == sum(episode[2] for episode in episodes[b])
    envs.close()
    return [column[:8] for column in episodes]


def test_all_autoreset_modes_give_the_same_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = []
    for b in range(4):
        column = []
        for k in range(8):
            length = 1 + (3 * k + b) % 4
            rewards = sum(t + 1 + 10.0 * ((k + t) % 2) for t in range(length))
            kind = (k + b) % 3
            column.append((k, rewards, length, kind != 0, [b, k, length] if kind == 0 else None))
        expected.append(column)
    for mode in AutoresetMode:
        assert scripted_episodes(monkeypatch, mode) == expected


def test_the_row_after_an_end_is_ignored_in_next_step_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    use_vector_env(monkeypatch, lambda num_envs: scripted_envs(num_envs, AutoresetMode.NEXT_STEP, Spoilt))
    envs = EpisodeEnvs(World("", "native"), SCRIPTED, 4, 0, SEED)
    ended = np.zeros(4, np.bool_)
    for _ in range(20):
        step = envs.step(np.ones(4, np.int64))
        assert np.array_equal(step.valid, ~ended)
        assert (step.episode_length[ended] == 0).all() and (step.episode_return[ended] == 0).all()
        ended = step.terminated | step.truncated


@pytest.mark.parametrize("mode", [None, "sometimes", 3])
def test_an_unknown_autoreset_mode_is_refused(mode: object) -> None:
    envs = scripted_envs(1, AutoresetMode.DISABLED)
    envs.metadata = {"autoreset_mode": mode} if mode else {}
    with pytest.raises(ConfigError, match="SyncVectorEnv must name its autoreset mode"):
        make_stepper(envs, lambda rows: rows)


def test_same_step_without_the_final_observation_is_refused() -> None:
    class Forgetful(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            return (*super().step(actions)[:4], {})

    envs = scripted_envs(3, AutoresetMode.SAME_STEP, Forgetful)
    envs.reset()
    stepper = make_stepper(envs, lambda rows: rows)
    with pytest.raises(EnvironmentFailure, match="final_obs"):
        for _ in range(4):
            stepper.step(np.zeros(3, np.int64))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sets(st.integers(0, 3), min_size=1), st.integers(0, 200)), max_size=8),
    st.sampled_from([Purpose.EPISODE_SEED, Purpose.EVALUATION_SEED]),
)
def test_the_table_of_seeds_equals_the_generator(calls: list[tuple[set[int], int]], purpose: Purpose) -> None:
    index = np.array([5, 6, 7, 8])
    table = EpisodeSeeds(SEED, index, purpose)
    for chosen, number in calls:
        rows = np.array(sorted(chosen))
        numbers = number + 37 * rows
        assert np.array_equal(table.of(rows, numbers), seeds(SEED, index[rows], numbers, purpose))


def test_every_episode_begins_with_its_own_seed() -> None:
    task = describe_task(World("CartPole-v1"))
    envs = EpisodeEnvs(World("CartPole-v1"), task, 2, 40, SEED)
    single, seen = gym.make("CartPole-v1"), 0
    for observation in envs.observation:
        expected, _ = single.reset(seed=int(seeds(SEED, 40 + seen, 0, Purpose.EPISODE_SEED)))
        assert np.array_equal(observation, expected)
        seen += 1
    for _ in range(60):
        step = envs.step(np.ones(2, np.int64))
        for b in np.flatnonzero(step.terminated | step.truncated).tolist():
            number = int(step.episode_number[b]) + 1
            expected, _ = single.reset(seed=int(seeds(SEED, 40 + b, number, Purpose.EPISODE_SEED)))
            assert np.array_equal(envs.observation[b], expected)
            seen += 1
    assert seen > 6


def random_actions(envs: EpisodeEnvs) -> NDArray:
    """Actions of the environments' global indices and steps alone, some of them out of bounds."""
    space = envs.task.action
    noise = uniforms(SEED, envs.env_index, envs.rows, Purpose.ACTION, max(1, space.size))
    if space.kind == "discrete":
        return (noise[:, 0] * space.num_choices).astype(np.int64)
    return 8 * noise - 4


def play(envs: EpisodeEnvs, num_steps: int) -> Iterator[tuple[NDArray, Step]]:
    for _ in range(num_steps):
        actions = random_actions(envs)
        step = envs.step(actions)
        actions[:] = 0  # the actor's are a row of memory that it uses again
        yield envs.observation.copy(), step


def record(envs: EpisodeEnvs, num_steps: int) -> dict[str, NDArray]:
    """What is common to all environments of a run [T, B, ...], and what ends in it."""
    rows = list(play(envs, num_steps))
    fields = (
        "reward",
        "terminated",
        "truncated",
        "valid",
        "episode_number",
        "episode_return",
        "episode_length",
    )
    recorded = {name: np.stack([getattr(step, name) for _, step in rows]) for name in fields}
    recorded["observation"] = np.stack([observation for observation, _ in rows])
    finals = np.full((num_steps, *envs.observation.shape), np.nan)
    for t, (_, step) in enumerate(rows):
        finals[t, step.final_rows] = step.final_observations
    return recorded | {"finals": finals}


def assert_same(one: dict[str, NDArray], two: dict[str, NDArray]) -> None:
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.parametrize(
    ("env_id", "vector"), [("CartPole-v1", "sync"), ("CartPole-v1", "native"), ("GridNavigation-v0", "sync")]
)
def test_streams_do_not_depend_on_how_environments_are_dealt(env_id: str, vector: str) -> None:
    task = describe_task(World(env_id, vector))
    assert task.layout_invariant
    whole = record(EpisodeEnvs(World(env_id, vector), task, 16, 0, SEED), 70)
    assert (whole["terminated"] | whole["truncated"]).sum() > 10
    for size in (1, 4):
        blocks = [
            record(EpisodeEnvs(World(env_id, vector), task, size, first, SEED), 70) for first in range(0, 16, size)
        ]
        assert_same({name: np.concatenate([block[name] for block in blocks], 1) for name in whole}, whole)


@pytest.mark.parametrize(("env_id", "vector"), [("CartPole-v1", "native"), ("Pendulum-v1", "sync")])
def test_parts_that_write_to_their_columns_of_an_unroll_equal_a_whole(env_id: str, vector: str) -> None:
    task, length = describe_task(World(env_id, vector)), 210
    whole = EpisodeEnvs(World(env_id, vector), task, 5, 3, SEED)
    parts = [EpisodeEnvs(World(env_id, vector), task, 2, 3, SEED), EpisodeEnvs(World(env_id, vector), task, 3, 5, SEED)]
    columns = [slice(0, 2), slice(2, 5)]
    unroll = Unroll(UnrollSpec(task, length, 5, 3, 0))
    unroll.buffer[:] = 255
    rows = [unroll_rows(unroll, part) for part in columns]
    for t in range(length):
        expected = whole.step(random_actions(whole))
        for envs, part, into in zip(parts, columns, rows, strict=True):
            actions = random_actions(envs)
            finals = envs.step_into(actions, into[t])
            here = (expected.final_rows >= part.start) & (expected.final_rows < part.stop)
            assert np.array_equal(finals.rows + part.start, expected.final_rows[here])
            assert np.array_equal(finals.observations, expected.final_observations[here])
            assert np.array_equal(unroll.observation[t + 1, part], envs.observation)
        assert np.array_equal(unroll.observation[t + 1], expected.observation)
        for name in Rows._fields[1:-1]:
            got = getattr(unroll, name)[t]
            assert np.array_equal(got, getattr(expected, name)) and got.dtype == getattr(expected, name).dtype
    assert unroll.episode_number.max() > 0


def test_other_seeds_and_purposes_are_other_streams() -> None:
    task = describe_task(World("CartPole-v1"))
    first = EpisodeEnvs(World("CartPole-v1"), task, 4, 0, SEED).observation.copy()
    assert not (EpisodeEnvs(World("CartPole-v1"), task, 4, 0, SEED + 1).observation == first).any()
    evaluation = EpisodeEnvs(World("CartPole-v1"), task, 4, 0, SEED, Purpose.EVALUATION_SEED)
    assert not (evaluation.observation == first).any()
    assert len(np.unique(first, axis=0)) == 4


class Walk(gym.Env[NDArray[np.float64], np.int64]):
    """Random steps of a generator of its own; with a state that can be set, inside a time limit of 7."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.float64], dict[str, Any]]:
        super().reset(seed=seed)
        self._place = self.np_random.normal(size=2)
        return self._place.copy(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        self._place = self._place + np.array([0.3, action])
        return self._place.copy(), float(action), bool(self._place[1] > 4), False, {}

    def get_state(self) -> dict[str, NDArray]:
        return {"place": self._place.copy()}

    def set_state(self, state: dict[str, NDArray]) -> None:
        self._place = state["place"].copy()


class Fickle(gym.Env[NDArray[np.float32], np.int64]):
    """In every other environment the steps depend on a count of all steps made, not on seed and actions."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    made = steps = 0

    def __init__(self) -> None:
        self._fickle = Fickle.made % 2 == 1
        Fickle.made += 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._place = self.np_random.random(1).astype(np.float32)
        return self._place.copy(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        Fickle.steps += 1
        self._place = self._place + np.float32(Fickle.steps if self._fickle else action)
        return self._place.copy(), 1.0, False, False, {}


gym.register("hpcrl-tests/Walk-v0", Walk, max_episode_steps=7)  # type: ignore[arg-type]
gym.register("hpcrl-tests/Fickle-v0", Fickle)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_steps", [0, 1, 33, 700])
@pytest.mark.parametrize(
    ("env_id", "vector", "means"),
    [
        ("CartPole-v1", "sync", "by_replay"),
        ("CartPole-v1", "native", "by_state"),
        ("GridNavigation-v0", "sync", "by_state"),
        ("Pendulum-v1", "sync", "by_replay"),
        ("hpcrl-tests/Walk-v0", "sync", "by_state"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Box.*precision", "ignore:.*obs")
def test_episodes_go_on_from_a_state_bit_for_bit(env_id: str, vector: str, means: str, num_steps: int) -> None:
    task = describe_task(World(env_id, vector))
    envs = EpisodeEnvs(World(env_id, vector), task, 4, 8, SEED)
    if num_steps:
        record(envs, num_steps)
    state = envs.state()
    observation = envs.observation.astype(task.observation.dtype)
    expected = record(envs, 40)
    other = EpisodeEnvs(World(env_id, vector), task, 4, 8, SEED)
    record(other, 5)
    assert other.restore(state) == Restored(**{means: 4})
    assert np.array_equal(other.observation, observation)
    assert_same(record(other, 40), expected)
    assert_same(other.state(), envs.state())


def test_exactly_the_running_episodes_are_kept_for_replay() -> None:
    task = describe_task(World("CartPole-v1"))
    envs = EpisodeEnvs(World("CartPole-v1"), task, 3, 0, SEED)
    for _ in range(600):
        envs.step(random_actions(envs))
        state = envs.state()
        assert np.array_equal(state["replay_counts"], state["episode_length"])
        assert len(state["replay_actions"]) == state["episode_length"].sum()


def test_a_state_is_not_changed_by_what_follows() -> None:
    task = describe_task(World("CartPole-v1"))
    envs = EpisodeEnvs(World("CartPole-v1"), task, 3, 0, SEED)
    record(envs, 30)
    state = envs.state()
    kept = {name: array.copy() for name, array in state.items()}
    record(envs, 30)
    envs.restore(state)
    record(envs, 30)
    assert_same(state, kept)


def test_a_vector_environment_without_a_state_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    use_vector_env(monkeypatch, CartPoleVectorEnv)
    task = describe_task(World("CartPole-v1"))
    envs = EpisodeEnvs(World("CartPole-v1", "native"), task, 4, 0, SEED)
    record(envs, 33)
    state = envs.state()
    other = EpisodeEnvs(World("CartPole-v1", "native"), task, 4, 0, SEED)
    assert other.restore(state) == Restored(begun_anew=4)
    assert (np.abs(other.observation) <= 0.05).all() and other.rows == 33
    step = other.step(np.zeros(4, np.int64))
    assert (step.episode_number == state["episode_number"] + 1).all()
    assert (step.episode_length == 1).all() and (step.episode_return == 1).all() and step.valid.all()


def test_an_environment_whose_replay_leads_elsewhere_begins_anew_alone() -> None:
    task = describe_task(World("hpcrl-tests/Fickle-v0"))
    Fickle.made = 0
    envs = EpisodeEnvs(World("hpcrl-tests/Fickle-v0"), task, 4, 0, SEED)
    record(envs, 9)
    state = envs.state()
    other = EpisodeEnvs(World("hpcrl-tests/Fickle-v0"), task, 4, 0, SEED)
    kept = {name: array.copy() for name, array in state.items()}
    assert other.restore(state) == Restored(by_replay=2, begun_anew=2)
    assert_same(state, kept)
    assert np.array_equal(other.observation[[0, 2]], state["observation"][[0, 2]])
    for b in (1, 3):
        first = np.random.Generator(np.random.PCG64(int(seeds(SEED, b, 1, Purpose.EPISODE_SEED)))).random(1)
        assert other.observation[b] == first.astype(np.float32)
    expected, got = record(envs, 6), record(other, 6)
    for name in expected:
        np.testing.assert_array_equal(got[name][:, [0, 2]], expected[name][:, [0, 2]])
    assert got["episode_number"][0].tolist() == [0, 1, 0, 1]
    assert got["episode_length"][-1].tolist() == [15, 6, 15, 6] == got["episode_return"][-1].tolist()
    assert other.state()["replay_counts"].tolist() == [15, 6, 15, 6]


def test_actions_that_do_not_add_up_are_refused() -> None:
    task = describe_task(World("CartPole-v1"))
    envs = EpisodeEnvs(World("CartPole-v1"), task, 2, 0, SEED)
    record(envs, 5)
    state = envs.state()
    with pytest.raises(CheckpointError, match="actions to replay"):
        envs.restore(state | {"replay_actions": state["replay_actions"][1:]})


def test_box_actions_are_clipped_for_the_environment_only() -> None:
    task = describe_task(World("Pendulum-v1"))
    wild, tame = (EpisodeEnvs(World("Pendulum-v1"), task, 2, 0, SEED) for _ in range(2))
    actions = np.array([[5.0], [-7.0]], np.float32)
    expected = tame.step(np.array([[2.0], [-2.0]], np.float32))
    assert np.array_equal(wild.step(actions).reward, expected.reward)
    assert actions.tolist() == [[5.0], [-7.0]]
    assert np.array_equal(wild.observation, tame.observation)


def test_an_actor_without_environments() -> None:
    envs = EpisodeEnvs(World("CartPole-v1"), describe_task(World("CartPole-v1")), 0, 5, SEED)
    assert envs.observation.shape == (0, 4)
    assert envs.restore(envs.state()) == Restored()
    envs.close()


def test_restored_counts_add_up() -> None:
    assert Restored(1, 2, 3) + Restored(10, 20, 30) == Restored(11, 22, 33)
