"""A loaded policy takes what Gymnasium gives and returns what it takes, and plays as `hpcrl eval` does."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from numpy.typing import NDArray

from hpcrl import A2CConfig, HpcrlError, PPOConfig, TrainConfig, load_policy
from hpcrl.commands.eval import evaluate
from hpcrl.errors import CheckpointError, ConfigError, ShapeError
from hpcrl.roles.evaluation import interval_of_mean
from hpcrl.trained_policy import TrainedPolicy
from tests.trained import save_untrained


class Everything(gym.Env[Any, Any]):
    """Observes a Dict of all that can be observed, does a Tuple of all that can be done; draws both."""

    observation_space = spaces.Dict(
        {
            "numbers": spaces.Box(-1, 1, (2, 3), np.float64),
            "parts": spaces.Tuple((spaces.Discrete(4, start=-2), spaces.MultiBinary(3))),
            "choices": spaces.MultiDiscrete([3, 2], start=[1, 5]),
        }
    )
    action_space = spaces.Tuple(
        (
            spaces.Discrete(3, start=5),
            spaces.Dict({"force": spaces.Box(-0.1, 0.1, (2,), np.float64), "flags": spaces.MultiBinary(2)}),
        )
    )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        # Spaces draw from generators of their own, and one of the class would be shared.
        self.observation_space = copy.deepcopy(Everything.observation_space)
        self.observation_space.seed(seed)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self._steps += 1
        reward = float(action[0] + action[1]["force"].sum())
        return self.observation_space.sample(), reward, False, self._steps == 5, {}


class Masked(gym.Env[Any, Any]):
    """Allows one of four choices, counted from 10, and says which in its infos alone."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(4, start=10, dtype=np.int32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {"action_mask": np.array([0, 0, 1, 0], np.int8)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return np.zeros(2, np.float32), 1.0, True, False, {"action_mask": np.array([0, 0, 1, 0], np.int8)}


gym.register("hpcrl-tests/Everything-v0", Everything)
gym.register("hpcrl-tests/Masked-v0", Masked)
gym.register("hpcrl-tests/CartPole-60-v0", CartPoleEnv, max_episode_steps=60)  # type: ignore[arg-type]

SMALL: dict[str, Any] = {"hidden_sizes": (8,)}
PLAYED = {
    "discrete": (PPOConfig(env="CartPole-v1", normalise_observations=True, **SMALL), 60),
    "continuous": (PPOConfig(env="Pendulum-v1", normalise_observations=True, **SMALL), 30),
    "remembers": (
        A2CConfig(env="hpcrl-tests/CartPole-60-v0", core="lstm", core_size=8, frame_stack=3, **SMALL),
        300,
    ),
    "everything": (A2CConfig(env="hpcrl-tests/Everything-v0", core="lstm", core_size=8, **SMALL), 100),
    "masked": (A2CConfig(env="hpcrl-tests/Masked-v0", **SMALL), 1),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run directories by name, made when they are asked for."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run_dir(name: str) -> Path:
        if name not in made:
            config, gain = PLAYED[name]
            made[name] = save_untrained(folder / name, config, gain)
        return made[name]

    return run_dir


def episode(policy: TrainedPolicy, seed: int, deterministic: bool) -> tuple[float, int]:
    """Return and length, as anybody would play it with Gymnasium."""
    env = gym.make(policy.env_id)
    observation, info = env.reset(seed=seed)
    policy.reset()
    total, steps, is_over = 0.0, 0, False
    while not is_over:
        action = policy.act(observation, deterministic, info)
        assert env.action_space.contains(action)
        observation, reward, terminated, truncated, info = env.step(action)
        total, steps, is_over = total + float(reward), steps + 1, terminated or truncated
    env.close()
    return total, steps


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", PLAYED)
def test_it_plays_as_eval_does(runs: Any, tmp_path: Path, name: str, deterministic: bool) -> None:
    options = ["--episodes", "3", "--seed", "5", "--json", str(tmp_path / "said.json")]
    assert evaluate([str(runs(name)), *options, *(["--deterministic"] if deterministic else [])]) == 0
    (said,) = json.loads((tmp_path / "said.json").read_text())["tasks"]
    policy = load_policy(runs(name), seed=5)
    played = [episode(policy, seed, deterministic) for seed in said["seeds"]]
    assert [length for _, length in played] == said["lengths"]
    assert [total for total, _ in played] == pytest.approx(said["returns"], rel=1e-4)
    if name != "masked":
        assert len(set(said["returns"])) == 3


@pytest.mark.parametrize("name", ["remembers", "everything"])
def test_a_batch_is_what_each_of_it_would_be_alone(runs: Any, name: str) -> None:
    together, alone = load_policy(runs(name)), [load_policy(str(runs(name))) for _ in range(3)]
    envs = gym.make_vec(together.env_id, 3, vectorization_mode="sync")
    envs.single_observation_space.seed(3)
    differ = False
    for step in range(6):
        single = [envs.single_observation_space.sample() for _ in range(3)]
        batch = gym.vector.utils.concatenate(
            envs.single_observation_space, single, gym.vector.utils.create_empty_array(envs.single_observation_space, 3)
        )
        actions = together.act(batch)
        assert envs.action_space.contains(actions)
        expected = [policy.act(one) for policy, one in zip(alone, single, strict=True)]
        each = list(gym.vector.utils.iterate(envs.action_space, actions))
        assert flat(envs.single_action_space, each) == pytest.approx(flat(envs.single_action_space, expected), abs=1e-5)
        differ |= len(np.unique(flat(envs.single_action_space, each), axis=0)) > 1
        if step == 2:
            together.reset([False, True, False])
            alone[1].reset()
    assert differ
    envs.close()


def flat(space: gym.Space, actions: list[Any]) -> NDArray:
    return np.array([spaces.flatten(space, action) for action in actions])


def test_what_was_before_is_forgotten_only_where_it_is_over(runs: Any) -> None:
    policy = load_policy(runs("remembers"))
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)

    def acted(reset_at: int | None) -> list[int]:
        policy.reset()
        actions = []
        for number, observation in enumerate(observations):
            if number == reset_at:
                policy.reset()
            actions.append(int(policy.act(observation)))
        return actions

    whole = acted(None)
    assert acted(None) == whole
    assert any(acted(place)[place:] != whole[place:] for place in range(5, 15))


