"""The actor: steps environments and fills unrolls, ahead of the learner as far as the schedule lets it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.cluster.transport import UnrollSender
from hpcrl.cluster.waiting import Waiter
from hpcrl.cluster.weights import Control, WeightsSubscriber
from hpcrl.envs.episodes import EpisodeEnvs, unroll_rows
from hpcrl.envs.restore import Restored
from hpcrl.envs.task_episodes import TaskEpisodes
from hpcrl.metrics import EPISODE, Differences, Range
from hpcrl.models.heads import ActionHead
from hpcrl.noise import Purpose, UniformsAhead
from hpcrl.roles.account import UnrollAccount
from hpcrl.roles.boundary import Boundary
from hpcrl.roles.inference import Inference
from hpcrl.roles.memory import ActingMemory
from hpcrl.roles.recording import Recording
from hpcrl.roles.replaying import ReplayActor
from hpcrl.roles.schedule import Schedule
from hpcrl.roles.snapshot import concatenate_environments, split_environments
from hpcrl.signals import Requests
from hpcrl.unroll import NO_MEMORY, Memory, Unroll


class Actor:
    """Fills unrolls; on a rank of its own or hosted by a learner.

    Args:
        rank: of the world.
        groups: its environments, in contiguous blocks; while one steps, the others' actions may be on their way.
        inference: gives action distributions.
        head: samples from them.
        epsilon: share of uniformly random actions.
        seed: of the run.
        requests, waiter: of the rank.
        memory: what its policy remembers.
        recording: records its unrolls; None where nothing is.

    Attributes:
        recording: as above.
    """

    def __init__(
        self,
        rank: int,
        groups: Sequence[EpisodeEnvs | TaskEpisodes],
        inference: Inference,
        head: ActionHead,
        epsilon: float,
        seed: int,
        requests: Requests,
        waiter: Waiter,
        memory: Memory = NO_MEMORY,
        recording: Recording | None = None,
    ) -> None:
        self.recording = recording
        self._rank = rank
        self._groups = groups
        self._inference, self._head, self._epsilon = inference, head, epsilon
        self._requests, self._waiter = requests, waiter
        edges = list(accumulate((group.num_envs for group in groups), initial=0))
        self._columns = [slice(first, end) for first, end in pairwise(edges)]
        self.num_envs = edges[-1]
        self._memories = [ActingMemory(group.task.observation, memory, group.observation.copy()) for group in groups]
        self._noise = [UniformsAhead(seed, group.env_index, Purpose.ACTION, head.noise_size) for group in groups]
        self._slots: dict[int, tuple[Unroll, list[_Views]]] = {}

    def fill(self, unroll: Unroll, policy_version: int) -> None:
        """Act for T steps in all environments (fewer where the table of final observations is full). Local."""
        self._waiter.activity.enter(Phase.ACTING)
        unroll.set_header(
            actor=self._rank,
            policy_version=policy_version,
            first_env_step=self._groups[0].rows,
            length=unroll.spec.unroll_length,
            num_finals=0,
            stop_requested=self._requests.stop is not None,
            save_requested=self._requests.take_save(),
        )
        self._act(unroll)
        self._waiter.activity.enter(Phase.TRANSPORT)

    def _act(self, unroll: Unroll) -> None:
        slot = self._views(unroll)
        behaviour: list[list[Tensor]] = [[] for _ in self._groups]
        values: list[list[Tensor]] = [[] for _ in self._groups]
        self._inference.begin()
        for group, envs in enumerate(self._groups):
            slot[group].first_observation[...] = envs.observation
            self._memories[group].write(slot[group].core_state, slot[group].history)
            self._ask(group, slot[group].observation[0])
        length = 0
        while length < unroll.length:
            for group in range(len(self._groups)):
                self._step(unroll, slot[group], length, group, behaviour[group], values[group])
            length += 1
            self._waiter.tick()
            # The next step may need a row for every environment.
            if length < unroll.length and unroll.num_finals + self.num_envs > unroll.spec.num_finals:
                unroll.truncate_to(length)
                # The questions for the next step are out, and the next unroll asks them anew.
                for group in range(len(self._groups)):
                    self._inference.answer(group)
        self._finish(unroll, behaviour)
        if self.recording is not None:
            self.recording.finish(unroll, _joined(values))

    def _views(self, unroll: Unroll) -> list[_Views]:
        """The views of a slot, made once: slots are used again and again."""
        known = self._slots.get(id(unroll))
        if known is None or known[0] is not unroll:
            known = (unroll, [_Views(unroll, columns) for columns in self._columns])
            self._slots[id(unroll)] = known
        return known[1]

    def _step(
        self, unroll: Unroll, views: _Views, t: int, group: int, behaviour: list[Tensor], values: list[Tensor]
    ) -> None:
        """One step of one group: its actions, and the question for the next ones."""
        envs, memory, activity = self._groups[group], self._memories[group], self._waiter.activity
        activity.enter(Phase.INFERENCE)
        with torch.inference_mode():
            parameters, memory.state, version, value = self._inference.answer(group)
            if self._epsilon:
                parameters = self._head.explore(parameters, self._epsilon)
            noise = torch.from_numpy(self._noise[group].at(envs.rows))
            action = self._head.sample(parameters, noise).numpy()
        views.action[t][...] = action
        behaviour.append(parameters)
        if value is not None:
            values.append(value)
        if version is not None:
            unroll.row_version[t, views.columns] = version
        activity.enter(Phase.ACTING)
        finals = envs.step_into(views.action[t], views.rows[t])
        if len(finals.rows):
            _add_finals(unroll, t, finals.observations, finals.rows + views.columns.start)
        if self.recording is not None:
            self.recording.note_lasts(t, envs.lasts, views.columns.start)
        if memory.is_needed:
            row = views.rows[t]
            memory.observe(envs.observation, row.terminated | row.truncated | ~row.valid)
        if t + 1 < unroll.length:
            self._ask(group, views.observation[t + 1])

    def _ask(self, group: int, observation: Tensor) -> None:
        """The question for the newest observations [b, *shape] of a group."""
        memory = self._memories[group]
        self._inference.ask(group, memory.seen(observation), memory.state)

    def _finish(self, unroll: Unroll, behaviour: Sequence[Sequence[Tensor]]) -> None:
        """Log-probabilities under the distributions that were sampled, all rows at once, and the first version."""
        self._waiter.activity.enter(Phase.INFERENCE)
        length = unroll.length
        for columns, parameters in zip(self._columns, behaviour, strict=True):
            with torch.inference_mode():
                action = torch.from_numpy(unroll.action[:length, columns])
                log_prob = self._head.log_prob(torch.stack(list(parameters)), action)
            unroll.behaviour_log_prob[:length, columns] = log_prob.numpy()
        if unroll.spec.versioned:
            unroll.set_header(policy_version=int(unroll.row_version[0].min()))

    def state(self) -> dict[str, NDArray]:
        """Where every environment stands, see `EpisodeEnvs.state`. Local."""
        both = zip(self._groups, self._memories, strict=True)
        return concatenate_environments([group.state() | memory.save() for group, memory in both])

    def restore(self, state: dict[str, NDArray]) -> Restored:
        """Put every environment where `state` says; CheckpointError where it doesn't fit. Local."""
        parts = split_environments(state, [group.num_envs for group in self._groups])
        restored = Restored()
        for group, memory, part in zip(self._groups, self._memories, parts, strict=True):
            restored += group.restore(part)
            begun_anew = group.state()["episode_number"] != part["episode_number"]
            memory.restore(part, np.array(group.observation, group.task.observation.dtype), begun_anew)
        return restored

    def close(self) -> None:
        """Close the environments. Local."""
        for group in self._groups:
            group.close()


