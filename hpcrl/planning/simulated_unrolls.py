"""A simulation of unrolls on their way from actors to learners on ranks of their own: an event for every unroll."""

from __future__ import annotations

from collections import deque
from collections.abc import Sized

from hpcrl.planning import model
from hpcrl.planning.costs import Costs
from hpcrl.planning.events import WARM_UP, Draws, Events, Simulated
from hpcrl.planning.setups import OUTGOING_SLOTS, Setup


class _Queue:
    """Unrolls at one learner, in the order in which their columns are taken."""

    def __init__(self, actors: list[int], columns: list[int], in_rounds: bool) -> None:
        self._actors, self._columns, self._in_rounds = actors, dict(zip(actors, columns, strict=True)), in_rounds
        self._arrived: dict[int, deque[int]] = {actor: deque() for actor in actors}
        self._turn = 0
        self._ready: deque[list[int]] = deque()
        self.columns = 0

    def add(self, actor: int, version: int) -> None:
        """An unroll has come."""
        if not self._in_rounds:
            self._append(actor, version)
            return
        self._arrived[actor].append(version)
        while (waiting := self._arrived[self._actors[self._turn]]) and waiting:
            self._append(self._actors[self._turn], waiting.popleft())
            self._turn = (self._turn + 1) % len(self._actors)

    def _append(self, actor: int, version: int) -> None:
        self._ready.append([actor, self._columns[actor], version])
        self.columns += self._columns[actor]

    def take(self, columns: int) -> tuple[list[tuple[int, int]], list[int]]:
        """So many columns, as (columns, version), and the actors whose unrolls are used up."""
        taken, freed = [], []
        self.columns -= columns
        while columns:
            first = self._ready[0]
            part = min(columns, first[1])
            taken.append((part, first[2]))
            columns -= part
            first[1] -= part
            if not first[1]:
                freed.append(self._ready.popleft()[0])
        return taken, freed

    def drop_below(self, version: int) -> tuple[int, list[int]]:
        """Forget unrolls that are older: their columns and actors."""
        old = [unroll for unroll in self._ready if unroll[2] < version]
        if old:
            self._ready = deque(unroll for unroll in self._ready if unroll[2] >= version)
        dropped = sum(unroll[1] for unroll in old)
        self.columns -= dropped
        return dropped, [unroll[0] for unroll in old]


