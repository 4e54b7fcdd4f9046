"""Policies that remember: what actors did is what learners find, against every episode seen apart, step by step."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any, NamedTuple, cast

import tests.no_mpi  # noqa: F401

# isort: split
import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcrl.algorithms.batch import Batch, evaluate, sequence_of
from hpcrl.cluster.inference import QuestionSpec, SharedChannel, group_sizes
from hpcrl.config import ImpalaConfig
from hpcrl.envs.episodes import EpisodeEnvs
from hpcrl.envs.restarts import Restarts
from hpcrl.envs.world import worlds_of
from hpcrl.errors import CheckpointError
from hpcrl.models.acting import ActingNetwork
from hpcrl.models.policy import Policy
from hpcrl.roles.actor import Actor
from hpcrl.roles.batching import Batcher, batch_of
from hpcrl.roles.evaluation import Played, play
from hpcrl.roles.inbox import Piece
from hpcrl.roles.inference import AnsweringService, LearnerInference
from hpcrl.roles.memory import ActingMemory
from hpcrl.signals import Requests
from hpcrl.spaces import Space
from hpcrl.unroll import Memory, Unroll, aligned_zeros
from tests.playing import BusyWaiter, no_fence
from tests.single.test_async_rank import station_of

#: With this seed episodes of `Any` worlds end in every way at the first, inner and last rows of these unrolls.
SEED, NUM_ENVS, TIME, UNROLLS = 2, 4, 5, 6
KINDS: dict[str, dict[str, Any]] = {
    "lstm": {"core": "lstm"},
    "gru": {"core": "gru"},
    "frames": {"frame_stack": 3},
    "lstm and frames": {"core": "lstm", "frame_stack": 3},
    "gru, frames and normalised": {"core": "gru", "frame_stack": 2, "normalise_observations": True},
}
#: Environments that end in all ways, and options; those that can be stacked.
BOXES: dict[str, dict[str, Any]] = {
    "apart": {"env": "tests.worlds:Any-vector-discrete-v0"},
    "images": {"env": "tests.worlds:Any-image-multi_binary-v0"},
    "next step": {"env": "tests.worlds:Any-vector-box-v0", "vector": "native"},
    "next step by script": {"env": "tests.worlds:Scripted-vector-next_step-v0", "vector": "native"},
    "same step": {"env": "tests.worlds:Scripted-vector-same_step-v0", "vector": "native"},
    "no autoreset": {"env": "tests.worlds:Scripted-vector-disabled-v0", "vector": "native"},
    "broken": {"env": "hpcrl-tests/Shaky-v0", "env_restarts": 10_000},
}
PACKED: dict[str, dict[str, Any]] = {
    "masks in infos": {"env": "tests.worlds:Masked-info-multi_discrete-v0", "behaviour_epsilon": 0.3},
    "masks beside": {"env": "tests.worlds:Masked-observation-discrete_start-v0", "vector": "native"},
    "nested": {"env": "tests.worlds:Any-nested-dict-v0"},
    "same step, dict": {"env": "tests.worlds:Scripted-dict-same_step-v0", "vector": "native"},
}


class Shaky(gym.Env[NDArray, np.int64]):
    """Random observations; a step may terminate the episode, truncate it, do both, or raise; a reset may raise too."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray, dict]:
        super().reset(seed=seed)
        self._break_at_times(0.1)
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[NDArray, float, bool, bool, dict]:
        self._break_at_times(0.15)
        end = self.np_random.integers(8)
        return self._observe(), float(action), end in (0, 1), end in (1, 2), {}

    def _break_at_times(self, share: float) -> None:
        if self.np_random.random() < share:
            raise OSError("no answer from the simulator")

    def _observe(self) -> NDArray:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


gym.register("hpcrl-tests/Shaky-v0", entry_point=Shaky)  # type: ignore[arg-type]
pytestmark = pytest.mark.filterwarnings("ignore:environment .* broke in its episode:RuntimeWarning")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrl.roles.station.Restarts", lambda cap, **_: Restarts(cap, sleep=lambda _: None))


