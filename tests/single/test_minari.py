"""Minari itself loads what is exported: every array is what the environment plays again from the episode's seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tests.no_mpi  # noqa: F401

# isort: split
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from hpcrl.commands.export import export
from hpcrl.errors import ConfigError, HpcrlError, TrajectoryError
from hpcrl.spaces import Space, packed
from hpcrl.storage.chunks import zstandard
from hpcrl.storage.minari import export_minari
from hpcrl.storage.minari_metadata import leaf_places, space_as_text
from hpcrl.storage.stitching import WholeEpisodes
from hpcrl.storage.trajectories import open_shards
from tests.recorded import SHORT_CARTPOLE, Acting, config_of
from tests.single.test_autoreset_reference import GAMES, Games

minari = pytest.importorskip("minari")

ENVIRONMENTS = {
    "plain": SHORT_CARTPOLE,
    # An image that Minari would take for JPEG, and numbers between bounds.
    "image": "tests.worlds:Any-image-box-v0",
    "choices": "tests.worlds:Any-multi_discrete-multi_binary-v0",
    "tuple": "tests.worlds:Any-tuple-dict-v0",
    "nested": "tests.worlds:Any-nested-tuple-v0",
}
PLAIN = ("plain", "image", "choices")


def record(path: Path, env: str = SHORT_CARTPOLE, **options: Any) -> Path:
    """A run with two shards of each of two actors, as its run directory."""
    acting = Acting(config_of(env, **options), path, (3, 1))
    acting.act(2)
    acting.act(3)
    return path


def load(directory: Path, dataset_id: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(directory))
    return minari.load_dataset(dataset_id)


def taken(elements: Any, t: int) -> Any:
    """Element t of a time-first array, or of those in a Dict or Tuple."""
    if isinstance(elements, dict):
        return {key: taken(part, t) for key, part in elements.items()}
    if isinstance(elements, tuple):
        return tuple(taken(part, t) for part in elements)
    return elements[t]


def stored(space: spaces.Space, element: Any) -> Any:
    """What an environment observes, in its stored form."""
    match space:
        case spaces.Dict():
            return {key: stored(part, element[key]) for key, part in space.spaces.items()}
        case spaces.Tuple():
            return tuple(stored(*both) for both in zip(space.spaces, element, strict=True))
        case spaces.Discrete() | spaces.MultiDiscrete():
            return np.int64(element) - space.start
        case spaces.Box() if np.issubdtype(space.dtype, np.floating):
            return element.astype(np.float32)
    return element


def playable(space: spaces.Space, element: Any) -> Any:
    """A stored action as the environment wants it."""
    match space:
        case spaces.Dict():
            return {key: playable(part, element[key]) for key, part in space.spaces.items()}
        case spaces.Tuple():
            return tuple(playable(*both) for both in zip(space.spaces, element, strict=True))
        case spaces.Discrete() | spaces.MultiDiscrete():
            return (element + space.start).astype(space.dtype)
        case spaces.Box():
            return element.clip(space.low, space.high)
    return element


def is_same(one: Any, other: Any) -> bool:
    """Whether two elements are of the same form and equal to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(part, other[key]) for key, part in one.items())
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    one, other = np.asarray(one), np.asarray(other)
    return (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())


def require_played_again(dataset: Any, env: gym.Env) -> None:
    """Every episode of a dataset is what the environment does."""
    about = list(dataset.storage.get_episode_metadata(range(len(dataset))))
    for episode, metadata in zip(dataset.iterate_episodes(), about, strict=True):
        observation, rewards = env.reset(seed=metadata["seed"])[0], []
        for t in range(len(episode)):
            seen = stored(env.observation_space, observation)
            assert is_same(taken(episode.observations, t), seen) and dataset.observation_space.contains(seen)
            action = playable(env.action_space, taken(episode.actions, t))
            observation, reward, terminated, truncated, _ = env.step(action)
            assert (terminated, truncated) == (episode.terminations[t], episode.truncations[t])
            rewards.append(reward)
        assert (terminated or truncated) and not (episode.terminations | episode.truncations)[:-1].any()
        assert is_same(taken(episode.observations, len(episode)), stored(env.observation_space, observation))
        assert is_same(episode.rewards, np.float32(rewards))
        assert sum(rewards) == pytest.approx(metadata["return"], rel=1e-5)
        assert (metadata["id"], metadata["total_steps"]) == (episode.id, len(episode))