def test_masks_and_starts_and_dtypes(runs: Any) -> None:
    policy = load_policy(runs("masked"))
    for choice in range(4):
        mask = np.eye(4, dtype=np.int8)[choice]
        action = policy.act(np.zeros(2), info={"action_mask": mask})
        assert action == 10 + choice and action.dtype == np.int32
    batch = policy.act(np.zeros((4, 2)), False, {"action_mask": np.eye(4, dtype=np.int8)})
    assert batch.tolist() == [10, 11, 12, 13] and batch.dtype == np.int32
    with pytest.raises(ShapeError, match="action_mask"):
        policy.act(np.zeros(2))


def test_the_number_of_the_task_is_seen(tmp_path: Path) -> None:
    config = A2CConfig(env="CartPole-v0 CartPole-v1", task_id=True, **SMALL)
    run_dir = save_untrained(tmp_path / "run", config, 300)
    first, second = (load_policy(run_dir, task=task) for task in (0, 1))
    assert (first.env_id, second.env_id) == ("CartPole-v0", "CartPole-v1")
    observations = np.random.default_rng(1).normal(size=(200, 4))
    assert not np.array_equal(first.act(observations), second.act(observations))
    with pytest.raises(ConfigError, match="0 to 1"):
        load_policy(run_dir, task=2)


def test_what_it_says_of_itself(runs: Any) -> None:
    policy = load_policy(runs("remembers"))
    assert policy.config == PLAYED["remembers"][0] and policy.env_steps == 1000
    assert str(policy).startswith("a2c on hpcrl-tests/CartPole-60-v0 after 1,000 env steps: observes Box(")
    assert str(policy).endswith("does Discrete(2), and remembers")


def test_the_best_checkpoint_and_one_file(tmp_path: Path) -> None:
    config: TrainConfig = A2CConfig(env="CartPole-v1", **SMALL)
    for seed in (1, 2):
        save_untrained(tmp_path, config, seed=seed)
    assert load_policy(tmp_path).env_steps == 2000
    assert load_policy(tmp_path, best=True).env_steps == 1000
    assert load_policy(tmp_path / "checkpoints/step_1.h5").checkpoint.name == "step_1.h5"
    with pytest.raises(CheckpointError, match="neither a run directory"):
        load_policy(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "observation", [np.zeros(3), np.zeros((2, 3)), np.zeros((1, 2, 4)), np.zeros((0, 4)), {}, None]
)
def test_other_observations_are_refused(runs: Any, observation: Any) -> None:
    with pytest.raises(ShapeError, match="act expected an element of Box"):
        load_policy(runs("discrete")).act(observation)


def test_another_batch_is_refused_before_a_reset(runs: Any) -> None:
    policy = load_policy(runs("remembers"))
    policy.act(np.zeros((3, 4)))
    with pytest.raises(HpcrlError, match="expected 3 observations until reset"):
        policy.act(np.zeros((2, 4)))
    with pytest.raises(ShapeError, match="ended"):
        policy.reset([True])
    policy.reset()
    assert policy.act(np.zeros((2, 4))).shape == (2,)


def test_the_interval_of_the_mean() -> None:
    returns = np.random.default_rng(2).exponential(3.0, 400)
    # Where there are many the distribution of the mean is nearly a normal one.
    half = 1.96 * returns.std() / 20
    assert interval_of_mean(returns) == pytest.approx((returns.mean() - half, returns.mean() + half), abs=0.1 * half)
    assert interval_of_mean(np.full(5, 7.0)) == (7.0, 7.0)
    assert interval_of_mean(np.array([1.0])) is None