class Playing:
    """An actor whose policy is far from uniform, and depends on what it remembers."""

    def __init__(self, num_finals: int = NUM_ENVS * TIME, **options: Any) -> None:
        settings: dict[str, Any] = {"num_envs": NUM_ENVS, "batch_envs": NUM_ENVS, "unroll_length": TIME, "seed": SEED}
        settings |= {"hidden_sizes": (6,), "core_size": 5}
        self.config = ImpalaConfig(**settings | options)
        station = station_of(self.config, Requests())
        assert station.actor is not None
        self.policy, self.actor, self.memory = station.policy, station.actor, station.memory
        sharpen(self.policy)
        self.spec = dataclasses.replace(station.unroll_spec(range(NUM_ENVS)), num_finals=num_finals)

    def fill(self, count: int = 1) -> list[Unroll]:
        """Unrolls one after the other, over memory that held something else before."""
        unrolls = [Unroll(self.spec) for _ in range(count)]
        for unroll in unrolls:
            unroll.buffer[:] = 1
            self.actor.fill(unroll, 0)
        return unrolls


class Central(Playing):
    """As `Playing`, in two groups that ask a learner, which remembers nothing between two questions."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        policy, task = self.policy, self.spec.task
        (world,) = worlds_of(self.config)
        sizes = group_sizes(NUM_ENVS)
        groups = [EpisodeEnvs(world, task, size, first, SEED) for size, first in zip(sizes, (0, sizes[0]), strict=True)]
        num_parameters = policy.step(torch.zeros(1, *policy.space.shape), torch.zeros(1, policy.state_size))[0].shape[
            -1
        ]
        specs = [QuestionSpec(policy.space, size, num_parameters, policy.state_size) for size in sizes]
        memories = [aligned_zeros(spec.nbytes) for spec in specs]
        asking, answering = (
            [SharedChannel(spec, memory, no_fence) for spec, memory in zip(specs, memories, strict=True)]
            for _ in range(2)
        )
        waiter = cast(Any, BusyWaiter())
        waiter.chores.append(AnsweringService(ActingNetwork(policy), answering, lambda: 0, waiter).serve)
        inference = LearnerInference(asking, waiter)
        self.actor = Actor(0, groups, inference, policy.head, 0.0, SEED, Requests(), waiter, self.memory)
        self.spec = dataclasses.replace(self.spec, versioned=True)


@torch.no_grad()
def sharpen(policy: Policy) -> None:
    policy.head.weight.mul_(150)
    if policy.inputs.mean is not None and policy.inputs.scale is not None:
        policy.inputs.mean.copy_(torch.where(policy.inputs.boxes, 0.25, 0.0))
        policy.inputs.scale.copy_(torch.where(policy.inputs.boxes, 1.5, 1.0))


# The reference: an environment alone, one row at a time


class Life(NamedTuple):
    """What is remembered of an episode before its next observation: state [1, S] and all frames so far."""

    state: Tensor
    frames: list[NDArray]


class Reference:
    """What a policy says of one environment's episodes."""

    def __init__(self, policy: Policy, space: Space) -> None:
        self._policy, self._space = policy, space

    def begin(self) -> Life:
        return Life(torch.zeros(1, self._policy.state_size), [])

    @torch.no_grad()
    def look(self, life: Life, observation: NDArray) -> tuple[Tensor, float, Life]:
        """Parameters [1, P] and value at an observation, and what is remembered then."""
        policy, frames = self._policy, [*life.frames, observation]
        window = [frames[max(0, len(frames) - 1 - age)] for age in range(policy.num_history, -1, -1)]
        seen = self._stacked(window)
        parameters, state = policy.step(seen, life.state)
        if policy.core is None:
            return parameters, float(policy(seen)[1]), Life(state, frames)
        output, _ = policy.core.step(policy.encoder.features(policy.inputs(seen)), life.state)
        return parameters, float(policy.value_head(output)), Life(state, frames)

    def _stacked(self, window: list[NDArray]) -> Tensor:
        if len(window) == 1:
            return torch.from_numpy(window[0].copy())[None]
        if self._space.dtype == "uint8":  # images [H, W, 1]
            return torch.from_numpy(np.stack([frame[..., 0] for frame in window])[None])
        return torch.from_numpy(np.concatenate(window)[None])


class Expected(NamedTuple):
    """Of one unroll, NaN where it does not matter: log-probabilities and next values, float [T, B]; and what is
    remembered before row 0, by environment."""

    log_prob: NDArray
    next_value: NDArray
    before: list[Life]


