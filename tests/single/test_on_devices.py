"""Losses on an accelerator: no tensor of the host comes in between, and no number is read back.

torch's device "meta" stands for the accelerator: its tensors have shapes, but no numbers to read, and a mode refuses
what mixes them with tensors of the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpcrl.algorithms.batch import Batch, moved
from hpcrl.algorithms.loss import STATISTICS, Targets
from hpcrl.algorithms.minibatches import minibatches
from hpcrl.algorithms.registry import LOSSES
from hpcrl.algorithms.standardising import standardise
from hpcrl.config import CONFIGS, ActorCriticConfig, PPOConfig
from hpcrl.envs.codec import ObservationWriter
from hpcrl.envs.factory import describe_task
from hpcrl.envs.world import worlds_of
from hpcrl.models.policy import Policy
from hpcrl.roles.batching import batch_of
from hpcrl.spaces import Task
from hpcrl.unroll import Memory, Unroll, UnrollSpec
from tests.worlds import OBSERVATIONS, draw

TIME, NUM_ENVS, NUM_FINALS = 4, 3, 2
META = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Refuses operations between tensors of two devices, but for single numbers of the host."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor) and leaf.dim()]
        devices = {tensor.device.type for tensor in tensors}
        assert devices <= {"meta"}, f"{function} is on {devices}"
        return result


def policy_and_batch(config: ActorCriticConfig) -> tuple[Policy, Batch]:
    """A policy and a batch of zeros with truncated episodes, on the device "meta"."""
    task = describe_task(worlds_of(config)[0])
    with META:
        policy = Policy(task, config)
    memory = Memory(policy.state_size, config.frame_stack - 1, config.normalise_returns)
    unroll = Unroll(UnrollSpec(task, TIME, NUM_ENVS, 0, NUM_FINALS, memory=memory))
    unroll.set_header(num_finals=NUM_FINALS, length=TIME)
    return policy, moved(batch_of(unroll), META)


def learn(algorithm: str, env: str, **changes: Any) -> Iterator[Tensor]:
    """Loss and gradients of one update; the statistics, and all gradients."""
    options: dict[str, Any] = {"num_envs": NUM_ENVS, "unroll_length": TIME, "hidden_sizes": (4,), "core_size": 4}
    options |= {"env": env, "entropy_coef": 0.01, **({"minibatches": 2} if algorithm == "ppo" else {}), **changes}
    config = CONFIGS[algorithm](**options)
    assert isinstance(config, ActorCriticConfig)
    policy, batch = policy_and_batch(config)
    with OneDevice():
        loss = LOSSES[algorithm](
            policy,
            batch,
            config,
            0.01,
            (lambda advantages, valid: standardise(advantages, valid, lambda sums: sums))
            if config.normalise_advantages
            else None,
        )
        loss.total.backward()
    assert loss.total.device == loss.statistics.device == META and loss.statistics.shape == (len(STATISTICS),)
    yield loss.statistics
    yield from (parameter.grad for parameter in policy.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("algorithm", ["a2c", "ppo", "impala", "appo"])
@pytest.mark.parametrize("core", ["none", "lstm", "gru"])
@pytest.mark.parametrize("observation", ["vector", "image", "nested"])
def test_observations_stay_there(observation: str, core: str, algorithm: str) -> None:
    gradients = list(learn(algorithm, f"tests.worlds:Any-{observation}-discrete-v0", core=core))
    assert len(gradients) > 4 and all(gradient.device == META for gradient in gradients)


@pytest.mark.parametrize("algorithm", ["a2c", "ppo", "impala", "appo"])
@pytest.mark.parametrize("action", ["multi_discrete_start", "multi_binary", "box", "tuple", "dict"])
def test_actions_stay_there(action: str, algorithm: str) -> None:
    assert len(list(learn(algorithm, f"tests.worlds:Any-vector-{action}-v0"))) > 4


@pytest.mark.parametrize("algorithm", ["a2c", "ppo", "impala"])
@pytest.mark.parametrize(
    ("env", "changes"),
    [
        ("Any-image-discrete-v0", {"frame_stack": 4}),
        ("Any-image-discrete-v0", {"frame_stack": 4, "core": "lstm", "precision": "bfloat16"}),
        ("Any-image-discrete-v0", {"model": "impala"}),
        ("Any-image-discrete-v0", {"model": "impala-deep", "precision": "bfloat16"}),
        ("Any-vector-box-v0", {"normalise_observations": True, "normalise_returns": True}),
        ("Any-vector-discrete-v0", {"frame_stack": 2, "activation": "relu", "shared_encoder": True}),
        ("Any-multi_binary-discrete-v0", {"hidden_sizes": ()}),
        ("Masked-info-multi_discrete-v0", {}),
        ("Masked-observation-discrete-v0", {"core": "gru"}),
    ],
)
def test_options_stay_there(env: str, changes: dict[str, Any], algorithm: str) -> None:
    assert len(list(learn(algorithm, f"tests.worlds:{env}", **changes))) >= 2


@pytest.mark.parametrize("algorithm", ["a2c", "ppo", "impala", "appo"])
def test_standardised_advantages_stay_there(algorithm: str) -> None:
    assert list(learn(algorithm, "tests.worlds:Any-vector-discrete-v0", normalise_advantages=True))


@pytest.mark.parametrize("changes", [{}, {"normalise_returns": True}])
def test_minibatches_stay_there(changes: dict[str, Any]) -> None:
    config = PPOConfig(
        env="tests.worlds:Any-vector-box-v0", num_envs=NUM_ENVS, unroll_length=TIME, epochs=2, minibatches=3, **changes
    )
    # What is standardised is added up on the host.
    config = replace(config, normalise_advantages=False)
    _, batch = policy_and_batch(config)
    # Which columns a learner has is looked up on the host.
    none = batch.final_observation[:0], batch.final_index[:0]
    batch = replace(batch, env_index=torch.arange(NUM_ENVS), final_observation=none[0], final_index=none[1])
    targets = Targets(batch.reward, batch.reward)
    parts = list(minibatches(batch, targets, config, 7, whole_columns=False, total=lambda sums: sums))
    assert len(parts) == 6
    for part in parts:
        for field in fields(Batch):
            device = torch.device("cpu") if field.name == "env_index" else META
            assert getattr(part.batch, field.name).device == device, field.name
        assert part.targets.values.device == META


@pytest.mark.parametrize("spoiled", [torch.zeros(3), torch.tensor([1])])
def test_what_mixes_devices_is_found(spoiled: Tensor) -> None:
    with OneDevice(), pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(3, device=META)[..., :1] @ spoiled[:1].float()


def gradient(policy: Policy, batch: Batch, config: ActorCriticConfig) -> Tensor:
    loss = LOSSES[config.algorithm](policy, batch, config, 0.01, None)
    parts = torch.autograd.grad(loss.total, list(policy.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([loss.statistics, *(part.flatten() for part in parts)])


@pytest.mark.parametrize(
    ("env", "changes"),
    [
        ("Any-image-discrete-v0", {"frame_stack": 4}),
        ("Any-nested-box-v0", {"core": "lstm"}),
        ("Any-image-discrete-v0", {"core": "gru", "model": "impala"}),
        ("Any-vector-discrete-v0", {}),
        ("Any-vector-discrete-v0", {"activation": "relu"}),
    ],
)
def test_layers_as_computed_there_are_those_of_the_host(
    env: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"num_envs": NUM_ENVS, "unroll_length": TIME, "hidden_sizes": (8,), "core_size": 6}
    config = CONFIGS["a2c"](**options, env=f"tests.worlds:{env}", **changes)
    assert isinstance(config, ActorCriticConfig)
    task = describe_task(worlds_of(config)[0])
    policy = Policy(task, config)
    policy.initialise(1)
    batch = random_batch(task, policy, config)
    on_host = gradient(policy, batch, config)
    for module in ("images", "convolutions", "fused", "cores"):
        monkeypatch.setattr(f"hpcrl.models.{module}.on_host", lambda tensor: False)
    there = gradient(policy, batch, config)
    assert (there - on_host).norm() < 1e-5 * on_host.norm()


def random_batch(task: Task, policy: Policy, config: ActorCriticConfig) -> Batch:
    """Random observations, rewards and ends of episodes; the first of all actions."""
    memory = Memory(policy.state_size, config.frame_stack - 1)
    unroll = Unroll(UnrollSpec(task, TIME, NUM_ENVS, 0, NUM_FINALS, memory=memory))
    rng = np.random.default_rng(3)
    for field in ("observation", "history"):
        array = getattr(unroll, field)
        if array.dtype == np.uint8:
            array[...] = rng.integers(0, 200, array.shape)
        else:
            array[...] = rng.normal(size=array.shape)
    if task.observation.leaves:
        space = OBSERVATIONS["nested"]
        for row in unroll.observation:
            writer = ObservationWriter(space, task.observation, row)
            for b in range(NUM_ENVS):
                writer.write(b, draw(space, rng), {})
    unroll.reward[...] = rng.normal(size=unroll.reward.shape)
    unroll.terminated[...] = rng.random(unroll.terminated.shape) < 0.3
    unroll.valid[...] = True
    unroll.set_header(length=TIME, num_finals=0)
    return batch_of(unroll)