def require_same(dataset: Any, other: Any) -> None:
    assert (dataset.total_episodes, dataset.total_steps) == (other.total_episodes, other.total_steps)
    assert (dataset.observation_space, dataset.action_space) == (other.observation_space, other.action_space)
    for one, two in zip(dataset.iterate_episodes(), other.iterate_episodes(), strict=True):
        assert is_same(vars(one), vars(two))
    assert list(dataset.storage.get_episode_metadata([0, 1])) == list(other.storage.get_episode_metadata([0, 1]))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_minari_loads_what_the_environments_did(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env_id = ENVIRONMENTS[name]
    run_dir = record(tmp_path / "run", env_id, model="nature") if name == "image" else record(tmp_path / "run", env_id)
    done = export_minari(run_dir, tmp_path / "data")
    dataset = load(tmp_path / "data", done.dataset_id, monkeypatch)
    assert len(dataset) == done.num_episodes > 6 and dataset.total_steps == done.num_steps
    assert list(minari.list_local_datasets()) == [done.dataset_id]
    env = gym.make(env_id, disable_env_checker=True)
    require_played_again(dataset, env)
    episodes = WholeEpisodes(open_shards(run_dir / "trajectories"))
    for episode, expected in zip(dataset, episodes, strict=True):
        for info in ("behaviour_log_prob", "value"):
            said = episode.infos[info]
            assert is_same(said[:-1], expected.steps(info)) and len(said) == len(episode) + 1 and np.isnan(said[-1])
        metadata = next(iter(dataset.storage.get_episode_metadata([episode.id])))
        for attribute in ("env_index", "number", "seed", "policy_version"):
            assert metadata[attribute] == getattr(expected, attribute)
    if name in PLAIN:
        linked = export_minari(run_dir, tmp_path / "data", "link", "links/all-v3")
        require_same(dataset, load(tmp_path / "data", linked.dataset_id, monkeypatch))
    else:
        with pytest.raises(TrajectoryError, match=r"--link needs a plain observation, that of .*-0000.h5 is packed"):
            export_minari(run_dir, tmp_path / "data", "link", "links/all-v3")


def test_the_environment_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = export_minari(record(tmp_path / "run"), tmp_path)
    dataset = load(tmp_path, done.dataset_id, monkeypatch)
    assert done.has_env_spec and dataset.spec.env_spec.id == SHORT_CARTPOLE
    require_played_again(dataset, dataset.recover_environment())


def test_links_move_with_their_run_and_hold_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = record(tmp_path / "here/run")
    copied = export_minari(run_dir, tmp_path / "copies")
    # A way through a link of the file system is not the place of the file.
    (tmp_path / "here/deep/down").mkdir(parents=True)
    (tmp_path / "shortcut").symlink_to(tmp_path / "here/deep/down")
    linked = export_minari(run_dir, tmp_path / "shortcut/data", "link")
    expected = load(tmp_path / "copies", copied.dataset_id, monkeypatch)
    require_same(expected, load(tmp_path / "shortcut/data", linked.dataset_id, monkeypatch))
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tmp_path / "there/deep/down/data"
    require_same(expected, load(moved, linked.dataset_id, monkeypatch))
    for shard in (tmp_path / "there/run/trajectories").iterdir():
        shard.unlink()
    # Nothing is left of it but what Minari can't tell from data, if not for NaN.
    assert np.isnan(load(moved, linked.dataset_id, monkeypatch)[0].rewards).all()


def test_a_lost_life_ends_no_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrl.envs.episodes.make_vector_env", lambda _world, num_envs, *_: Games(num_envs))
    monkeypatch.setattr("hpcrl.envs.restore._NoSnapshots.reset_seed", lambda _, seeds: seeds.tolist())
    run_dir = record(tmp_path / "run", "tests.worlds:Scripted-vector-disabled-v0")
    done = export_minari(run_dir, tmp_path)
    assert done.num_unfinished > 4
    games = set()
    for episode in load(tmp_path, done.dataset_id, monkeypatch):
        game = int(episode.observations[0, 0])
        seen = [(game, step) for step in range(len(GAMES[game]) + 1)]
        assert episode.observations.tolist() == [list(row) for row in seen]
        ends = np.flatnonzero(episode.terminations | episode.truncations)
        assert ends.tolist() == [len(episode) - 1] and episode.truncations[-1] == (GAMES[game][-1] == "truncated")
        games.add(game)
    assert games == {game for game, events in enumerate(GAMES) if events[-1] != "broken"}
    with pytest.raises(TrajectoryError, match=r"--link needs terminations that end their episode, .* has lost lives"):
        export_minari(run_dir, tmp_path, "link", "links/all-v0")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = str(record(tmp_path / "run"))
    assert export([run_dir, "--minari", str(tmp_path / "data"), "--link", "--dataset-id", "mine/falls-v7"]) == 0
    dataset = load(tmp_path / "data", "mine/falls-v7", monkeypatch)
    printed = capsys.readouterr().out
    assert f"{len(dataset)} whole episodes, {dataset.total_steps} steps" in printed
    assert "left out: 4 episodes without an end, 0 with steps missing" in printed
    assert f"minari.load_dataset('mine/falls-v7') under MINARI_DATASETS_PATH={tmp_path / 'data'}" in printed
    refused: dict[str, tuple[str, ...]] = {
        "not both": ("--minari", "data", "--copy", "--link"),
        "--best is for --safetensors": ("--minari", "data", "--best"),
        "are for --minari": ("--safetensors", "file", "--link"),
        "exactly one of: --safetensors, --minari": (),
        "holds no whole shard of evaluation episodes": ("--minari", "data", "--evaluation"),
        "exists already": ("--minari", str(tmp_path / "data"), "--dataset-id", "mine/falls-v7"),
        "must be like NAMESPACE/NAME-v0": ("--minari", "data", "--dataset-id", "../falls-v0"),
    }
    for message, options in refused.items():
        with pytest.raises(HpcrlError, match=message):
            export([run_dir, *options])


def test_nothing_is_left_of_a_dataset_that_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = record(tmp_path / "run")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"file/hpcrl/hpcrl-tests-ShortCartPole-v0-ppo-v0 can't be written"):
        export_minari(run_dir, tmp_path / "file")
    monkeypatch.setattr("os.pwrite", full_disk)
    with pytest.raises(ConfigError, match=r"can't be written: .*No space left"):
        export_minari(run_dir, tmp_path / "data")
    assert not list((tmp_path / "data/hpcrl").iterdir())
    monkeypatch.undo()
    Acting(config_of(SHORT_CARTPOLE, unroll_length=1), tmp_path / "short").act(1)
    with pytest.raises(TrajectoryError, match="holds no whole episode of training"):
        export_minari(tmp_path / "short", tmp_path / "data")


def full_disk(*_: Any) -> int:
    raise OSError(28, "No space left on device")


def test_parts_whose_names_are_no_places_are_refused() -> None:
    leaf = Space("box", (2,), "float32")
    assert leaf_places(packed((("a/0", leaf), ("a/1/b c", leaf)))) == {"a/0": "a/_index_0", "a/1/b c": "a/_index_1/b c"}
    for names in (("a", "a/b"), ("a/b", "a"), ("a//b",), ("..",)):
        with pytest.raises(TrajectoryError, match="no place for a part"):
            space_as_text(packed(tuple((name, leaf) for name in names)))


@pytest.mark.skipif(zstandard is None, reason="needs the package zstandard")
def test_what_not_every_hdf5_reads_is_copied_and_not_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = record(tmp_path / "run", record_compression="zstd")
    done = export_minari(run_dir, tmp_path)
    require_played_again(load(tmp_path, done.dataset_id, monkeypatch), gym.make(SHORT_CARTPOLE))
    with pytest.raises(TrajectoryError, match=r"--link needs shards that every HDF5 reads, .*-0000.h5 has zstd"):
        export_minari(run_dir, tmp_path, "link", "links/all-v0")