def expectations(playing: Playing, unrolls: list[Unroll], lives: list[Life] | None = None) -> list[Expected]:
    """What is expected of unrolls one after the other, from all episodes' beginnings on or from `lives`."""
    reference = Reference(playing.policy, playing.spec.task.observation)
    lives = lives or [reference.begin() for _ in range(NUM_ENVS)]
    results = []
    for unroll in unrolls:
        log_prob, next_value = np.full((2, TIME, NUM_ENVS), np.nan)
        before = list(lives)
        finals = {
            tuple(place): final
            for place, final in zip(
                unroll.final_index[: unroll.num_finals].tolist(),
                unroll.final_observation[: unroll.num_finals],
                strict=True,
            )
        }
        for b in range(NUM_ENVS):
            for t in range(unroll.length):
                parameters, _, life = reference.look(lives[b], unroll.observation[t, b])
                ends = unroll.terminated[t, b] or unroll.truncated[t, b]
                following = finals[t, b] if ends and not unroll.terminated[t, b] else unroll.observation[t + 1, b]
                if unroll.valid[t, b]:
                    action = torch.from_numpy(unroll.action[t, b][None])
                    if playing.config.behaviour_epsilon:
                        parameters = playing.policy.head.explore(parameters, playing.config.behaviour_epsilon)
                    log_prob[t, b] = playing.policy.head.log_prob(parameters, action).item()
                    next_value[t, b] = 0.0 if unroll.terminated[t, b] else reference.look(life, following)[1]
                lives[b] = reference.begin() if ends or not unroll.valid[t, b] else life
        results.append(Expected(log_prob, next_value, before))
    return results


def assert_equal_where_known(got: Any, expected: NDArray, tolerance: float) -> None:
    known = ~np.isnan(expected)
    np.testing.assert_allclose(np.asarray(got)[: len(expected)][known], expected[known], rtol=0, atol=tolerance)


@torch.no_grad()
def replayed(playing: Playing, batch: Batch) -> NDArray:
    """Log-probabilities that a learner with equal weights finds, float32 [T, B]."""
    parameters = playing.policy.over(sequence_of(batch)).parameters[:-1]
    if playing.config.behaviour_epsilon:
        parameters = playing.policy.head.explore(parameters, playing.config.behaviour_epsilon)
    return playing.policy.head.log_prob(parameters, batch.action).numpy()


def assert_as_expected(playing: Playing, unroll: Unroll, expected: Expected) -> None:
    """What the actor recorded, what a learner finds, and what both remember."""
    batch = batch_of(unroll)
    assert_equal_where_known(unroll.behaviour_log_prob, expected.log_prob, 1e-5)
    assert_equal_where_known(replayed(playing, batch), expected.log_prob, 1e-5)
    with torch.no_grad():
        outputs = evaluate(playing.policy, batch)
    assert_equal_where_known(outputs.next_values, expected.next_value, 1e-5)
    for b, life in enumerate(expected.before):
        np.testing.assert_allclose(unroll.core_state[b], life.state[0].numpy(), rtol=0, atol=1e-5)
        frames = [*life.frames, unroll.observation[0, b]]
        for place, frame in enumerate(unroll.history[:, b]):
            age = len(unroll.history) - place
            assert np.array_equal(frame, frames[max(0, len(frames) - 1 - age)])
    # Columns of a batch come in any order, from any part of an unroll.
    batcher = Batcher(playing.spec.task, TIME, playing.memory)
    batcher.stack([Piece(unroll, 2, NUM_ENVS), Piece(unroll, 0, 1), Piece(unroll, 1, 2)])
    order = [*range(2, NUM_ENVS), 0, 1]
    assert batcher.batch.env_index.tolist() == order
    assert_equal_where_known(replayed(playing, batcher.batch), expected.log_prob[:, order], 1e-5)
    with torch.no_grad():
        outputs = evaluate(playing.policy, batcher.batch)
    assert_equal_where_known(outputs.next_values, expected.next_value[:, order], 1e-5)


