"""Unrolls and learners for checks without environments: random numbers in the shape of a game or of a robot."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.activity import Activity
from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.loss import STATISTICS, Loss
from hpcrl.algorithms.optimizers import make_optimizer
from hpcrl.algorithms.registry import LOSSES
from hpcrl.cluster.waiting import Waiter
from hpcrl.config import ActorCriticConfig
from hpcrl.devices.accelerator import Accelerator
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.batching import Batcher
from hpcrl.roles.device_batching import DeviceBatcher
from hpcrl.roles.updates import scale_and_clip
from hpcrl.roles.workplace import OnAccelerator, OnHost, Workplace, copy_of
from hpcrl.spaces import Space, Task
from hpcrl.unroll import Memory, Unroll, UnrollSpec

GAME = Task(Space("box", (84, 84), "uint8"), Space("discrete", (), "int64", 6), 27_000, True)
ROBOT = Task(Space("box", (17,), "float64"), Space("box", (6,), "float32", low=(-1,) * 6, high=(1,) * 6), 1000, True)


def memory_of(policy: Policy, config: ActorCriticConfig) -> Memory:
    """What unrolls of this policy remember."""
    return Memory(policy.state_size, config.frame_stack - 1, config.normalise_returns)


def random_unroll(task: Task, config: ActorCriticConfig, memory: Memory, num_envs: int, seed: int) -> Unroll:
    """An unroll of random observations, actions, rewards and ends of episodes."""
    rng = np.random.default_rng(seed)
    unroll = Unroll(UnrollSpec(task, config.unroll_length, num_envs, 0, num_envs, memory=memory))
    for name in ("observation", "history", "final_observation"):
        _fill(getattr(unroll, name), rng)
    if task.action.kind == "discrete":
        unroll.action[...] = rng.integers(0, task.action.num_choices, unroll.action.shape)
    else:
        unroll.action[...] = rng.uniform(-1, 1, unroll.action.shape)
    unroll.reward[...] = rng.normal(size=unroll.reward.shape)
    unroll.behaviour_log_prob[...] = -1.8 + 0.1 * rng.normal(size=unroll.reward.shape)
    unroll.terminated[...] = rng.random(unroll.terminated.shape) < 0.01
    unroll.valid[...] = True
    unroll.final_index[: num_envs // 2, 0] = config.unroll_length // 2
    unroll.final_index[: num_envs // 2, 1] = np.arange(num_envs // 2)
    unroll.truncated[config.unroll_length // 2, : num_envs // 2] = True
    unroll.set_header(length=config.unroll_length, num_finals=num_envs // 2)
    return unroll


def _fill(array: NDArray, rng: np.random.Generator) -> None:
    if array.dtype == np.uint8:
        array[...] = rng.integers(0, 256, array.shape, dtype=np.uint8)
    else:
        array[...] = rng.normal(size=array.shape)


class Learning:
    """A policy and where it learns, without ranks.

    Args:
        task, config: of a run.
        accelerator: what it learns on; None: the CPU.
    """

    def __init__(self, task: Task, config: ActorCriticConfig, accelerator: Accelerator | None) -> None:
        self.config = config
        self.waiter = Waiter(Activity())
        own = Policy(task, config)
        own.initialise(config.seed)
        self.own = FlatParameters(own, len(STATISTICS))
        self.memory = memory_of(own, config)
        self.workplace: Workplace
        if accelerator is None:
            self.workplace = OnHost(own, self.own, Batcher(task, config.unroll_length, self.memory))
        else:
            batcher = DeviceBatcher(task, config.unroll_length, accelerator, self.waiter, self.memory)
            policy = copy_of(own, config, task, accelerator)
            self.workplace = OnAccelerator(policy, self.own, batcher, accelerator, self.waiter, config.compile)
        self.workplace.take_over()
        self._loss = self.workplace.loss(LOSSES[config.algorithm])
        self.optimizer = make_optimizer(self.workplace.flat.weights, config)

    def gradient(self, batch: Batch) -> tuple[Loss, Tensor]:
        """Loss and gradient of one batch, both where the policy is."""
        config, flat = self.config, self.workplace.flat
        flat.reduced.zero_()
        loss = self._loss(self.workplace.policy, batch, config, config.entropy_coef, None)
        loss.total.backward()
        return loss, flat.gradient

    def update(self, batch: Batch) -> None:
        """One update, as a learner makes it."""
        loss, gradient = self.gradient(batch)
        self.workplace.settle()
        steps = float(loss.statistics[STATISTICS.index("steps")])
        scale_and_clip(gradient, steps, self.config, "an update")
        self.optimizer.step()


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance as a share of the norm of what was expected."""
    value, expected = value.detach().double().cpu(), expected.detach().double().cpu()
    return float((value - expected).norm() / expected.norm().clamp(min=1e-30))
