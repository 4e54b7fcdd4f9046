"""The actor: steps environments with the weights of one version and fills unrolls."""

from __future__ import annotations

import numpy as np
import torch

from hpcrl.activity import Phase
from hpcrl.cluster.transport import UnrollSender
from hpcrl.cluster.waiting import Waiter
from hpcrl.cluster.weights import Control, WeightsSubscriber
from hpcrl.envs.episodes import EpisodeEnvs, Step
from hpcrl.models.policy import Policy
from hpcrl.noise import Purpose, uniforms
from hpcrl.signals import Requests
from hpcrl.unroll import Unroll


class Actor:
    """Fills unrolls; on a rank of its own or hosted by a learner.

    Attributes:
        envs: this actor's environments.
    """

    def __init__(
        self, rank: int, envs: EpisodeEnvs, policy: Policy, seed: int, requests: Requests, waiter: Waiter
    ) -> None:
        self._rank, self._seed = rank, seed
        self.envs = envs
        self._policy = policy
        self._requests, self._waiter = requests, waiter

    def fill(self, unroll: Unroll, policy_version: int) -> None:
        """Act for T steps in all environments (fewer where the table of final observations is full). Local."""
        self._waiter.activity.enter(Phase.ACTING)
        self._write_header(unroll, policy_version)
        if self.envs.num_envs:
            self._act(unroll)
        self._waiter.activity.enter(Phase.COMMUNICATING)

    def _write_header(self, unroll: Unroll, policy_version: int) -> None:
        unroll.set_header(
            actor=self._rank,
            policy_version=policy_version,
            first_env_step=self.envs.rows,
            length=unroll.spec.unroll_length,
            num_finals=0,
            stop_requested=self._requests.stop is not None,
            save_requested=self._requests.take_save(),
        )

    def _act(self, unroll: Unroll) -> None:
        length = unroll.spec.unroll_length
        steps = self.envs.rows + np.arange(length)[:, None]
        noise = torch.from_numpy(
            uniforms(self._seed, self.envs.env_index, steps, Purpose.ACTION, self._policy.head.noise_size)
        )
        observation = torch.from_numpy(unroll.observation)
        parameters = []
        unroll.observation[0] = self.envs.observation
        for t in range(length):
            action, distribution = self._policy.act(observation[t], noise[t])
            unroll.action[t] = action.numpy()
            parameters.append(distribution)
            step = self.envs.step(unroll.action[t])
            _write_step(unroll, t, step)
            unroll.observation[t + 1] = self.envs.observation
            self._waiter.tick()
            # The next step may need a row for every environment.
            if t + 1 < length and unroll.num_finals + self.envs.num_envs > unroll.spec.num_finals:
                unroll.truncate_to(t + 1)
                break
        self._write_log_probs(unroll, parameters)

    def _write_log_probs(self, unroll: Unroll, parameters: list[torch.Tensor]) -> None:
        """Log-probabilities under the distributions that were sampled, all rows at once."""
        length = len(parameters)
        with torch.inference_mode():
            action = torch.from_numpy(unroll.action[:length])
            unroll.behaviour_log_prob[:length] = self._policy.head.log_prob(torch.stack(parameters), action).numpy()


def _write_step(unroll: Unroll, t: int, step: Step) -> None:
    unroll.reward[t] = step.reward
    unroll.terminated[t] = step.terminated
    unroll.truncated[t] = step.truncated
    unroll.valid[t] = step.valid
    unroll.episode_number[t] = step.episode_number
    unroll.episode_return[t] = step.episode_return
    unroll.episode_length[t] = step.episode_length
    if count := len(step.final_rows):
        first = unroll.num_finals
        unroll.final_observation[first : first + count] = step.final_observations
        unroll.final_index[first : first + count, 0] = t
        unroll.final_index[first : first + count, 1] = step.final_rows
        unroll.set_header(num_finals=first + count)


class ActorRank:
    """The loop of a rank that only acts, one round at a time."""

    def __init__(
        self,
        actor: Actor,
        weights: torch.Tensor,
        subscriber: WeightsSubscriber,
        sender: UnrollSender,
        waiter: Waiter,
    ) -> None:
        self.actor = actor
        self._weights = weights.detach().numpy()
        self._subscriber, self._sender, self._waiter = subscriber, sender, waiter
        self._control = Control(-1, 0, 0, 0)

    def start(self) -> Control:
        """Take the first weights."""
        return self._fetch()

    def advance(self) -> Control:
        """Fill an unroll with the weights at hand, send it, and take the next weights."""
        unroll = self._sender.next_slot(self._waiter)
        self.actor.fill(unroll, self._control.policy_version)
        self._sender.send(self._waiter)
        return self._fetch()

    def _fetch(self) -> Control:
        self._control = self._subscriber.fetch(self._control.round + 1, self._weights, self._waiter)
        self._waiter.activity.beat(update=self._control.policy_version)
        return self._control