def places(unrolls: list[Unroll]) -> set[tuple[str, str]]:
    """What happened where: kinds of rows, at the first row of an unroll, inside, or at the last."""
    seen = set()
    for unroll in unrolls:
        for t in range(unroll.length):
            where = "first" if t == 0 else "last" if t == unroll.length - 1 else "inside"
            terminated, truncated = unroll.terminated[t], unroll.truncated[t]
            kinds = {"terminated": terminated & ~truncated, "truncated": truncated & ~terminated}
            kinds |= {"both": terminated & truncated, "ignored": ~unroll.valid[t]}
            seen |= {(kind, where) for kind, rows in kinds.items() if rows.any()}
    return seen


#: What happens at the first, at inner and at the last rows of unrolls; masked worlds only truncate, once in 10 steps.
ENDS: dict[str, tuple[str, ...]] = dict.fromkeys(BOXES | PACKED, ("terminated", "truncated", "both"))
ENDS |= {
    "next step": ("both", "ignored"),
    "no autoreset": ("terminated", "truncated"),
    "masks in infos": (),
    "masks beside": (),
}
ENDS |= {name: ("terminated", "truncated", "both", "ignored") for name in ("next step by script", "broken")}
CASES = [(world, kind) for world in BOXES for kind in KINDS if world != "images" or "frames" in kind]
CASES += [(world, kind) for world in PACKED for kind in ("lstm", "gru") if (world, kind) != ("nested", "gru")]


@pytest.mark.parametrize(("world", "kind"), CASES)
def test_actor_and_learner_agree_with_every_episode_seen_apart(world: str, kind: str) -> None:
    playing = Playing(**(BOXES | PACKED)[world] | KINDS[kind])
    unrolls = playing.fill(UNROLLS)
    for unroll, expected in zip(unrolls, expectations(playing, unrolls), strict=True):
        assert not np.isnan(expected.log_prob[unroll.valid]).any() and unroll.length == TIME
        assert_as_expected(playing, unroll, expected)
    assert places(unrolls)
    assert places(unrolls) >= {(end, place) for end in ENDS[world] for place in ("first", "inside", "last")}


@pytest.mark.parametrize("world", ["apart", "same step", "next step", "broken"])
@pytest.mark.parametrize("kind", ["lstm and frames", "gru, frames and normalised"])
def test_unrolls_that_are_cut_lose_no_memory(kind: str, world: str) -> None:
    playing = Playing(num_finals=NUM_ENVS, **BOXES[world] | KINDS[kind])
    unrolls = playing.fill(3 * UNROLLS)
    assert len({unroll.length for unroll in unrolls}) > 2
    for unroll, expected in zip(unrolls, expectations(playing, unrolls), strict=True):
        assert_as_expected(playing, unroll, expected)


@pytest.mark.parametrize("num_finals", [NUM_ENVS, NUM_ENVS * TIME])
@pytest.mark.parametrize("world", ["apart", "next step by script"])
@pytest.mark.parametrize("kind", ["lstm", "gru, frames and normalised"])
def test_what_a_learner_is_asked_holds_what_its_actors_remember(kind: str, world: str, num_finals: int) -> None:
    playing, other = (Central(num_finals=num_finals, **BOXES[world] | KINDS[kind]) for _ in range(2))
    unrolls = playing.fill(2 * UNROLLS)
    for unroll, expected in zip(unrolls, expectations(playing, unrolls), strict=True):
        assert_as_expected(playing, unroll, expected)
    if world == "apart":
        other.actor.restore(playing.actor.state())
        assert np.array_equal(playing.fill()[0].buffer, other.fill()[0].buffer)


def test_the_learners_replay_needs_what_was_before_the_unroll() -> None:
    playing = Playing(**BOXES["apart"] | KINDS["lstm and frames"])
    unrolls = playing.fill(UNROLLS)
    forgotten = 0
    for before, unroll in pairwise(unrolls):
        batch = batch_of(unroll)
        goes_on = ~(before.terminated[-1] | before.truncated[-1])
        assert (unroll.core_state != 0).any(1).tolist() == goes_on.tolist()
        stateless = dataclasses.replace(batch, core_state=torch.zeros_like(batch.core_state))
        frameless = dataclasses.replace(batch, history=batch.observation[:1].expand_as(batch.history))
        for changed in (stateless, frameless):
            difference = np.abs(replayed(playing, changed) - unroll.behaviour_log_prob).max(0)
            assert (difference[~goes_on] < 1e-5).all() and (difference[goes_on] > 1e-4).all()
            forgotten += int(goes_on.sum())
            # Only until the episode ends.
            ends = unroll.terminated | unroll.truncated
            after = np.cumsum(ends, 0) - ends > 0
            gap = np.abs(replayed(playing, changed) - unroll.behaviour_log_prob)
            assert (gap[after] < 1e-5).all()
    assert forgotten > 20


