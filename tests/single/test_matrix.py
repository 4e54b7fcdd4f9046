"""Every observation kind with every action kind, core and algorithm: a few updates of one rank each."""

from __future__ import annotations

from typing import Any, cast

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpcrl.config import CONFIGS, ActorCriticConfig
from hpcrl.models.packing import unpack
from hpcrl.roles.station import Station
from hpcrl.roles.synchronous import SynchronousStation
from hpcrl.signals import Requests
from tests.single.test_async_rank import station_of
from tests.worlds import ACTIONS, MASKABLE, OBSERVATIONS

NUM_ENVS, TIME = 3, 4
ALGORITHMS = ("a2c", "ppo", "impala", "appo", "a3c")
OPTIONS: dict[str, Any] = {
    "num_envs": NUM_ENVS,
    "unroll_length": TIME,
    "hidden_sizes": (4,),
    "core_size": 4,
    "total_env_steps": 10**6,
    "entropy_coef": 0.01,
}
OF_ALGORITHM: dict[str, dict[str, Any]] = {
    "ppo": {"minibatches": 2, "epochs": 1},
    "impala": {"batch_envs": NUM_ENVS},
    "appo": {"batch_envs": NUM_ENVS, "replay_epochs": 2},
}


class Tiny(nn.Module):
    """A user's own encoder: a product for the numbers beside the mean colours of all images."""

    def __init__(self, num_inputs: int, image_shapes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.num_features = 3 + len(image_shapes)
        self.layer = nn.Linear(num_inputs, 3)
        self.brightness = nn.Parameter(torch.ones(len(image_shapes)))

    def forward(self, rows: Tensor, *images: Tensor) -> Tensor:
        means = [image.float().flatten(1).mean(1, keepdim=True) / 255 for image in images]
        return torch.cat([self.layer(rows), *(mean * w for mean, w in zip(means, self.brightness, strict=True))], 1)


def learn(algorithm: str, env: str, batches: int = 2, **changes: Any) -> Station:
    """A rank that has learned from a few batches; every part of its policy has moved, and all numbers are finite."""
    options = OPTIONS | OF_ALGORITHM.get(algorithm, {}) | {"env": f"tests.worlds:{env}-v0"} | changes
    station = station_of(cast(ActorCriticConfig, CONFIGS[algorithm](**options)), Requests())
    before = parts(station)
    role = station.role
    role.start()
    controls = [role.advance() for _ in range(batches)]
    assert role.reducer is not None and station.actor is not None
    statistics = role.reducer.take()
    assert np.isfinite(list(statistics.values())).all(), statistics
    assert statistics["train/grad_norm"] > 0 and statistics["train/entropy"] != 0
    for name, part in parts(station).items():
        assert part.isfinite().all(), name
        assert not torch.equal(part, before[name]), f"the {name} of the policy did not learn"
    per_batch = {"ppo": 2, "appo": 2}.get(algorithm, 1)
    # The owner of an asynchronous run counts a gradient when it next looks.
    assert algorithm == "a3c" or controls[-1].policy_version == batches * per_batch
    station.actor.close()
    return station


def parts(station: Station) -> dict[str, Tensor]:
    """The weights of each part of the policy that has any to learn."""
    children = [(name, child) for name, child in station.policy.named_children() if name != "inputs"]
    vectors = {name: [p.detach().flatten() for p in child.parameters() if p.numel()] for name, child in children}
    return {name: torch.cat(vector) for name, vector in vectors.items() if vector}


# Kinds


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("core", ["none", "lstm"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_kind_of_observation_learns_every_kind_of_action(algorithm: str, core: str, observation: str) -> None:
    for action in ACTIONS:
        learn(algorithm, f"Any-{observation}-{action}", core=core)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_gated_unit_learns(algorithm: str) -> None:
    assert learn(algorithm, "Any-tuple-dict", core="gru").policy.state_size > 0


@pytest.mark.parametrize("observation", ["vector", "nested"])
def test_native_vector_forms_learn(observation: str) -> None:
    for algorithm, action in zip(ALGORITHMS, ACTIONS, strict=False):
        learn(algorithm, f"Any-{observation}-{action}", batches=4, vector="native", core="lstm")


# Masks: a world that is given a forbidden action raises.


@pytest.mark.parametrize("vector", ["sync", "native"])
@pytest.mark.parametrize("place", ["info", "observation"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_forbidden_action_is_ever_taken(algorithm: str, place: str, vector: str) -> None:
    for action in MASKABLE:
        core = "lstm" if action == "multi_discrete" else "none"
        learn(algorithm, f"Masked-{place}-{action}", batches=6, vector=vector, core=core)


@pytest.mark.parametrize("algorithm", ["impala", "appo"])
@pytest.mark.parametrize("place", ["info", "observation"])
def test_random_actions_are_allowed_ones(place: str, algorithm: str) -> None:
    for action in MASKABLE:
        for epsilon in (0.5, 1.0):
            learn(algorithm, f"Masked-{place}-{action}", batches=6, behaviour_epsilon=epsilon)


# What the policy sees


@pytest.mark.parametrize("observation", ["vector", "volume", "image"])
@pytest.mark.parametrize("core", ["none", "lstm"])
def test_stacked_frames_learn(core: str, observation: str) -> None:
    for algorithm in ALGORITHMS:
        station = learn(algorithm, f"Any-{observation}-discrete", batches=3, frame_stack=3, core=core)
        assert station.policy.space.size == 3 * int(np.prod(OBSERVATIONS[observation].shape))  # type: ignore[arg-type]


@pytest.mark.parametrize("core", ["none", "lstm"])
@pytest.mark.parametrize("model", ["nature", "impala", "impala-deep", f"{__name__}:Tiny"])
def test_named_models_and_ones_own_learn(model: str, core: str) -> None:
    for algorithm, observation in zip(ALGORITHMS, ["dict", "nested", "dict", "nested", "dict"], strict=True):
        learn(algorithm, f"Any-{observation}-tuple", model=model, core=core)


def test_a_model_of_ones_own_sees_rows_and_images_and_its_first_weights_are_the_seeds() -> None:
    torch.manual_seed(1)
    one = learn("a2c", "Any-nested-discrete", model=f"{__name__}:Tiny")
    torch.manual_seed(2)
    two = learn("a2c", "Any-nested-discrete", model=f"{__name__}:Tiny")
    other = learn("a2c", "Any-nested-discrete", model=f"{__name__}:Tiny", seed=3)
    assert torch.equal(one.flat.weights, two.flat.weights) and not torch.equal(one.flat.weights, other.flat.weights)
    inputs = one.policy.inputs
    assert inputs.num_inputs == 4 + 4 + 13 + 3 and len(inputs.images) == 1
    observation = torch.zeros(2, one.policy.space.nbytes, dtype=torch.uint8)
    unpack(one.policy.space, observation)["body/camera"][1] = 51
    features = one.policy.encoder.features(inputs(observation))
    own = cast(Any, one.policy.encoder).module
    assert torch.equal(features[:, :3], own.layer(inputs(observation).rows))
    torch.testing.assert_close(features[:, 3], torch.tensor([0.0, 0.2]) * own.brightness)


# What the learner normalises


@pytest.mark.parametrize("algorithm", ["a2c", "ppo", "impala", "appo"])
@pytest.mark.parametrize("frame_stack", [1, 2])
def test_normalised_observations_and_returns_learn(frame_stack: int, algorithm: str) -> None:
    kinds = ["vector", "volume", "image"] if frame_stack > 1 else OBSERVATIONS
    for number, observation in enumerate(kinds):
        station = learn(
            algorithm,
            f"Any-{observation}-{list(ACTIONS)[number % len(ACTIONS)]}",
            frame_stack=frame_stack,
            core=["none", "lstm"][number % 2],
            normalise_observations=True,
            normalise_returns=True,
            reward_clip=0.5,
        )
        assert isinstance(station, SynchronousStation) and station.learner is not None
        state = station.learner.normalisers.state()
        # Every step was seen once.
        assert state["observations/count"] == state["returns/count"] == 2 * NUM_ENVS * TIME
        assert all(np.isfinite(array).all() for array in state.values())
        mean, scale, boxes = (cast(Tensor, getattr(station.policy.inputs, name)) for name in ("mean", "scale", "boxes"))
        assert (mean[~boxes] == 0).all() and (scale[~boxes] == 1).all()
        assert (mean[boxes] != 0).all() and (scale[boxes] != 1).all()
        assert torch.equal(mean, mean.view(frame_stack, -1)[0].repeat(frame_stack))


@pytest.mark.parametrize("core", ["none", "lstm"])
def test_clipped_rewards_learn_without_shared_statistics(core: str) -> None:
    learn("a3c", "Any-dict-box", reward_clip=0.1, core=core)
