"""However episodes end and begin again, what is learned from them is what the script of their rewards says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import tests.no_mpi  # noqa: F401

# isort: split
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.algorithms.batch import Batch, evaluate
from hpcrl.algorithms.impala import impala_loss, vtrace_targets
from hpcrl.algorithms.loss import predict
from hpcrl.algorithms.ppo import ppo_targets
from hpcrl.config import ImpalaConfig, PPOConfig
from hpcrl.models.policy import Policy
from hpcrl.roles.synchronous import SynchronousStation
from hpcrl.signals import Requests
from tests.batches import spoil
from tests.policies import columns_of, gradient
from tests.reference import Correction
from tests.single.test_async_rank import station_of
from tests.worlds import SCRIPT, Scripted, vector_form

NUM_ENVS, TIME, BATCHES = 4, 7, 6
GAMMA, LAMBDA = 0.9, 0.8
RHO_BAR, C_BAR = 1.1, 0.9
OPTIONS: dict[str, Any] = {
    "num_envs": NUM_ENVS,
    "unroll_length": TIME,
    "gamma": GAMMA,
    "gae_lambda": LAMBDA,
    "normalise_advantages": False,
    "hidden_sizes": (6,),
    "core_size": 5,
}
NATIVE = [mode.name.lower() for mode in AutoresetMode]
REMEMBERING: dict[str, Any] = {"core": "lstm", "frame_stack": 2}


class Played(NamedTuple):
    """What a learner got to learn from, and the policy that acted.

    Attributes:
        batches: in the order of time.
        episodes: (return, length) of those that were reported.
    """

    batches: list[Batch]
    episodes: list[tuple[float, int]]
    policy: Policy


def play(**options: Any) -> Played:
    """What the learner of a run of one rank gets, if it never learns."""
    station = cast(SynchronousStation, station_of(PPOConfig(**OPTIONS | options), Requests()))
    assert station.learner is not None and station.actor is not None
    station.policy.initialise(5)
    sharpen(station.policy)
    station.role.start()
    batches = []
    for _ in range(BATCHES):
        station.learner.intake.next(0, 0)
        batch = station.learner.intake.batcher.batch
        batches.append(Batch(**{name: value.clone() for name, value in vars(batch).items()}))
    episodes = station.role.take_episodes()
    station.actor.close()
    return Played(batches, [(float(e["return"]), int(e["length"])) for e in episodes], station.policy)


@torch.no_grad()
def sharpen(policy: Policy) -> None:
    """Values and probabilities that depend visibly on what is seen."""
    policy.head.weight.mul_(100)
    policy.value_head.weight.mul_(3)


# What a script says


class Part(NamedTuple):
    """Steps in a row for which nothing from before or after counts.

    Attributes:
        observations: [n + 1], before each step and after the last one: their number, and steps made.
        rewards: [n].
        terminated: the last observation is worth nothing.
    """

    observations: Sequence[tuple[int, int]]
    rewards: Sequence[float]
    terminated: bool

    def values(self, policy: Policy, is_dict: bool) -> list[float]:
        """Of its observations, one after the other from the first on."""
        seen = [stored(observation, is_dict) for observation in self.observations]
        state, values = torch.zeros(1, policy.state_size), []
        for t in range(len(seen)):
            frames = [seen[max(0, t - age)] for age in range(policy.num_history, -1, -1)]
            value, state = value_of(policy, torch.cat(frames), state)
            values.append(value)
        return [*values[:-1], 0.0 if self.terminated else values[-1]]

    def advantage(self, t: int, end: int, values: Sequence[float]) -> float:
        """Of step t, where an unroll holds no step from `end` on (arXiv:1506.02438, eq. 16)."""
        deltas = [self.rewards[k] + GAMMA * values[k + 1] - values[k] for k in range(t, end)]
        return math.fsum((GAMMA * LAMBDA) ** power * delta for power, delta in enumerate(deltas))


def stored(observation: tuple[int, int], is_dict: bool) -> Tensor:
    """A scripted observation as hpcrl keeps it: float32 [2], or packed, each part at a multiple of 8 bytes."""
    if not is_dict:
        return torch.tensor(observation, dtype=torch.float32)
    number, steps = np.array([observation[0]]), np.array([observation[1], 0], np.float32)
    return torch.from_numpy(np.concatenate([number.view(np.uint8), steps.view(np.uint8)]))


@torch.no_grad()
def value_of(policy: Policy, seen: Tensor, state: Tensor) -> tuple[float, Tensor]:
    if policy.core is None:
        return float(policy(seen)[1]), state
    output, state = policy.core.step(policy.encoder.features(policy.inputs(seen[None])), state)
    return float(policy.value_head(output)), state


class Run(NamedTuple):
    """Rows [first, end) of a column that are steps of one part, the first of them its step `step`."""

    part: int
    step: int
    first: int
    end: int


def runs_of(rows: Iterable[tuple[int, int] | None]) -> Iterator[Run]:
    """The runs in a column, whose rows are (part, step), or None where they don't count."""
    run: Run | None = None
    for t, row in enumerate([*rows, None]):
        if run is not None and row != (run.part, run.step + t - run.first):
            yield run._replace(end=t)
            run = None
        if run is None and row is not None:
            run = Run(*row, t, t)