def test_the_value_of_a_final_observation_needs_its_own_episode() -> None:
    """The reference above is not the same for the state after the reset, or for the frames after it."""
    playing = Playing(**BOXES["same step"] | KINDS["lstm and frames"])
    differences = []
    for unroll in playing.fill(UNROLLS):
        batch = batch_of(unroll)
        with torch.no_grad():
            right = playing.policy.over(sequence_of(batch)).final_values
            shifted = batch.final_index + torch.tensor([1, 0])
            wrong = playing.policy.over(sequence_of(batch)._replace(final_index=shifted)).final_values
        differences += (right - wrong).abs().tolist()
    assert len(differences) > 10 and min(differences) > 1e-4


# Saved in the middle of episodes


@pytest.mark.parametrize("env", ["Any-vector-discrete", "Any-image-multi_binary", "Any-volume-tuple"])
@pytest.mark.parametrize("kind", ["lstm", "frames", "gru, frames and normalised"])
def test_a_restored_actor_goes_on_bit_for_bit(kind: str, env: str) -> None:
    options = KINDS[kind] | {"env": f"tests.worlds:{env}-v0", "env_restarts": 1 if "image" in env else 0}
    playing, other = Playing(**options), Playing(**options)
    playing.fill(3)
    state = {key: array.copy() for key, array in playing.actor.state().items()}
    names = {"core_state"} if "core" in KINDS[kind] else set()
    assert names | ({"frames"} if "frame_stack" in KINDS[kind] else set()) == state.keys() & {"core_state", "frames"}
    expected = playing.fill(3)
    other.fill(1)
    restored = other.actor.restore(state)
    assert restored.by_replay == NUM_ENVS and restored.begun_anew == 0
    assert all(np.array_equal(array, other.actor.state()[key]) for key, array in state.items())
    for one, two in zip(expected, other.fill(3), strict=True):
        assert np.array_equal(one.buffer, two.buffer)
    assert any(unroll.core_state.any() or unroll.history.any() for unroll in expected)


@pytest.mark.parametrize("kind", ["lstm", "frames", "gru, frames and normalised"])
def test_an_environment_that_begins_anew_remembers_nothing_and_the_others_go_on_bit_for_bit(kind: str) -> None:
    options = BOXES["apart"] | KINDS[kind]
    playing, other = Playing(**options), Playing(**options)
    lives = expectations(playing, playing.fill(2) + playing.fill())[-1].before
    state = playing.actor.state()
    lost = 1
    # No replay leads to this observation.
    state["observation"][lost] += 1
    expected = playing.fill()[0]
    restored = other.actor.restore(state)
    assert (restored.by_replay, restored.begun_anew) == (NUM_ENVS - 1, 1)
    got = other.fill()[0]
    kept = [b for b in range(NUM_ENVS) if b != lost]
    for name in ("observation", "action", "behaviour_log_prob", "reward", "terminated", "history"):
        assert np.array_equal(getattr(got, name)[:, kept], getattr(expected, name)[:, kept]), name
    assert np.array_equal(got.core_state[kept], expected.core_state[kept])
    assert not got.core_state[lost].any() and got.episode_number[0, lost] == expected.episode_number[0, lost] + 1
    assert all(np.array_equal(frame, got.observation[0, lost]) for frame in got.history[:, lost])
    lives = list(expectations(playing, [expected])[0].before)
    begun = expectations(other, [got], lives)[0]
    assert_equal_where_known(got.behaviour_log_prob[:, lost], begun.log_prob[:, lost], 1e-5)


def test_all_begin_anew_where_nothing_can_be_restored() -> None:
    playing, other = (Playing(**BOXES["next step"] | KINDS["lstm and frames"]) for _ in range(2))
    playing.fill(2)
    restored = other.actor.restore(playing.actor.state())
    assert restored.begun_anew == NUM_ENVS
    unrolls = other.fill(UNROLLS)
    assert not unrolls[0].core_state.any()
    for unroll, expected in zip(unrolls, expectations(other, unrolls), strict=True):
        assert_as_expected(other, unroll, expected)


