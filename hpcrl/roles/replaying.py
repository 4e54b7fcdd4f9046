"""An actor that acts nothing: its unrolls are columns that another run recorded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.activity import Phase
from hpcrl.cluster.waiting import Waiter
from hpcrl.config import ActorCriticConfig, BCConfig
from hpcrl.envs.restore import Restored
from hpcrl.errors import ConfigError
from hpcrl.models.policy import Policy
from hpcrl.signals import Requests
from hpcrl.spaces import Task
from hpcrl.storage.dataset import TrajectoryDataset
from hpcrl.storage.selection import Selection, most_ends
from hpcrl.unroll import Memory, Unroll

#: Fields of an unroll that items have, rows first; row `length` of the first is the bootstrap observation.
_FIELDS = ("observation", "action", "reward", "terminated", "truncated", "valid", "behaviour_log_prob")

#: Which of M columns comes at place p of an endless sequence: a function of int64 [n].
Order = Callable[[NDArray[np.int64]], NDArray[np.int64]]


def shuffled(seed: int, num_columns: int) -> Order:
    """All columns in a new order in every epoch, which depends on the seed and the epoch alone."""
    known: dict[int, NDArray[np.int64]] = {}

    def order(place: NDArray[np.int64]) -> NDArray[np.int64]:
        epochs = place // num_columns
        for epoch in set(epochs.tolist()) - known.keys():
            generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
            known[epoch] = generator.permutation(num_columns)
        for epoch in known.keys() - set(epochs.tolist()):
            del known[epoch]
        both = zip(epochs.tolist(), (place % num_columns).tolist(), strict=True)
        return np.array([known[epoch][at] for epoch, at in both], np.int64)

    return order


class Source:
    """The recorded columns that a run learns from. Local; the same on every rank.

    Args:
        config, task: of the run.
        policy: that learns.

    Attributes:
        num_columns: M.
        finals_per_column: most truncated episodes in one of them.

    Raises:
        ConfigError: what was recorded doesn't fit the run.
        TrajectoryError: no whole shard is there, or one is damaged.
    """

    def __init__(self, config: ActorCriticConfig, task: Task, policy: Policy) -> None:
        assert config.source is not None
        self._dataset = TrajectoryDataset(config.source)
        about = self._dataset.shards[0].about
        for what, ours, theirs in (
            ("observations", task.observation, about.observation),
            ("actions", task.action, about.action),
            ("--unroll-length", config.unroll_length, about.unroll_length),
        ):
            if ours != theirs:
                raise ConfigError(f"{config.source} recorded other {what}: {theirs}, expected {ours}")
        if policy.num_history > about.num_history:
            raise ConfigError(
                f"--frame-stack {config.frame_stack} is more than the {about.num_history + 1} frames of {config.source}"
            )
        min_return = config.min_return if isinstance(config, BCConfig) else None
        self._selection = Selection(self._dataset, min_return)
        self.num_columns = len(self._selection.items)
        if not self.num_columns:
            raise ConfigError(f"no whole episode in {config.source} has a return of --min-return {min_return}")
        self.finals_per_column = most_ends(self._dataset.shards)

    def column(self, number: int) -> dict[str, Tensor]:
        """A column, as an item of `TrajectoryDataset`; steps that were not chosen are not valid."""
        item = int(self._selection.items[number])
        column = self._dataset[item]
        column["valid"] &= self._selection.chosen(item)
        return column


class ReplayActor:
    """`Actor` without environments: fills unrolls from a source. Local.

    Args:
        rank: of the world.
        source: of the columns.
        order: in which they come.
        envs: this actor's part of the `num_envs` columns that all actors take in a round.
        num_envs: of all actors.
        requests, waiter: of the rank.
        memory: what its policy remembers.
    """

    recording = None

    def __init__(
        self,
        rank: int,
        source: Source,
        order: Order,
        envs: range,
        num_envs: int,
        requests: Requests,
        waiter: Waiter,
        memory: Memory,
    ) -> None:
        self._rank, self._source, self._order = rank, source, order
        self._envs, self._round_size = envs, num_envs
        self._requests, self._waiter, self._memory = requests, waiter, memory
        self.num_envs = len(envs)
        self._rounds = 0

    def fill(self, unroll: Unroll, policy_version: int) -> None:
        """The next columns, as if they had been acted with the weights of now."""
        self._waiter.activity.enter(Phase.ACTING)
        unroll.set_header(
            actor=self._rank,
            policy_version=policy_version,
            first_env_step=self._rounds * unroll.spec.unroll_length,
            length=unroll.spec.unroll_length,
            num_finals=0,
            stop_requested=self._requests.stop is not None,
            save_requested=self._requests.take_save(),
        )
        # Their episodes are none of this run's.
        unroll.ended[:] = False
        place = self._rounds * self._round_size + np.arange(self._envs.start, self._envs.stop)
        finals: list[tuple[int, int, Tensor]] = []
        for column, number in enumerate(self._order(place).tolist()):
            finals += self._fill_column(unroll, column, self._source.column(number))
            self._waiter.tick()
        # By row and then column, as an actor has them.
        for row, (t, column, observation) in enumerate(sorted(finals, key=lambda final: final[:2])):
            unroll.final_observation[row] = observation.numpy()
            unroll.final_index[row] = t, column
        unroll.set_header(num_finals=len(finals))
        self._rounds += 1
        self._waiter.activity.enter(Phase.TRANSPORT)

    def _fill_column(self, unroll: Unroll, column: int, item: dict[str, Tensor]) -> list[tuple[int, int, Tensor]]:
        for name in _FIELDS:
            getattr(unroll, name)[:, column] = item[name].numpy()
        # A policy of another memory begins every unroll with none.
        fits = item["core_state"].shape[0] == self._memory.state_size
        unroll.core_state[column] = item["core_state"].numpy() if fits else 0.0
        num_history = self._memory.num_history
        unroll.history[:, column] = item["history"][len(item["history"]) - num_history :].numpy()
        final_t = item["final_index"].tolist()
        return [(t, column, observation) for t, observation in zip(final_t, item["final_observation"], strict=True)]

    def state(self) -> dict[str, NDArray]:
        """Which rounds were taken, for every column."""
        return {"rows": np.full(self.num_envs, self._rounds, np.int64)}

    def restore(self, state: dict[str, NDArray]) -> Restored:
        """Go on after the rounds of `state`."""
        self._rounds = int(state["rows"].max(initial=0))
        return Restored()

    def close(self) -> None:
        """Nothing is open."""