class UnrollSimulation:
    """Actors and learners on ranks of their own; all learners take a batch together."""

    def __init__(self, setup: Setup, costs: Costs, seed: int) -> None:
        self._setup, self._costs = setup, costs
        self._events = Events()
        self._draws = Draws(seed, model.acting_deviation(setup, costs))
        layout = setup.layout
        parts = model.acting_parts(setup, costs)
        self._acts = {actor: self._mean(len(layout.env_blocks[actor]), parts) for actor in layout.actors}
        self._learns = sum(model.learning_parts(setup, costs).values())
        self._queues: dict[int, _Queue] = {}
        self._own_envs: dict[int, int] = {}
        fed_by = _fed_by(setup)
        for learner in layout.learners:
            columns = [len(layout.env_blocks[actor]) for actor in fed_by[learner]]
            self._queues[learner] = _Queue(fed_by[learner], columns, setup.in_rounds)
            self._own_envs[learner] = sum(columns)
        self._sequence = dict.fromkeys(layout.actors, 0)
        self._free = {
            actor: setup.num_slots
            + (OUTGOING_SLOTS if layout.node_of[actor] != layout.node_of[layout.learner_of[actor]] else 0)
            for actor in layout.actors
        }
        self._waits_since: dict[int, float] = {}
        self._is_acting = dict.fromkeys(layout.actors, False)
        self._version = dict.fromkeys(layout.actors, 0)
        self._published = [0.0]  # when publication p was made
        self._batches = 0
        self._is_learning = False
        self._idle_since = self._ends = 0.0
        self._waiting = 0  # columns that have arrived
        self._lacking = set(layout.learners)  # learners without enough of them
        self._learned_s: dict[int, float] = dict.fromkeys(layout.learners, 0.0)
        self._started_with: dict[int, float] = {}
        self._links = dict.fromkeys(set(layout.node_of), 0.0)
        self._delay = self._fetch_delays()
        self._acted_s = self._learning_s = 0.0
        self._steps = self._lag_sum = self._columns_taken = self._columns_dropped = 0.0

    def _mean(self, columns: int, parts: dict[str, float]) -> float:
        """Seconds of an unroll of so many columns, from those of the actor that sets the pace."""
        setup, costs = self._setup, self._costs
        seconds = sum(parts[name] for name in model.WORK)
        if setup.central:
            return seconds
        each = costs.step.each + costs.inference.each
        return seconds + (columns - setup.pace_envs) * (setup.unroll_length * each + costs.unroll.each)

    def _fetch_delays(self) -> dict[int, float]:
        """Seconds until each actor has a publication: nodes get it one after the other."""
        setup, costs, node_of = self._setup, self._costs, self._setup.layout.node_of
        copy = costs.weights_bytes / costs.copy_bytes_per_s
        delays, places = {}, dict[tuple[int, int], int]()
        for actor, learner in setup.layout.learner_of.items():
            delays[actor] = 0.0
            if node_of[actor] != node_of[learner]:
                place = places.setdefault((node_of[learner], node_of[actor]), len(places))
                queue = place * costs.weights_bytes / costs.net.bytes_per_s if setup.in_rounds else 0.0
                delays[actor] = copy + model.message_s(costs, costs.weights_bytes) + queue
        return delays

    def run(self, turns: int) -> Simulated:
        """Until enough batches are learned from; the first ones don't count."""
        setup = self._setup
        wanted = max(4, round(turns * setup.turn / setup.batch_envs))
        for actor in setup.layout.actors:
            self._try_to_act(0.0, actor)
        while self._batches < wanted * WARM_UP:
            self._events.next()
        self._acted_s = self._learning_s = 0.0
        self._steps = self._lag_sum = self._columns_taken = self._columns_dropped = 0.0
        begin = self._published[-1]
        while self._batches < wanted:
            self._events.next()
        seconds = self._published[-1] - begin
        all_columns = self._columns_taken + self._columns_dropped
        return Simulated(
            self._steps / seconds,
            self._lag_sum / max(1.0, self._columns_taken),
            min(1.0, self._acted_s / seconds / setup.actors),
            self._learning_s / seconds,
            self._columns_dropped / max(1.0, all_columns),
            self._events.count,
        )

    # Actors

    def _visible(self, now: float, actor: int) -> int:
        """The newest publication that an actor has."""
        newest = len(self._published) - 1
        while newest and self._published[newest] + self._delay[actor] > now + 1e-12:
            newest -= 1
        return newest

    def _try_to_act(self, now: float, actor: int) -> None:
        """Begin an unroll where there is a slot and the weights that it waits for."""
        if self._is_acting[actor]:
            return
        needed = self._setup.publication(self._sequence[actor])
        if not self._free[actor] or len(self._published) <= needed:
            self._waits_since.setdefault(actor, now)
            return
        begin = max(now, self._published[needed] + (self._delay[actor] if needed else 0.0))
        if (since := self._waits_since.pop(actor, None)) is not None:
            begin += model.nap_overshoot(begin - since, self._costs.nap_s)
        self._is_acting[actor] = True
        self._free[actor] -= 1
        seconds = self._draws.around(self._acts[actor])
        self._acted_s += seconds
        self._version[actor] = self._visible(begin, actor) * self._setup.passes
        if self._setup.central:
            # An answer waits for the end of the update that is under way.
            self._started_with[actor] = self._learned_s[self._setup.layout.learner_of[actor]]
            if self._is_learning:
                begin = max(begin, self._ends)
        self._events.at(begin + seconds, self._filled, actor)

    def _filled(self, now: float, actor: int) -> None:
        """An unroll is full: it leaves, unless the learner's updates kept its actor from finishing it."""
        setup, layout = self._setup, self._setup.layout
        learner = layout.learner_of[actor]
        if setup.central and (missed := self._learned_s[learner] - self._started_with[actor]) > 0:
            self._started_with[actor] += missed
            self._events.at(now + missed, self._filled, actor)
            return
        self._is_acting[actor] = False
        self._sequence[actor] += 1
        arrival, node = now + self._costs.node.latency_s, layout.node_of[learner]
        if layout.node_of[actor] != node:
            nbytes = model.unroll_nbytes(setup, self._costs, len(layout.env_blocks[actor]))
            alone = model.message_s(self._costs, nbytes)
            taken = nbytes / self._costs.net.bytes_per_s
            arrival = max(self._links[node], now + alone - taken) + taken
            self._links[node] = arrival
        version = self._version[actor]
        self._events.at(arrival, lambda when, who: self._arrived(when, who, version), actor)
        self._try_to_act(now, actor)

    # Learners

    def _arrived(self, now: float, actor: int, version: int) -> None:
        learner = self._setup.layout.learner_of[actor]
        if not self._setup.in_rounds and version < self._oldest:
            self._drop(now, self._setup.layout.env_blocks[actor], [actor])
            return
        self._queues[learner].add(actor, version)
        self._waiting += len(self._setup.layout.env_blocks[actor])
        if self._setup.in_rounds and self._queues[learner].columns >= self._share(learner):
            self._lacking.discard(learner)
        self._try_to_learn(now)

    def _share(self, learner: int) -> int:
        """Columns that a learner brings to the next batch, where these take rounds."""
        own, setup = self._own_envs[learner], self._setup
        start, end = (edge * setup.batch_envs * own // setup.num_envs for edge in (self._batches, self._batches + 1))
        return end - start

    def _try_to_learn(self, now: float) -> None:
        """Begin a batch where all learners have their columns of it."""
        setup = self._setup
        if self._is_learning or (self._lacking if setup.in_rounds else self._waiting < setup.batch_envs):
            return
        if setup.in_rounds:
            shares = {learner: self._share(learner) for learner in self._queues}
        else:
            there = {learner: queue.columns for learner, queue in self._queues.items()}
            shares = _equal_shares(there, setup.batch_envs)
        begin = now + model.nap_overshoot(now - self._idle_since, self._costs.nap_s)
        for learner, columns in shares.items():
            self._take(begin, learner, columns)
        self._is_learning = True
        self._ends = begin + self._learns
        self._learning_s += self._learns
        self._steps += setup.batch_envs * setup.unroll_length
        self._waiting -= setup.batch_envs
        self._events.at(self._ends, self._learned, 0)

    def _take(self, now: float, learner: int, columns: int) -> None:
        taken, freed = self._queues[learner].take(columns)
        passes = self._setup.passes
        epochs = (passes - 1) / 2 if self._setup.pass_share == 1 else 0.0
        for part, acted_with in taken:
            self._columns_taken += part
            self._lag_sum += part * (self._batches * passes - acted_with + epochs)
        self._learned_s[learner] += self._learns
        self._give_back(now, freed)

    @property
    def _oldest(self) -> int:
        """The oldest weights whose unrolls are still learned from."""
        setup = self._setup
        return self._batches * setup.passes + setup.passes - 1 - setup.lag_bound

    def _drop(self, now: float, columns: Sized, actors: list[int]) -> None:
        self._columns_dropped += len(columns)
        self._give_back(now, actors)

    def _give_back(self, now: float, actors: list[int]) -> None:
        for actor in actors:
            self._free[actor] += 1
            self._events.at(now, self._try_to_act, actor)

    def _learned(self, now: float, _: int) -> None:
        """An update is done: publish, and look for the next batch."""
        self._is_learning = False
        self._batches += 1
        self._published.append(now)
        self._idle_since = now
        for learner, queue in self._queues.items():
            if self._setup.in_rounds:
                if queue.columns < self._share(learner):
                    self._lacking.add(learner)
                continue
            columns, actors = queue.drop_below(self._oldest)
            self._waiting -= columns
            self._drop(now, range(columns), actors)
        for actor in list(self._waits_since):
            self._try_to_act(now, actor)
        self._try_to_learn(now)


def _fed_by(setup: Setup) -> dict[int, list[int]]:
    """The actors of every learner, in rank order."""
    fed: dict[int, list[int]] = {learner: [] for learner in setup.layout.learners}
    for actor in setup.layout.actors:
        fed[setup.layout.learner_of[actor]].append(actor)
    return fed


def _equal_shares(columns: dict[int, int], batch: int) -> dict[int, int]:
    """How many columns each learner brings, of those that it has: as equal as can be."""
    shares = dict.fromkeys(columns, 0)
    while (missing := batch - sum(shares.values())) > 0:
        able = [learner for learner in columns if columns[learner] > shares[learner]]
        more = max(1, missing // len(able))
        for learner in able[:missing]:
            shares[learner] += min(more, columns[learner] - shares[learner])
    return shares
