"""A simulation of gradients on their way from workers to the owners of the weights: an event for every gradient."""

from __future__ import annotations

from bisect import bisect_right

from hpcrl.planning import model
from hpcrl.planning.costs import Costs
from hpcrl.planning.events import WARM_UP, Draws, Events, Simulated
from hpcrl.planning.setups import GRADIENT_SLOTS, Setup


class GradientSimulation:
    """Workers that push gradients to the owners of all shards."""

    def __init__(self, setup: Setup, costs: Costs, seed: int) -> None:
        self._setup, self._costs = setup, costs
        self._events = Events()
        self._draws = Draws(seed, model.acting_deviation(setup, costs))
        parts = model.worker_s(setup, costs)
        self._transport = parts.pop("gradient transport")
        self._computes = sum(parts.values())
        self._owner_s = model.owner_s(setup, costs)
        # Every worker's gradient takes a part of the connection that the busiest owner's node has to others.
        self._wire_s = model.shard_network_s(setup, costs) / max(1.0, setup.far_share * setup.actors)
        owners = set(setup.layout.learners)
        # An owner that is a worker too applies the gradients of all between its own steps.
        self._slower = {
            worker: self._owner_s * setup.actors if worker in owners else 0.0 for worker in setup.layout.actors
        }
        self._applied: list[float] = []
        self._free_at = self._wire_at = 0.0
        self._under_way = dict.fromkeys(setup.layout.actors, 0)
        self._held: set[int] = set()  # workers whose gradient can't leave yet
        self._fetched: dict[int, float] = {}
        self._lag_sum = self._busy_s = 0.0

    def run(self, turns: int) -> Simulated:
        """Until every worker has made so many gradients, on average; the first ones don't count."""
        setup = self._setup
        wanted = turns * setup.actors
        for worker in setup.layout.actors:
            # As if they had been at it for a while: workers that begin at once come at once.
            self._begin(self._draws.around(self._computes) * worker / setup.ranks, worker)
        while len(self._applied) < wanted * WARM_UP:
            self._events.next()
        first, begin = len(self._applied), self._applied[-1]
        self._lag_sum = self._busy_s = 0.0
        while len(self._applied) < wanted:
            self._events.next()
        seconds, gradients = self._applied[-1] - begin, len(self._applied) - first
        steps = gradients * setup.num_envs / setup.actors * setup.unroll_length
        busy = min(1.0, self._busy_s / seconds / setup.actors)
        owner = busy if setup.is_hosted else gradients * self._owner_s / seconds
        return Simulated(steps / seconds, self._lag_sum / gradients, busy, owner, 0.0, self._events.count)

    def _is_far(self, worker: int) -> bool:
        node_of, owners = self._setup.layout.node_of, self._setup.layout.learners
        return self._setup.learner_nodes > 1 or node_of[worker] != node_of[owners[0]]

    def _begin(self, now: float, worker: int) -> None:
        self._fetched[worker] = now
        seconds = self._draws.around(self._computes + self._slower[worker])
        self._busy_s += seconds
        self._events.at(now + seconds, self._computed, worker)

    def _computed(self, now: float, worker: int) -> None:
        """A gradient is there: it leaves once fewer than two are on their way."""
        if self._under_way[worker] < GRADIENT_SLOTS:
            self._push(now, worker)
        else:
            self._held.add(worker)

    def _push(self, now: float, worker: int) -> None:
        self._under_way[worker] += 1
        arrival = now + self._transport
        if self._wire_s and self._is_far(worker):
            arrival = max(self._wire_at, arrival - self._wire_s) + self._wire_s
            self._wire_at = arrival
        fetched = self._fetched[worker]
        self._events.at(arrival, lambda when, who: self._arrived(when, who, fetched), worker)
        self._begin(now, worker)

    def _arrived(self, now: float, worker: int, fetched: float) -> None:
        self._free_at = max(self._free_at, now) + self._owner_s
        self._events.at(self._free_at, lambda when, who: self._apply(when, who, fetched), worker)

    def _apply(self, now: float, worker: int, fetched: float) -> None:
        """A gradient is part of the weights, and its worker may send the one that it holds."""
        self._lag_sum += len(self._applied) - bisect_right(self._applied, fetched)
        self._applied.append(now)
        self._under_way[worker] -= 1
        if worker in self._held:
            self._held.remove(worker)
            self._push(now, worker)
