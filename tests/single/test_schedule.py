"""The schedule: bounds on the lag, and no run that stands still, for any sizes."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpcrl.config import A2CConfig, ImpalaConfig
from hpcrl.roles.schedule import Schedule, make_schedule

SIZES: dict[str, Any] = {
    "num_envs": st.integers(1, 24),
    "batch_envs": st.integers(1, 24),
    "replay_epochs": st.integers(1, 3),
}
MODES: list[dict[str, Any]] = [
    {"schedule": "lockstep"},
    {"deterministic": True},
    {"on_stale": "wait"},
    {"on_stale": "drop"},
]


@st.composite
def configs(draw: st.DrawFn, modes: list[dict[str, Any]] = MODES) -> ImpalaConfig:
    values = {name: draw(strategy) for name, strategy in SIZES.items()}
    least = ImpalaConfig(**values).least_lag
    return ImpalaConfig(
        **values, **draw(st.sampled_from(modes)), max_lag=draw(st.none() | st.integers(least, least + 9))
    )


def batches_of(schedule: Schedule, round_: int) -> list[int]:
    """The batches that take a column of a round, counted column by column."""
    first, end = round_ * schedule.num_envs, (round_ + 1) * schedule.num_envs
    return sorted({column // schedule.batch_envs for column in range(first, end)})


@settings(max_examples=200, deadline=None)
@given(configs(), st.booleans(), st.integers(0, 60))
def test_a_round_waits_for_no_weights_that_need_it(config: ImpalaConfig, hosted: bool, round_: int) -> None:
    schedule = make_schedule(config, hosted)
    batches = batches_of(schedule, round_)
    assert (schedule.first_batch(round_), schedule.last_batch(round_)) == (batches[0], batches[-1])
    assert 0 <= schedule.publication(round_) <= batches[0]
    assert schedule.publication(round_) <= schedule.publication(round_ + 1)


@settings(max_examples=200, deadline=None)
@given(configs(MODES[1:3]), st.integers(0, 60))
def test_nothing_that_waits_is_older_than_the_most_that_is_allowed(config: ImpalaConfig, round_: int) -> None:
    schedule = make_schedule(config, False)
    assume(schedule.slack is not None)
    publications = schedule.last_batch(round_) - schedule.publication(round_)
    oldest = config.replay_epochs * publications + config.replay_epochs - 1
    assert oldest <= config.lag_bound
    # Another publication's wait would break the bound, unless there is none to wait less for.
    assert oldest + config.replay_epochs > config.lag_bound or schedule.publication(round_) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 9), st.integers(0, 50))
def test_equal_sizes_act_with_the_weights_of_so_many_updates_ago(
    num_envs: int, epochs: int, lag: int, round_: int
) -> None:
    config = ImpalaConfig(
        num_envs=num_envs, batch_envs=num_envs, replay_epochs=epochs, max_lag=epochs * (lag + 1) - 1, deterministic=True
    )
    if config.max_lag:
        assert make_schedule(config, False).publication(round_) == max(0, round_ - lag)


@settings(max_examples=60, deadline=None)
@given(configs())
def test_no_lag_at_all_is_lockstep(config: ImpalaConfig) -> None:
    sizes = {"num_envs": config.num_envs, "batch_envs": config.batch_envs}
    lockstep = make_schedule(ImpalaConfig(**sizes, schedule="lockstep"), False)
    assert lockstep.in_rounds and lockstep.exact and lockstep.slack is None
    assert make_schedule(config, True) == lockstep
    if ImpalaConfig(**sizes).least_lag == 0:
        assert make_schedule(ImpalaConfig(**sizes, max_lag=0), False) == lockstep
    plain = make_schedule(A2CConfig(num_envs=config.num_envs), False)
    assert (plain.batch_envs, plain.slack, plain.exact, plain.in_rounds) == (config.num_envs, None, True, True)


@pytest.mark.parametrize(
    ("options", "in_rounds", "exact"),
    [({}, False, False), ({"on_stale": "wait"}, True, False), ({"deterministic": True}, True, True)],
)
def test_who_waits_and_who_acts_with_exactly_what(options: Any, in_rounds: bool, exact: bool) -> None:
    schedule = make_schedule(ImpalaConfig(**options), False)
    assert (schedule.in_rounds, schedule.exact, schedule.slack) == (in_rounds, exact, 8)


@settings(max_examples=200, deadline=None)
@given(configs(MODES[:2]), st.booleans(), st.integers(0, 60))
def test_weights_stay_readable_until_everything_that_needs_them_is_learned_from(
    config: ImpalaConfig, hosted: bool, round_: int
) -> None:
    schedule = make_schedule(config, hosted)
    assert schedule.exact and schedule.ring_slots >= 2
    assert schedule.last_batch(round_) < schedule.publication(round_) + schedule.ring_slots


@settings(max_examples=200, deadline=None)
@given(configs(), st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 40))
def test_learners_share_a_batch_by_their_environments(config: ImpalaConfig, parts: list[int], batch: int) -> None:
    assume(sum(parts))
    num_envs = sum(parts)
    schedule = Schedule(num_envs, config.batch_envs, True, True, None)
    brought = [[schedule.columns(earlier, own) for earlier in range(batch + 1)] for own in parts]
    for own, columns in zip(parts, brought, strict=True):
        exact = Fraction((batch + 1) * config.batch_envs * own, num_envs)
        assert sum(columns) <= exact < sum(columns) + 1 and min(columns) >= 0
    assert abs(sum(columns[-1] for columns in brought) - config.batch_envs) < len(parts)
    if (batch + 1) * config.batch_envs % num_envs == 0:
        assert sum(map(sum, brought)) == (batch + 1) * config.batch_envs
    assert schedule.columns(batch, num_envs) == config.batch_envs


@settings(max_examples=100, deadline=None)
@given(configs(), st.booleans(), st.integers(0, 60))
def test_lockstep_rests_where_rounds_and_batches_end_together(config: ImpalaConfig, hosted: bool, batch: int) -> None:
    schedule = make_schedule(config, hosted)
    ends = (batch + 1) * config.batch_envs % config.num_envs == 0
    assert schedule.is_rest(batch) == (ends or not (hosted or config.in_lockstep))


class Run:
    """Actors and learners that know of nothing but the schedule, their slots and the publications."""

    def __init__(self, schedule: Schedule, learners: list[list[int]], num_slots: int) -> None:
        self.schedule, self.num_slots = schedule, num_slots
        self.learners = learners
        self.sent = [[0] * len(actors) for actors in learners]
        # Columns left of the unrolls of every actor that its slots hold.
        self.slots: list[list[deque[int]]] = [[deque() for _ in actors] for actors in learners]
        self.held: list[deque[int]] = [deque() for _ in learners]
        self.turn = [0 for _ in learners]
        self.published = 0

    def act(self, learner: int, actor: int) -> bool:
        """Fill an unroll, where nothing is missing."""
        needed = self.schedule.publication(self.sent[learner][actor])
        if needed > self.published or len(self.slots[learner][actor]) == self.num_slots:
            return False
        self.slots[learner][actor].append(self.learners[learner][actor])
        self.sent[learner][actor] += 1
        return True

    def fetch(self, learner: int, batch: int) -> bool:
        """Hold enough columns for the batch, in the order of the ranks."""
        wanted = self.schedule.columns(batch, sum(self.learners[learner]))
        held, slots = self.held[learner], self.slots[learner]
        while sum(slots[actor][place] for actor, place in self._places(learner)) < wanted:
            actor = self.turn[learner]
            if held.count(actor) == len(slots[actor]):
                return False
            held.append(actor)
            self.turn[learner] = (actor + 1) % len(slots)
        return True

    def _places(self, learner: int) -> list[tuple[int, int]]:
        held = list(self.held[learner])
        return [(actor, held[:place].count(actor)) for place, actor in enumerate(held)]

    def learn(self, learner: int, batch: int) -> None:
        missing = self.schedule.columns(batch, sum(self.learners[learner]))
        while missing:
            actor = self.held[learner][0]
            unroll = self.slots[learner][actor]
            taken = min(missing, unroll[0])
            unroll[0] -= taken
            missing -= taken
            if not unroll[0]:
                unroll.popleft()
                self.held[learner].popleft()


@settings(max_examples=150, deadline=None)
@given(
    configs(MODES[:3]),
    st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=3), min_size=1, max_size=2),
    st.randoms(use_true_random=False),
)
def test_no_run_stands_still(config: ImpalaConfig, learners: list[list[int]], random: Any) -> None:
    num_envs = sum(map(sum, learners))
    sized = ImpalaConfig(num_envs=num_envs, batch_envs=config.batch_envs, replay_epochs=config.replay_epochs)
    extra = config.lag_bound - config.least_lag
    schedule = make_schedule(
        ImpalaConfig(
            num_envs=num_envs,
            batch_envs=config.batch_envs,
            replay_epochs=config.replay_epochs,
            max_lag=sized.least_lag + extra,
            schedule=config.schedule,
            deterministic=config.deterministic,
            on_stale=config.on_stale,
        ),
        False,
    )
    run = Run(schedule, learners, schedule.num_slots)
    everybody = [(learner, actor) for learner, actors in enumerate(learners) for actor in range(len(actors))]
    for batch in range(50):
        random.shuffle(everybody)
        # All act while they can: if the batch isn't there then, it never will be.
        while any([run.act(*who) for who in everybody]):
            pass
        assert all([run.fetch(learner, batch) for learner in range(len(learners))])
        for learner in range(len(learners)):
            run.learn(learner, batch)
        run.published += 1


def test_a_slot_fewer_than_a_batch_may_need_would_stand_still() -> None:
    schedule = make_schedule(ImpalaConfig(num_envs=2, batch_envs=7, on_stale="wait"), False)
    for num_slots, there in ((schedule.num_slots - 1, True), (schedule.num_slots - 2, False)):
        run = Run(schedule, [[2]], num_slots)
        while run.act(0, 0):
            pass
        assert run.fetch(0, 0) == there