def check_against(parts: Sequence[Part], played: Played, is_dict: bool = False) -> None:
    """Targets and advantages of every row are those of its part, every step of every part is there, and none twice."""
    values = [part.values(played.policy, is_dict) for part in parts]
    names = {name(stored(part.observations[t], is_dict)): (n, t) for n, part in enumerate(parts) for t in steps(part)}
    seen = set()
    for batch in played.batches:
        targets = ppo_targets(played.policy, batch, PPOConfig(**OPTIONS))
        assert not targets.advantages[~batch.valid].any() and not targets.values[~batch.valid].any()
        for b in range(NUM_ENVS):
            column, valid = batch.observation[:-1, b], batch.valid[:, b].tolist()
            for n, first, start, end in runs_of(
                [names[name(row)] if counts else None for row, counts in zip(column, valid, strict=True)]
            ):
                part, length = parts[n], end - start
                # Nothing is missing but what lies in other unrolls.
                assert first == 0 or start == 0
                assert first + length == len(part.rewards) or not any(valid[end:])
                assert batch.reward[start:end, b].tolist() == list(part.rewards[first : first + length])
                for t in range(length):
                    expected = part.advantage(first + t, first + length, values[n])
                    assert float(targets.advantages[start + t, b]) == pytest.approx(expected, rel=1e-4, abs=1e-3)
                    expected += values[n][first + t]
                    assert float(targets.values[start + t, b]) == pytest.approx(expected, rel=1e-4, abs=1e-3)
                    seen.add((n, first + t))
    assert seen == set(names.values())


def steps(part: Part) -> range:
    return range(len(part.rewards))


def name(observation: Tensor) -> bytes:
    return observation.numpy().tobytes()


# Autoreset modes

SCRIPTED = [
    Part([(number, step) for step in range(len(episode.rewards) + 1)], episode.rewards, episode.terminated)
    for number, episode in enumerate(SCRIPT)
]


