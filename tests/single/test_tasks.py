"""Several tasks in one run: whose environment is whose, what they have in common, and what is reported of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tests.no_mpi  # noqa: F401

# isort: split
import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpcrl.cluster.layout import plan_layout, plan_workers
from hpcrl.commands.options import join_values, parse
from hpcrl.config import A2CConfig
from hpcrl.envs.episodes import EpisodeEnvs, Step
from hpcrl.envs.factory import describe_task
from hpcrl.envs.grid_navigation import GridNavigation
from hpcrl.envs.restore import Restored
from hpcrl.envs.task_episodes import TaskEpisodes, make_episodes
from hpcrl.envs.tasks import Group, common_task, divide, groups_of
from hpcrl.envs.world import World, evaluation_worlds, worlds_of
from hpcrl.errors import CheckpointError, ConfigError
from hpcrl.metrics import EPISODE, EpisodeReducer, TensorBoardFile, columns_of
from hpcrl.models.inputs import Inputs
from hpcrl.models.packing import unpack
from hpcrl.noise import Purpose
from hpcrl.roles.evaluation import Played, play
from hpcrl.roles.scoring import score, share
from hpcrl.roles.snapshot import environments_of, merge_environments, split_environments
from hpcrl.spaces import Space, Task
from hpcrl.storage.run_directory import RunDirectory, default_run_dir
from tests.policies import policy_of

SEED = 3


def replayed() -> gym.Env:
    """GridNavigation behind a wrapper that may have a state of its own, so that episodes are replayed."""
    return gym.Wrapper(GridNavigation())


def whole(size: int) -> list[int]:
    """Groups as an actor with its own network has them."""
    return [size]


def halves(size: int) -> list[int]:
    """Groups as an actor has them that asks its learner."""
    return [half for half in (size - size // 2, size // 2) if half]


gym.register("hpcrl-tests/Replayed-v0", replayed, max_episode_steps=30)  # type: ignore[arg-type]


# Whose environment is whose


@given(st.integers(0, 9), st.integers(0, 50), st.integers(1, 12))
def test_parts_are_contiguous_and_nearly_equal(start: int, size: int, parts: int) -> None:
    blocks = divide(range(start, start + size), parts)
    assert [index for block in blocks for index in block] == list(range(start, start + size))
    sizes = [len(block) for block in blocks]
    assert len(sizes) == parts and sizes == sorted(sizes, reverse=True) and max(sizes) - min(sizes) <= 1


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 40), st.booleans())
def test_groups_are_an_actors_environments_task_by_task(tasks: int, actors: int, more: int, in_halves: bool) -> None:
    num_envs = tasks + more
    task_of = [number for number, envs in enumerate(divide(range(num_envs), tasks)) for _ in envs]
    for block in divide(range(num_envs), actors):
        groups = groups_of(block, divide(range(num_envs), tasks), halves if in_halves else whole)
        assert [index for group in groups for index in group.envs] == list(block)
        assert all(task_of[index] == group.task for group in groups for index in group.envs)
        shared = [sum(task_of[index] == task for index in block) for task in range(tasks)]
        assert len(groups) == sum(min(size, 2 if in_halves else 1) for size in shared)


def test_an_actor_without_environments_has_no_group() -> None:
    assert groups_of(range(4, 4), [range(2), range(2, 4)], whole) == []
    assert groups_of(range(1, 4), [range(2), range(2, 5)], whole) == [
        Group(0, range(1, 2)),
        Group(1, range(2, 4)),
    ]


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 30), st.sampled_from([plan_layout, plan_workers]))
def test_actors_have_one_task_each_where_there_are_enough(tasks: int, share: int, more: int, plan: Any) -> None:
    num_envs, num_actors = tasks + more, tasks * share
    layout = plan("a" * (num_actors + 1), 1, "split", num_envs, "spread", tasks)
    blocks = [layout.env_blocks[actor] for actor in layout.actors]
    assert [index for block in blocks for index in block] == list(range(num_envs))
    assert {len(block) for block in blocks} <= {num_envs // num_actors, num_envs // num_actors + 1}
    homes = divide(range(num_envs), tasks)
    assert all(len(groups_of(block, homes, whole)) == 1 for block in blocks if block)


def test_other_numbers_of_actors_are_dealt_as_for_one_task() -> None:
    for ranks in (1, 3, 4, 6):
        nodes = "a" * ranks
        assert plan_layout(nodes, "auto", "colocated", 17, "spread", 5) == plan_layout(nodes, "auto", "colocated", 17)


def test_worlds_know_their_task_where_there_are_several() -> None:
    assert [world.task for world in worlds_of(A2CConfig(env="CartPole-v1"))] == [None]
    config = A2CConfig(env="CartPole-v0 CartPole-v1", vector="native")
    assert [(world.env_id, world.task, world.vector) for world in worlds_of(config)] == [
        ("CartPole-v0", 0, "native"),
        ("CartPole-v1", 1, "native"),
    ]
    assert [(world.task, world.vector) for world in evaluation_worlds(config)] == [(0, "sync"), (1, "sync")]


# What they have in common

BOX, TWO = Space("box", (4,), "float32"), Space("discrete", (), "int64", 2)


def test_what_is_common_is_the_strictest() -> None:
    tasks = [Task(BOX, TWO, limit, invariant) for limit, invariant in ((500, True), (None, True), (200, False))]
    assert common_task("abc", tasks, False) == Task(BOX, TWO, 200, False)
    assert common_task("ab", tasks[:2], False) == Task(BOX, TWO, 500, True)
    assert common_task("a", tasks[1:2], False) == tasks[1]


ARM = Space("box", (1,), "float32", low=(-1.0,), high=(1.0,))


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({}, {"action": dataclasses.replace(TWO, num_choices=3)}, "first does one of 2 choices, the second one of 3 c"),
        ({}, {"observation": Space("box", (3,), "float32")}, r"first observes box \[4\] float32, the second box \[3\]"),
        ({}, {"observation": Space("box", (4,), "uint8")}, r"first observes box \[4\] float32, the second box \[4\] u"),
        (
            {"action": ARM},
            {"action": dataclasses.replace(ARM, high=(2.0,))},
            r"first does box \[1\] float32, the second box \[1\] float32 within other bounds$",
        ),
        ({"info_mask_size": 2}, {}, "first has its action mask in its infos, the second in its observations$"),
    ],
)
def test_tasks_that_differ_are_named_in_one_sentence(one: Any, other: Any, message: str) -> None:
    usual = Task(BOX, TWO, None, True)
    tasks = [dataclasses.replace(usual, **one)] * 2 + [dataclasses.replace(usual, **other)]
    with pytest.raises(ConfigError, match=f"^--env: Pong and Ping can't be trained together: the {message}") as caught:
        common_task(["Pong", "Pang", "Ping"], tasks, False)
    assert "\n" not in str(caught.value)


def test_an_observation_that_names_a_task_already_gets_no_second_name() -> None:
    with pytest.raises(ConfigError, match="--task-id adds 'task' to the observations, which those of A have already"):
        named = common_task("AB", [Task(BOX, TWO, None, True)] * 2, True)
        common_task("AB", [named, named], True)


# Configuration and command line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": "A B A"}, "--env must be different environments, got 'A B A'"),
        ({"env": "A B C", "num_envs": 2}, "--num-envs must be at least 3, one for each environment of --env, got 2"),
        ({"task_id": True}, "--task-id must be false with one environment alone, got True"),
        ({"env": "A B", "task_id": True, "frame_stack": 2}, "--task-id must be false with --frame-stack above 1, got"),
    ],
)
def test_what_several_tasks_need_is_one_sentence(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match="^" + message):
        A2CConfig(**options)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--env A B C --seed 3", ["--env", "A B C", "--seed", "3"]),
        ("--seed 3 --env A B", ["--seed", "3", "--env", "A B"]),
        ("--env=A B --hidden-sizes 4 5 --env C", ["--env=A B", "--hidden-sizes", "4", "5", "--env", "C"]),
        ("--env --seed 3 4", ["--env", "--seed", "3", "4"]),
        ("--environment A B", ["--environment", "A", "B"]),
        ("", []),
    ],
)
def test_the_values_of_an_option_are_joined(arguments: str, expected: list[str]) -> None:
    assert join_values(arguments.split(), "--env") == expected


def test_the_command_line_takes_several_environments(tmp_path: Path) -> None:
    config = parse("a2c", ["--env", "A-v0", "ns/B-v1", "--num-envs", "8", "--task-id"])
    assert (config.env_ids, config.num_envs, config.task_id) == (["A-v0", "ns/B-v1"], 8, True)
    assert parse("a2c", ["--preset", "first-light", "--env", "A", "B"]).env == "A B"
    directory = RunDirectory(tmp_path)
    directory.path.mkdir(exist_ok=True)
    directory.write_config({"config": {"algorithm": "a2c", "env": "A B", "task_id": True}})
    resumed = parse("a2c", ["--resume", "--run-dir", str(tmp_path)])
    assert resumed.env_ids == ["A", "B"] and resumed.task_id


def test_a_default_run_directory_names_one_environment() -> None:
    config = A2CConfig(env=" ".join(f"ns/Game{number}-v0" for number in range(60)), num_envs=60)
    assert default_run_dir(config).name.startswith("a2c-ns_Game0-v0+59-seed1-")
    assert default_run_dir(A2CConfig(env="A")).name.startswith("a2c-A-seed1-")


# Environments


def tasks_of(*env_ids: str, named: bool = True, vector: Any = "sync") -> tuple[list[World], Task]:
    worlds = [World(env_id, vector, task=number) for number, env_id in enumerate(env_ids)]
    return worlds, common_task(env_ids, [describe_task(world) for world in worlds], named)


def random_action(task: Task, size: int, rng: np.random.Generator) -> NDArray:
    if task.action.kind == "box":
        return rng.uniform(task.action.low, task.action.high, (size, *task.action.shape)).astype(np.float32)
    return rng.integers(task.action.num_choices, size=size)


@pytest.mark.parametrize(
    ("env_id", "vector"),
    [
        ("tests.worlds:Any-vector-discrete-v0", "sync"),
        ("tests.worlds:Any-image-box-v0", "sync"),
        ("tests.worlds:Any-discrete-discrete-v0", "native"),
        ("tests.worlds:Any-dict-discrete-v0", "native"),
        ("tests.worlds:Any-tuple-discrete-v0", "sync"),
        ("tests.worlds:Scripted-dict-same_step-v0", "native"),
        ("tests.worlds:Scripted-vector-disabled-v0", "native"),
        ("CartPole-v0", "native"),
    ],
)
def test_observations_name_their_task_and_are_else_the_same(env_id: str, vector: str) -> None:
    worlds = [World(env_id, vector, task=2)]  # type: ignore[arg-type]
    plain = describe_task(worlds[0])
    named = common_task("ABC", [plain] * 3, True)
    envs, bare = make_episodes(worlds[0], named, 3, 4, SEED), EpisodeEnvs(worlds[0], plain, 3, 4, SEED)
    rng, num_finals = np.random.default_rng(0), 0

    def check(observation: NDArray, expected: NDArray) -> None:
        leaves = unpack(named.observation, torch.from_numpy(observation))
        assert leaves.pop("task").tolist() == [2] * len(expected)
        theirs = torch.from_numpy(np.array(expected, plain.observation.dtype))
        others = unpack(plain.observation, theirs) if plain.observation.leaves else {"observation": theirs}
        assert leaves.keys() == others.keys()
        assert all(torch.equal(leaves[name], others[name]) for name in leaves)

    check(envs.observation, bare.observation)
    for _ in range(220 if env_id == "CartPole-v0" else 30):
        actions = random_action(plain, 3, rng)
        if env_id == "CartPole-v0":  # upright until the limit
            actions = (np.asarray(bare.observation)[:, 2:] @ [1.0, 1.0] > 0).astype(np.int64)
        step, expected = envs.step(actions), bare.step(actions)
        for name in set(Step._fields) - {"observation", "final_observations"}:
            np.testing.assert_array_equal(getattr(step, name), getattr(expected, name), err_msg=name)
        check(step.observation, expected.observation)
        check(envs.observation, bare.observation)
        check(step.final_observations, expected.final_observations)
        num_finals += len(step.final_rows)
    assert num_finals and envs.rows == bare.rows
    envs.close()
    bare.close()


@pytest.mark.parametrize("place", ["info", "observation"])
def test_a_task_stands_beside_an_action_mask(place: str) -> None:
    env_id = f"tests.worlds:Masked-{place}-discrete-v0"
    worlds, task = tasks_of(env_id, env_id)
    policy = policy_of(task, (4,))
    policy.initialise(1)
    with torch.no_grad():  # far from uniform, so that the task makes a difference
        policy.head.weight.mul_(300)
    # A forbidden action is an error there.
    one, other = (play(policy, world, task, range(4), 7, False) for world in worlds)
    assert (one.lengths == 10).all() and (other.lengths == 10).all()
    assert not np.array_equal(one.returns, other.returns)


def test_the_network_sees_tasks_one_hot() -> None:
    worlds, task = tasks_of("CartPole-v0", "CartPole-v1")
    inputs = Inputs(task.observation, normalise=False)
    for world in worlds:
        envs = make_episodes(world, task, 2, 0, SEED)
        rows = inputs.raw_rows(torch.from_numpy(envs.observation))
        assert rows[:, 4:].tolist() == [[float(world.task == number) for number in range(2)]] * 2
        bare = EpisodeEnvs(world, describe_task(world), 2, 0, SEED)
        assert rows[:, :4].tolist() == bare.observation.tolist()


def test_the_only_task_is_played_as_ever() -> None:
    world = World("CartPole-v1")
    assert type(make_episodes(world, describe_task(world), 1, 0, SEED)) is EpisodeEnvs


# Their state


class Actor:
    """The environments of an actor, acting at random: actions depend on the environment and the step alone."""

    def __init__(self, worlds: list[World], task: Task, blocks: list[range], block: range) -> None:
        self.block, self._task = block, task
        self.groups = [
            make_episodes(worlds[group.task], task, len(group.envs), group.envs.start, SEED)
            for group in groups_of(block, blocks, halves)
        ]

    def steps(self, count: int) -> dict[str, NDArray]:
        """What some fields are after each of so many steps, [count, B, ...]."""
        fields = ("observation", "reward", "terminated", "truncated", "episode_number", "episode_return")
        parts = []
        for group in self.groups:
            steps = [group.step(self._actions(group)) for _ in range(count)]
            parts.append({name: np.stack([getattr(step, name) for step in steps]) for name in fields})
        return {name: np.concatenate([part[name] for part in parts], 1) for name in fields}

    def _actions(self, group: EpisodeEnvs | TaskEpisodes) -> NDArray:
        return np.array(
            [
                random_action(self._task, 1, np.random.default_rng([index, group.rows]))[0]
                for index in group.env_index.tolist()
            ]
        )


def restored_elsewhere(env_ids: tuple[str, ...], num_envs: int, **options: Any) -> tuple[dict[str, NDArray], Restored]:
    """The state of two actors after 45 steps; they go on, three actors go on from it, and do the same."""
    worlds, task = tasks_of(*env_ids, **options)
    homes = divide(range(num_envs), len(env_ids))

    def actors(count: int) -> list[Actor]:
        return [Actor(worlds, task, homes, block) for block in divide(range(num_envs), count)]

    before = actors(2)
    for actor in before:
        actor.steps(45)
    arrays = merge_environments([group.state() for actor in before for group in actor.groups])
    after, total = actors(3), Restored()
    for actor in after:
        parts = split_environments(
            environments_of(arrays, actor.block, num_envs), [group.num_envs for group in actor.groups]
        )
        for group, part in zip(actor.groups, parts, strict=True):
            total += group.restore(part)
    one, two = ([actor.steps(40) for actor in each] for each in (before, after))
    for name in one[0]:
        expected, again = (np.concatenate([part[name] for part in parts], 1) for parts in (one, two))
        np.testing.assert_array_equal(expected, again, err_msg=name)
    return arrays, total


@pytest.mark.parametrize("named", [True, False])
def test_tasks_that_keep_different_things_are_restored_by_other_actors(named: bool) -> None:
    env_ids = ("GridNavigation-v0", "hpcrl-tests/Replayed-v0")
    arrays, restored = restored_elsewhere(env_ids, 7, named=named)
    assert restored == Restored(by_state=4, by_replay=3)
    assert arrays["environments/task"].tolist() == [0] * 4 + [1] * 3
    assert len(arrays["environments/task_0/elapsed_steps"]) == 4
    assert len(arrays["environments/task_1/replay_counts"]) == 3


def test_tasks_with_a_vector_form_are_restored_by_other_actors() -> None:
    _, restored = restored_elsewhere(("CartPole-v0", "CartPole-v1"), 7, vector="native")
    assert restored == Restored(by_state=7)


def test_a_state_that_does_not_fit_its_tasks_is_refused() -> None:
    rows = {"environments/rows": np.zeros(3, np.int64)}
    own = {"environments/task_1/x": np.zeros(2)}
    with pytest.raises(CheckpointError, match="holds task_1/x, but not which environments that is of"):
        environments_of(rows | own, range(1), 3)
    with pytest.raises(CheckpointError, match="holds 2 rows of task_1/x, expected 1"):
        environments_of(rows | own | {"environments/task": np.array([0, 0, 1])}, range(1), 3)
    fits = environments_of(rows | own | {"environments/task": np.array([0, 1, 1])}, range(1, 3), 3)
    assert len(fits["task_1/x"]) == 2 and fits["task"].tolist() == [1, 1]


# Evaluation


@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 9))
def test_every_episode_of_every_task_is_played_once(num_tasks: int, num_episodes: int, count: int) -> None:
    shares = [share(num_tasks, num_episodes, place, count) for place in range(count)]
    for task in range(num_tasks):
        assert [number for each in shares for number in each[task]] == list(range(num_episodes))
    sizes = [sum(map(len, each)) for each in shares]
    assert max(sizes) - min(sizes) <= 1


def played(*returns: float) -> Played:
    steps = np.ones(len(returns), np.int64)
    return Played(np.array(returns), steps, steps)


def test_an_evaluation_is_judged_by_the_mean_over_the_tasks() -> None:
    one, two = played(1.0, 3.0), played(10.0, 20.0)
    assert score(["A"], [one]) == {"eval/episode_return_mean": 2.0, "eval/episode_return_std": 1.0}
    assert score(["A", "B"], [one, two]) == {
        "eval/episode_return_mean": 8.5,
        "eval/episode_return_std": 3.0,
        "eval/episode_return_mean/A": 2.0,
        "eval/episode_return_mean/B": 15.0,
    }


@pytest.mark.parametrize("named", [True, False])
def test_a_task_is_evaluated_in_the_same_episodes_whatever_the_others(named: bool) -> None:
    worlds, task = tasks_of("CartPole-v1", "CartPole-v0", named=named)
    policy = policy_of(task, (4,))
    policy.initialise(1)
    results = play(policy, worlds[0], task, range(4), 7, False)
    envs = make_episodes(worlds[0], task, 4, 0, 7, purpose=Purpose.EVALUATION_SEED)
    alone = EpisodeEnvs(World("CartPole-v1"), describe_task(World("CartPole-v1")), 4, 0, 7, Purpose.EVALUATION_SEED)
    assert envs.observation.view(np.float32).reshape(4, -1)[:, :4].tolist() == alone.observation.tolist()
    if not named:
        bare = play(policy, World("CartPole-v1"), describe_task(World("CartPole-v1")), range(4), 7, False)
        assert np.array_equal(results.returns, bare.returns)


# What is reported


def random_episodes(count: int, seed: int, after: int = 0) -> NDArray:
    """Of 5 environments, in a random order."""
    rng = np.random.default_rng(seed)
    made = np.zeros(count, EPISODE)
    made["env_step"], made["env_index"] = np.divmod(np.arange(count), 5)
    made["env_step"] += after
    made["return"], made["length"] = rng.normal(size=count), rng.integers(1, 9, count)
    return rng.permutation(made)


TASKS = {"ALE/Pong-v5": range(3), "tests.worlds:B": range(3, 5)}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 230), min_size=1, max_size=4))
def test_the_last_100_of_every_task(counts: list[int]) -> None:
    reducer = EpisodeReducer(TASKS)
    known: dict[str, list[float]] = {task: [] for task in TASKS}
    for number, count in enumerate(counts):
        made = random_episodes(count, number, 1000 * number)
        new: dict[str, list[float]] = {task: [] for task in TASKS}
        for episode in sorted(made.tolist()):
            next(new[task] for task, envs in TASKS.items() if episode[1] in envs).append(episode[4])
        reducer.add(made)
        state, reducer = reducer.state(), EpisodeReducer(TASKS)
        reducer.add(random_episodes(9, 99))
        reducer.restore(state)
        row = reducer.take()
        last = []
        for task in TASKS:
            known[task] += new[task]
            last.append(np.mean(known[task][-100:]) if len(known[task]) >= 100 else math.nan)
            mean = np.mean(new[task]) if new[task] else math.nan
            assert row[f"rollout/episode_return_mean/{task}"] == pytest.approx(mean, nan_ok=True)
            assert row[f"rollout/return_last_100/{task}"] == pytest.approx(last[-1], nan_ok=True)
        assert row["rollout/return_last_100"] == pytest.approx(sum(last) / 2, nan_ok=True)
        assert row["rollout/episodes"] == count
        everything = [value for part in new.values() for value in part]
        mean = np.mean(everything) if everything else math.nan
        assert row["rollout/episode_return_mean"] == pytest.approx(mean, nan_ok=True)


def test_a_run_of_one_task_has_no_columns_of_tasks() -> None:
    row: Mapping[str, float] = EpisodeReducer().take()
    assert not [name for name in (*row, *columns_of([])) if name.count("/") > 1]
    assert set(EpisodeReducer(TASKS).take()) <= set(columns_of(TASKS))
    assert set(score(list(TASKS), [played(0.0)] * 2)) <= set(columns_of(TASKS))


def test_tensorboard_has_the_columns_of_tasks(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    file = TensorBoardFile(tmp_path, 0)
    file.write({"env_steps": 5.0} | {f"rollout/return_last_100/{task}": 1.5 for task in TASKS})
    file.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == [
        "rollout/return_last_100/ALE/Pong-v5",
        "rollout/return_last_100/tests.worlds:B",
    ]
