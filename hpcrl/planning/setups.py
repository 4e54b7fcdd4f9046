"""One layout of a run as the numbers that throughput follows from."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from hpcrl.cluster.layout import Layout, plan_layout, plan_workers
from hpcrl.config import A3CConfig, ActorCriticConfig, ImpalaConfig, PPOConfig
from hpcrl.errors import ConfigError

#: An a3c worker has so many gradients on their way at most.
GRADIENT_SLOTS = 2
#: Unrolls of an actor on their way to another node, beside those in its learner's slots (hpcrl.cluster.channels).
OUTGOING_SLOTS = 2


@dataclass(frozen=True)
class Setup:
    """A layout, and how its actors and learners keep step (hpcrl.roles.schedule says the same of a run).

    Attributes:
        layout: of the ranks.
        algorithm: by name.
        num_envs, batch_envs: columns of a round over all actors, and of a batch over all learners.
        unroll_length: T.
        passes: gradients from every batch.
        pass_share: share of the batch in each of them.
        in_rounds: batches take rounds in rank order; else whatever has arrived.
        slack: publications between what an unroll is acted with and the last batch that learns from it; None for
            lockstep.
        lag_bound: older unrolls are dropped where batches don't take rounds.
        central: learners answer for the actors.
        learner_cores: of each learner; an actor has one.
    """

    layout: Layout
    algorithm: str
    num_envs: int
    batch_envs: int
    unroll_length: int
    passes: int = 1
    pass_share: float = 1.0
    in_rounds: bool = True
    slack: int | None = None
    lag_bound: int = 0
    central: bool = False
    learner_cores: int = 1

    @property
    def nodes(self) -> int:
        return len(set(self.layout.node_of))

    @property
    def ranks(self) -> int:
        return len(self.layout.node_of)

    @property
    def learners(self) -> int:
        return len(self.layout.learners)

    @property
    def actors(self) -> int:
        return len(self.layout.actors)

    @property
    def is_asynchronous(self) -> bool:
        """Gradients travel instead of unrolls."""
        return self.layout.is_asynchronous

    @cached_property
    def is_hosted(self) -> bool:
        """Learners are actors too."""
        return set(self.layout.learners) <= set(self.layout.actors)

    @property
    def in_lockstep(self) -> bool:
        """Actors and learners take turns."""
        return self.slack is None

    @property
    def cores(self) -> int:
        """That the ranks own."""
        acting = 0 if self.is_hosted else self.actors
        if self.is_asynchronous:
            return self.ranks
        return acting + self.learners * self.learner_cores

    @cached_property
    def actor_envs(self) -> int:
        """Columns of the largest actor."""
        return max(len(block) for block in self.layout.env_blocks.values())

    @property
    def pace_envs(self) -> float:
        """Columns of the actor that sets the pace: the largest one where the others wait for it, else the mean."""
        if self.in_rounds and not self.is_asynchronous:
            return self.actor_envs
        return self.num_envs / self.actors

    @cached_property
    def learner_envs(self) -> int:
        """Columns of the actors of the learner that has most."""
        counts: Counter[int] = Counter()
        for actor, learner in self.layout.learner_of.items():
            counts[learner] += len(self.layout.env_blocks[actor])
        return max(counts.values())

    @property
    def learner_columns(self) -> float:
        """Columns that the learner with most brings to a batch."""
        if self.in_rounds:
            return self.batch_envs * self.learner_envs / self.num_envs
        return math.ceil(self.batch_envs / self.learners)

    @cached_property
    def node_learners(self) -> int:
        """Learners of the node that has most."""
        return max(Counter(self.layout.node_of[learner] for learner in self.layout.learners).values())

    @cached_property
    def learner_nodes(self) -> int:
        """Nodes with learners."""
        return len({self.layout.node_of[learner] for learner in self.layout.learners})

    @cached_property
    def _far(self) -> list[tuple[int, int]]:
        """Node of the learner and node of the actor of every pair on two nodes; of all owners and workers, too."""
        node_of, learners = self.layout.node_of, self.layout.learners
        if self.is_asynchronous:
            owners, workers = (Counter(node_of[rank] for rank in ranks) for ranks in (learners, self.layout.actors))
            return [(one, other) for one in owners for other in workers for _ in range(workers[other]) if one != other]
        pairs = ((node_of[learner], node_of[actor]) for actor, learner in self.layout.learner_of.items())
        return [pair for pair in pairs if pair[0] != pair[1]]

    @cached_property
    def far_unrolls(self) -> int:
        """Unrolls of a round that one node gets from others, where it gets most."""
        return max(Counter(learner for learner, _ in self._far).values(), default=0)

    @cached_property
    def far_nodes(self) -> int:
        """Other nodes that the learners of one node send weights to, where there are most."""
        return max(Counter(learner for learner, _ in set(self._far)).values(), default=0)

    @property
    def far_share(self) -> float:
        """Share of the actors that are on other nodes than their learner, or than an owner."""
        if self.is_asynchronous and self.learner_nodes > 1:
            return 1.0
        return len(self._far) / self.actors

    @property
    def is_far(self) -> bool:
        """Whether there are some."""
        return bool(self._far)

    @property
    def num_slots(self) -> int:
        """Unrolls of one actor on their way."""
        divisor = math.gcd(self.num_envs, self.batch_envs)
        envs, batch = self.num_envs // divisor, self.batch_envs // divisor
        return (envs + batch - 2) // envs + 2

    @property
    def turn(self) -> int:
        """Columns of the larger of a round and a batch: the piece that the model counts in."""
        return max(self.num_envs, self.batch_envs)

    @property
    def tokens(self) -> float:
        """Turns that may be under way at once: acted, waiting and learned from."""
        if self.slack is None:
            return 1.0
        slots = self.num_slots + OUTGOING_SLOTS * self.far_share
        by_slots = (slots * self.num_envs + self.batch_envs) / self.turn
        if not self.in_rounds:
            return by_slots
        return max(1.0, min(by_slots, (self.slack + 1) * self.batch_envs / self.turn))

    @property
    def most_lag(self) -> float:
        """Updates that a column can be behind, on average."""
        if self.slack is None:
            return 0.0
        return self.passes * (self.tokens * self.turn - self.batch_envs) / self.batch_envs

    def publication(self, round_: int) -> int:
        """The publication that an unroll of a round waits for."""
        if not self.in_rounds:
            return 0
        if self.slack is None:
            return round_ * self.num_envs // self.batch_envs
        last = -(-(round_ + 1) * self.num_envs // self.batch_envs) - 1
        return max(0, last - self.slack)


def make_setup(config: ActorCriticConfig, nodes: int, ranks_per_node: int) -> Setup:
    """The setup of a run on so many nodes.

    Raises:
        ConfigError: what can't be dealt out, or planned.
    """
    require_plannable(config)
    where = [node for node in range(nodes) for _ in range(ranks_per_node)]
    deal = plan_workers if isinstance(config, A3CConfig) else plan_layout
    layout = deal(where, config.learners, config.placement, config.num_envs, config.learner_ranks)
    if config.num_envs < len(layout.actors):
        raise ConfigError(
            f"--num-envs {config.num_envs} leaves some of {len(layout.actors)} actors without an environment; give "
            "more, or --envs-per-actor"
        )
    setup = Setup(
        layout,
        config.algorithm,
        config.num_envs,
        config.update_envs,
        config.unroll_length,
        learner_cores=config.learner_cores,
    )
    if isinstance(config, PPOConfig):
        return dataclasses.replace(setup, passes=config.epochs * config.minibatches, pass_share=1 / config.minibatches)
    if not isinstance(config, ImpalaConfig):
        return setup
    central = config.inference == "learner"
    if central and setup.is_hosted:
        raise ConfigError("--inference learner needs actors on ranks of their own: --placement split and two ranks")
    setup = dataclasses.replace(setup, passes=config.replay_epochs, lag_bound=config.lag_bound, central=central)
    if setup.is_hosted or config.in_lockstep:
        return setup
    waits = config.deterministic or config.on_stale == "wait"
    slack = (config.lag_bound - config.replay_epochs + 1) // config.replay_epochs
    return dataclasses.replace(setup, in_rounds=waits, slack=slack)


def require_plannable(config: ActorCriticConfig) -> None:
    """ConfigError for what the model does not know."""
    if config.source is not None or config.algorithm == "bc":
        raise ConfigError("hpcrl plan is for runs that act, but this one learns from recorded trajectories")
    if len(config.env_ids) > 1:
        raise ConfigError(f"hpcrl plan measures one environment, got {len(config.env_ids)}: {' '.join(config.env_ids)}")
    if config.device == "cuda":
        raise ConfigError("hpcrl plan measures learners on CPUs, so --device must be cpu or auto, got cuda")


def scaled(config: ActorCriticConfig, actors: int, envs_per_actor: int) -> ActorCriticConfig:
    """The configuration with so many environments for each of the actors, and batches that grow as they do."""
    num_envs = actors * envs_per_actor
    if isinstance(config, ImpalaConfig):
        batch_envs = max(1, round(config.batch_envs * num_envs / config.num_envs))
        return dataclasses.replace(config, num_envs=num_envs, batch_envs=batch_envs)
    return dataclasses.replace(config, num_envs=num_envs)