class Talking(Scripted):
    """Its infos hold things of every form."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(seed=seed, options=options)[0], {"player": {"name": "white"}, "board": np.zeros((2, 3))}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return *super().step(action)[:4], {"episode": {"r": 1.0, "l": 2}, "says": "hello", "tried": [1, 2]}


for _mode in AutoresetMode:
    gym.register(
        f"hpcrl-tests/Talking-{_mode.name.lower()}-v0",
        vector_entry_point=partial(vector_form, Talking, mode=_mode, observation="vector"),
    )


@pytest.mark.parametrize("mode", NATIVE)
def test_infos_may_hold_anything(mode: str) -> None:
    check_against(SCRIPTED, play(env=f"hpcrl-tests/Talking-{mode}-v0", vector="native"))


@pytest.mark.parametrize("observation", ["vector", "dict", "remembering"])
@pytest.mark.parametrize("mode", ["sync", *NATIVE])
def test_advantages_are_those_of_the_script_in_every_mode(mode: str, observation: str) -> None:
    options = REMEMBERING if observation == "remembering" else {}
    kind = "dict" if observation == "dict" else "vector"
    played = play(**options, **world(mode, kind))
    check_against(SCRIPTED, played, kind == "dict")
    rows = sum(int(batch.valid.sum()) for batch in played.batches)
    # A row for every end that the next episode waited for, but in unrolls that were cut.
    assert (rows < NUM_ENVS * sum(cut_to(batch) for batch in played.batches)) == (mode == "next_step")
    known = {(math.fsum(part.rewards), len(part.rewards)) for part in SCRIPTED}
    assert set(played.episodes) == known
    assert rows - sum(length for _, length in played.episodes) < NUM_ENVS * 5


def world(mode: str, observation: str) -> dict[str, Any]:
    if mode == "sync":
        return {"env": f"tests.worlds:Scripted-{observation}-disabled-v0"}
    return {"env": f"tests.worlds:Scripted-{observation}-{mode}-v0", "vector": "native"}


def cut_to(batch: Batch) -> int:
    """Rows of a batch until it was cut."""
    return int(batch.valid.any(1).nonzero().max()) + 1


@pytest.mark.parametrize("mode", ["sync", *NATIVE])
def test_corrections_of_another_policy_are_those_of_the_paper_in_every_mode(mode: str) -> None:
    config = ImpalaConfig(**OPTIONS, rho_bar=RHO_BAR, c_bar=C_BAR)
    played = play(**world(mode, "vector"))
    learner = play(**world("sync", "vector")).policy
    with torch.no_grad():
        learner.head.weight.mul_(-0.5)
        learner.value_head.weight.mul_(-1)
    for batch in played.batches:
        with torch.no_grad():
            outputs = evaluate(learner, batch)
            prediction = predict(learner, batch, outputs.parameters, outputs.values)
        rhos = prediction.log_ratio.exp()
        assert (rhos > RHO_BAR).any() and (rhos < C_BAR).any()
        targets = vtrace_targets(batch, outputs, prediction, config, None)
        for b, column in enumerate(columns_of(learner, batch)):
            correction = Correction(rhos[:, b].tolist(), RHO_BAR, C_BAR)
            for t in np.flatnonzero(batch.valid[:, b]).tolist():
                expected = (
                    column.vtrace_advantage(t, GAMMA, LAMBDA, correction),
                    column.vtrace_target(t, GAMMA, LAMBDA, correction),
                )
                got = (float(targets.advantages[t, b]), float(targets.values[t, b]))
                assert got == pytest.approx(expected, rel=1e-4, abs=1e-3)


# Lives, and environments that break

ON, LIFE, OVER, TRUNCATED, BROKEN = "on", "a life is lost", "over", "truncated", "broken"
GAMES = (
    (ON, LIFE, ON, ON, OVER),
    (ON, ON, BROKEN),
    (LIFE, BROKEN),
    (BROKEN,),
    (ON, LIFE, TRUNCATED),
    (LIFE, LIFE, ON, BROKEN),
    (TRUNCATED,),
)


def reward_of(game: Any, step: Any) -> Any:
    return 2.0**game * (step - 1.5)


def parts_of(game: int) -> Iterator[Part]:
    """The steps of a game, cut where a life was lost and before the step that broke."""
    events, first = GAMES[game], 0
    for step, event in enumerate(events):
        end = step if event == BROKEN else step + 1
        if event != ON and end > first:
            seen = [(game, number) for number in range(first, end + 1)]
            rewards = [reward_of(game, number) for number in range(first, end)]
            yield Part(seen, rewards, event in (LIFE, OVER))
        first = first if event == ON else end


class Games:
    """Vector environment without autoreset: its seed says which of `GAMES` a row plays; observes it and the steps made.

    What it reports of a row that broke is nonsense, but for its observation.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self._game, self._step = np.zeros((2, num_envs), np.int64)
        self._waits = np.ones(num_envs, np.bool_)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[NDArray, dict[str, Any]]:
        mask = np.ones(self.num_envs, np.bool_) if options is None else options["reset_mask"]
        self._game[mask], self._step[mask] = np.array(seed)[mask] % len(GAMES), 0
        self._waits &= ~mask
        return self._observe(), {}

    def step(self, _actions: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray, dict[str, NDArray]]:
        assert not self._waits.any()
        events = np.array([GAMES[game][step] for game, step in zip(self._game, self._step, strict=True)])
        broken, life_lost = events == BROKEN, events == LIFE
        reward = np.where(broken, 0.0, reward_of(self._game, self._step))
        self._step += ~broken
        terminated, truncated = life_lost | (events == OVER), events == TRUNCATED
        self._waits = broken | truncated | (events == OVER)
        info = {"life_lost": life_lost} if life_lost.any() else {}
        return self._observe(), reward, terminated, truncated, info | ({"broken": broken} if broken.any() else {})

    def _observe(self) -> NDArray:
        return np.stack([self._game, self._step], 1).astype(np.float32)

    def close(self) -> None:
        pass


@pytest.fixture
def games(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrl.envs.episodes.make_vector_env", lambda _world, num_envs, *_: Games(num_envs))
    # A snapshot of one seed for all would do, but not for this.
    monkeypatch.setattr("hpcrl.envs.restore._NoSnapshots.reset_seed", lambda _, seeds: seeds.tolist())


@pytest.mark.parametrize("options", [{}, REMEMBERING], ids=["plain", "remembering"])
def test_lives_and_steps_that_broke_cut_what_is_learned_and_not_what_is_reported(
    games: None, options: dict[str, Any]
) -> None:
    played = play(env="tests.worlds:Scripted-vector-disabled-v0", **options)
    check_against([part for game in range(len(GAMES)) for part in parts_of(game)], played)
    whole = [game for game, events in enumerate(GAMES) if events[-1] != BROKEN]
    lengths = {game: len(GAMES[game]) for game in whole}
    returns = {game: math.fsum(reward_of(game, step) for step in range(lengths[game])) for game in whole}
    assert set(played.episodes) == {(returns[game], lengths[game]) for game in whole}


def test_nothing_is_learned_from_the_row_that_broke(games: None) -> None:
    played = play(env="tests.worlds:Scripted-vector-disabled-v0")
    assert any(batch.valid[:-1].logical_not().any() for batch in played.batches)
    for batch in played.batches:
        spoilt = replace(spoil(batch, 1e6), action=batch.action)
        one, two = (impala_loss(played.policy, each, ImpalaConfig(**OPTIONS), 0.1, None) for each in (batch, spoilt))
        assert one.statistics.tolist() == two.statistics.tolist()
        assert torch.equal(gradient(played.policy, one.total), gradient(played.policy, two.total))
