"""Whole episodes of a recorded run, whoever wrote their parts, are those that the environments play again."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import tests.no_mpi  # noqa: F401

# isort: split
import gymnasium as gym
import numpy as np
import pytest

from hpcrl.envs.factory import describe_task
from hpcrl.envs.world import worlds_of
from hpcrl.roles.evaluation import play
from hpcrl.roles.evaluation_recording import EvaluationRecorder
from hpcrl.storage.shard_reader import Shard
from hpcrl.storage.stitching import Episode, WholeEpisodes
from hpcrl.storage.trajectories import open_shards
from hpcrl.unroll import NO_MEMORY
from tests.recorded import SHORT_CARTPOLE, TIME, Acting, config_of
from tests.recordings import make_shard

#: Unrolls of one actor of four environments, then of two after a resume; a shard each.
BEFORE, AFTER = (1, 1, 1, 1), (1, 3)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    config = config_of(SHORT_CARTPOLE)
    one = Acting(config, path)
    for num_unrolls in BEFORE:
        one.act(num_unrolls)
    two = Acting(config, path, (1, 3), number=len(BEFORE))
    two.go_on_from(one)
    for num_unrolls in AFTER:
        two.act(num_unrolls)
    return path


def key_of(episode: Episode) -> tuple[int, int]:
    return episode.env_index, episode.number


def classes(shards: list[Shard]) -> dict[str, set[tuple[int, int]]]:
    """Episodes by what is known of them, looked at one after the other."""
    parts = defaultdict(list)
    for shard in shards:
        for row in zip(*(column.tolist() for column in shard.episodes), strict=True):
            part = shard.episodes._make(row)
            parts[int(part.env_index), int(part.number)].append(part)
    found: dict[str, set[tuple[int, int]]] = {"whole": set(), "unfinished": set(), "gap": set()}
    for key, of_one in parts.items():
        of_one.sort(key=lambda part: part.first_step)
        steps = 0
        for part in of_one:
            steps = steps + part.end_row - part.first_row if part.first_step == steps else -(10**6)
        found["gap" if steps < 0 else "whole" if of_one[-1].is_over else "unfinished"].add(key)
    return found


def test_episodes_go_on_in_the_shards_of_other_actors(run_dir: Path) -> None:
    shards = open_shards(run_dir / "trajectories")
    episodes = WholeEpisodes(shards)
    assert [key_of(episode) for episode in episodes] == sorted(map(key_of, episodes))
    writers = [{part.shard.about.actor for part in episode.parts} for episode in episodes]
    assert any(len(actors) > 1 for actors in writers) and max(len(episode.parts) for episode in episodes) > 2
    rows = TIME * sum((*BEFORE, *AFTER))
    running = 0
    for env_index in range(4):
        own = [episode for episode in episodes if episode.env_index == env_index]
        assert [episode.number for episode in own] == list(range(len(own)))
        # None of the steps is missing, and none is there twice.
        assert 0 <= rows - sum(episode.length for episode in own) < 18
        running += rows > sum(episode.length for episode in own)
    assert (episodes.num_unfinished, episodes.num_gaps) == (running, 0)
    assert episodes.num_steps == sum(episode.length for episode in episodes)
    assert {(episode.terminated, episode.truncated) for episode in episodes} >= {(True, False), (False, True)}


def test_environments_play_the_same_episodes_again(run_dir: Path) -> None:
    env = gym.make(SHORT_CARTPOLE, disable_env_checker=True)
    for episode in WholeEpisodes(open_shards(run_dir / "trajectories")):
        seen, ends, total = [env.reset(seed=episode.seed)[0]], [(False, False)], 0.0
        for action in episode.steps("action"):
            observation, reward, terminated, truncated, _ = env.step(action)
            seen.append(observation)
            ends.append((terminated, truncated))
            total += float(reward)
        assert np.stack(seen).tobytes() == episode.observations().tobytes()
        assert ends[-1] == (episode.terminated, episode.truncated) and not np.any(ends[:-1])
        assert (len(seen) - 1, total) == (episode.length, episode.episode_return)
        first = episode.parts[0]
        unroll = np.flatnonzero(first.shard.unrolls["first_row"] <= first.first_row)[-1]
        assert episode.policy_version == first.shard.unrolls["policy_version"][unroll]


@pytest.mark.parametrize("lost", range(len(BEFORE) + 2 * len(AFTER)))
def test_a_shard_that_is_lost_takes_no_other_episode_with_it(run_dir: Path, lost: int) -> None:
    shards = open_shards(run_dir / "trajectories")
    before = WholeEpisodes(shards)
    without = [shard for number, shard in enumerate(shards) if number != lost]
    after, expected = WholeEpisodes(without), classes(without)
    assert {key_of(episode) for episode in after} == expected["whole"]
    assert (after.num_unfinished, after.num_gaps) == (len(expected["unfinished"]), len(expected["gap"]))
    untouched = [episode for episode in before if all(part.shard is not shards[lost] for part in episode.parts)]
    assert [episode[:-1] for episode in after] == [episode[:-1] for episode in untouched]


@pytest.mark.parametrize("seed", range(5))
def test_episodes_of_environments_that_break_have_no_end(tmp_path: Path, seed: int) -> None:
    shard = Shard(make_shard(tmp_path, seed, num_rows=150))
    episodes, expected = WholeEpisodes([shard]), classes([shard])
    assert {key_of(episode) for episode in episodes} == expected["whole"] and expected["unfinished"]
    assert (episodes.num_unfinished, episodes.num_gaps) == (len(expected["unfinished"]), len(expected["gap"]))
    for episode in episodes:
        assert episode.steps("valid").all() and np.flatnonzero(episode.steps("ended")).tolist() == [episode.length - 1]
        assert episode.steps("reward").sum() == episode.episode_return


def test_the_order_of_reading_goes_through_each_shard_once(run_dir: Path) -> None:
    episodes = WholeEpisodes(open_shards(run_dir / "trajectories"))
    last = [episodes[number].parts[-1] for number in episodes.by_place()]
    assert sorted(episodes.by_place()) == list(range(len(episodes)))
    places = [(part.shard.path, part.end_row) for part in last]
    assert all(one <= other for one, other in pairwise(places))


def test_evaluations_that_play_the_same_episodes_are_kept_apart(tmp_path: Path) -> None:
    config = config_of(SHORT_CARTPOLE, record_evaluation=True, eval_every=1)
    acting = Acting(config, tmp_path)
    (world,) = worlds_of(config)
    task = describe_task(world)
    recorder = EvaluationRecorder(config, task, NO_MEMORY, 0, tmp_path / "trajectories", 0)
    results = []
    for env_steps in (100, 20):
        recorder.env_steps = env_steps
        acting.policy.head.weight.data.mul_(-100)
        played = play(acting.policy, world, task, range(5), 3, False, recorder=recorder)
        results.append(np.stack([played.returns, played.lengths], 1))
    episodes = WholeEpisodes(open_shards(tmp_path / "trajectories", "evaluation"))
    assert [episode.number for episode in episodes] == [0] * 10
    assert [episode.env_index for episode in episodes] == [*range(5), *range(5)]
    # The evaluation at 20 env steps comes first.
    expected = np.concatenate(results[::-1])
    assert [(episode.episode_return, episode.length) for episode in episodes] == list(map(tuple, expected.tolist()))
    assert (results[0] != results[1]).any()