@pytest.mark.parametrize(("name", "kind"), [("core_state", "lstm"), ("frames", "frames")])
def test_what_another_policy_remembers_is_refused(name: str, kind: str) -> None:
    playing = Playing(**BOXES["apart"] | KINDS[kind])
    state = playing.actor.state()
    shape = r"\[1, 10\]|\[4, 10\]" if name == "core_state" else r"\[4, 3, 5\]"
    for changed in (state | {name: state[name][:, :-1]}, {key: state[key] for key in state if key != name}):
        with pytest.raises(CheckpointError, match=f"environments/{name} doesn't fit: expected {shape}"):
            playing.actor.restore(changed)
    plain = Playing(**BOXES["apart"])
    assert not state.keys() & {"core_state", "frames"} - plain.actor.state().keys() - {name}
    plain.actor.restore(plain.actor.state())


# Where memory is kept


def test_memory_is_of_no_other_environment_and_of_no_other_episode() -> None:
    space = Space("box", (2,), "float32")
    first = np.array([[1, 1], [2, 2]], np.float32)
    memory = ActingMemory(space, Memory(3, 2), first)
    assert memory.is_needed and not ActingMemory(space, Memory(), first).is_needed
    assert memory.seen(torch.from_numpy(first)).tolist() == [[1] * 6, [2] * 6] and not memory.state.any()
    memory.state = torch.tensor([[7.0] * 3, [8.0] * 3])
    memory.observe(np.array([[3, 3], [4, 4]], np.float32), np.array([False, True]))
    assert memory.state.tolist() == [[7] * 3, [0] * 3]
    assert memory.seen(torch.empty(0)).tolist() == [[1, 1, 1, 1, 3, 3], [4] * 6]
    memory.observe(np.array([[5, 5], [6, 6]], np.float32), np.array([False, False]))
    assert memory.seen(torch.empty(0)).tolist() == [[1, 1, 3, 3, 5, 5], [4, 4, 4, 4, 6, 6]]
    state, history = np.full((2, 3), 9, np.float32), np.full((2, 2, 2), 9, np.float32)
    memory.write(state, history)
    assert state.tolist() == [[7] * 3, [0] * 3]
    assert history.tolist() == [[[1, 1], [4, 4]], [[3, 3], [4, 4]]]
    # What was saved is a copy.
    saved = memory.save()
    memory.observe(first, np.array([True, True]))
    assert saved["core_state"].tolist() == [[7] * 3, [0] * 3] and saved["frames"][0].tolist() == [
        [1, 1],
        [3, 3],
        [5, 5],
    ]
    memory.restore(saved, first, np.array([False, True]))
    assert memory.seen(torch.empty(0)).tolist() == [[1, 1, 3, 3, 5, 5], [2] * 6]
    assert memory.state.tolist() == [[7] * 3, [0] * 3] and saved["core_state"][0].tolist() == [7] * 3


@pytest.mark.parametrize("kind", ["lstm and frames", "gru"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluated_episodes_do_not_remember_those_beside_or_before_them(deterministic: bool, kind: str) -> None:
    playing = Playing(**BOXES["apart"] | KINDS[kind])
    (world,) = worlds_of(playing.config)

    def played(episodes: range) -> Played:
        return play(playing.policy, world, playing.spec.task, episodes, 5, deterministic)

    together = played(range(8))
    alone = [played(range(number, number + 1)) for number in range(8)]
    assert together.returns.tolist() == [one.returns.item() for one in alone]
    assert together.lengths.tolist() == [one.lengths.item() for one in alone]
    assert len(set(together.lengths.tolist())) > 2 and len(set(together.returns.tolist())) > 2


def test_an_actor_without_memory_keeps_none() -> None:
    playing = Playing(env="tests.worlds:Any-dict-discrete-v0")
    unroll = playing.fill()[0]
    assert unroll.core_state.shape == (NUM_ENVS, 0) and len(unroll.history) == 0
    assert isinstance(playing.actor, Actor) and not cast(Any, playing.actor)._memories[0].is_needed
    assert_as_expected(playing, unroll, expectations(playing, [unroll])[0])