class _Views:
    """What an actor touches of one slot and one group at every step, cut out once."""

    def __init__(self, unroll: Unroll, columns: slice) -> None:
        self.columns = columns
        self.first_observation = unroll.observation[0, columns]
        self.observation = torch.from_numpy(unroll.observation)[:, columns].unbind()
        self.action = list(unroll.action[:, columns])
        self.rows = unroll_rows(unroll, columns)
        self.core_state, self.history = unroll.core_state[columns], unroll.history[:, columns]


def _joined(values: Sequence[Sequence[Tensor]]) -> NDArray[np.float32] | None:
    """The values of every step and group as float32 [T, B]; None where answers held none."""
    if not all(values):
        return None
    return torch.cat([torch.stack(list(group)) for group in values], 1).numpy()


def _add_finals(unroll: Unroll, t: int, observations: NDArray, columns: NDArray) -> None:
    first, end = unroll.num_finals, unroll.num_finals + len(columns)
    unroll.final_observation[first:end] = observations
    unroll.final_index[first:end, 0] = t
    unroll.final_index[first:end, 1] = columns
    unroll.set_header(num_finals=end)


class ActorRank:
    """The loop of a rank that only acts: an unroll, or a boundary, at a time.

    Args:
        actor: of the rank.
        schedule: of the run.
        weights: float32 [N], of the actor's own policy.
        subscriber, sender: its ends of the transports.
        waiter: of the rank.
        own_network: whether the actor uses its own weights; else they are fetched for evaluations only.
    """

    def __init__(
        self,
        actor: Actor | ReplayActor,
        schedule: Schedule,
        weights: Tensor,
        subscriber: WeightsSubscriber,
        sender: UnrollSender,
        waiter: Waiter,
        own_network: bool = True,
    ) -> None:
        self.actor = actor
        self._own_network = own_network
        self._schedule = schedule
        self._weights = weights.detach().numpy()
        self._subscriber, self._sender, self._waiter = subscriber, sender, waiter
        self._held: Control | None = None
        self._waits: dict[str, float] = {"wait/actor_for_slot": 0, "wait/actor_for_weights": 0}
        self._counts = Differences()

    @property
    def account(self) -> UnrollAccount:
        """The unrolls of this actor. Local."""
        return UnrollAccount(acted=self._sender.sequence)

    def start(self) -> Control:
        """Take the first weights."""
        self._waiter.until(lambda: self._subscriber.has(0))
        return self._boundary() or self._fetch(0)

    def advance(self) -> Control:
        """Fill an unroll and send it, or come to the boundary that is announced."""
        needed = self._schedule.publication(self._sender.sequence)
        # The weights first: whoever sees them sees the boundary that came with them.
        self._waiter.until(lambda: self._may_act(needed) or self._subscriber.announces_boundary())
        if (boundary := self._boundary()) is not None:
            return boundary
        control = self._fetch(needed)
        unroll = self._sender.slot()
        self.actor.fill(unroll, control.policy_version)
        self._sender.send()
        self._count_waits()
        return control

    def _may_act(self, needed: int) -> bool:
        return self.actor.num_envs > 0 and self._subscriber.has(needed) and self._sender.is_free()

    def _count_waits(self) -> None:
        """Count what the next unroll finds missing: a slot, or the weights that its schedule names."""
        needed = self._schedule.publication(self._sender.sequence)
        self._waits["wait/actor_for_slot"] += not self._sender.is_free()
        self._waits["wait/actor_for_weights"] += not self._subscriber.has(needed)

    # Reports: what becomes of its unrolls is for its learner to say.

    reducer = None
    unrolls_cut = 0

    def take_counts(self) -> dict[str, float]:
        """Columns of the report that are sums over the actors, since the last call. Local."""
        return self._counts.take(self._waits)

    def take_ranges(self) -> dict[str, Range]:
        """None. Local."""
        return {}

    def take_episodes(self) -> NDArray:
        """None: they travel with the unrolls. Local."""
        return np.empty(0, EPISODE)

    def _boundary(self) -> Control | None:
        boundary = self._subscriber.boundary()
        if boundary is not None:
            # All ranks evaluate with its weights, which are the newest until everybody is through.
            self._held = self._subscriber.fetch_newest(self._weights, None)
            self._show(boundary)
        return boundary

    def _fetch(self, needed: int) -> Control:
        """The weights to act with; what an actor is given has no flags for it."""
        if self._held is not None and not self._own_network:
            pass
        elif not self._schedule.exact:
            self._held = self._subscriber.fetch_newest(self._weights, self._held)
        elif self._held is None or self._held.publication != needed:
            self._held = self._subscriber.fetch(needed, self._weights)
        self._show(self._held)
        return self._held._replace(flags=int(Boundary.NONE))

    def _show(self, control: Control) -> None:
        self._waiter.activity.beat(update=control.policy_version)
