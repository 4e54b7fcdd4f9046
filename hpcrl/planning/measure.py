"""Measures on this machine, in a few seconds, what acting and learning cost."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.loss import STATISTICS, Normaliser
from hpcrl.algorithms.optimizers import make_optimizer
from hpcrl.algorithms.registry import loss_of
from hpcrl.config import ActorCriticConfig
from hpcrl.envs.episodes import unroll_rows
from hpcrl.envs.factory import describe_task
from hpcrl.envs.task_episodes import make_episodes
from hpcrl.envs.tasks import common_task
from hpcrl.envs.world import World, worlds_of
from hpcrl.models.acting import ActingNetwork
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.noise import Purpose, UniformsAhead
from hpcrl.planning.costs import Costs, Line, Link, fit_line, model_options
from hpcrl.planning.setups import Setup, require_plannable
from hpcrl.spaces import Task
from hpcrl.unroll import Memory, Unroll, UnrollSpec, num_finals

T = TypeVar("T")

#: Seconds for one kind of work at one size.
_BUDGET_S = 0.6
_FEWEST_REPEATS, _MOST_REPEATS = 5, 400
#: Steps that are acted to time one; a longer unroll costs as much for each.
_MOST_STEPS = 32
_MOST_COLUMNS = 64
_MOST_ROWS = 50_000
_COPY_BYTES = 16 << 20
#: Longest sleep of a polite wait (hpcrl.cluster.waiting).
_NAP_S = 5e-4
#: Within a node messages go through memory.
_NODE_LATENCY_S = 2e-6


class _Acted(NamedTuple):
    """Seconds that one unroll took: its steps, its actions, and the rest."""

    stepping: float
    inference: float
    rest: float


def measure(config: ActorCriticConfig, setups: Sequence[Setup], net: Link, links_from: str) -> Costs:
    """The costs of a run on this machine. Local.

    Args:
        config: of the run.
        setups: layouts whose sizes are of interest.
        net, links_from: what is taken for connections of nodes, and where that comes from.

    Raises:
        ConfigError: an environment or a model that can't be made.
    """
    require_plannable(config)
    world = worlds_of(config)[0]
    task = common_task(config.env_ids, [describe_task(world, config.hang_timeout)], config.task_id)
    with _threads(1):
        policy = Policy(task, config)
        policy.initialise(config.seed)
        flat = FlatParameters(policy, len(STATISTICS))
        acted = _measure_acting(config, world, task, policy, {setup.actor_envs for setup in setups})
    rows = [setup.learner_columns * setup.unroll_length * setup.pass_share for setup in setups]
    with _threads(config.learner_cores):
        gradient, apply_s = _measure_learning(config, acted.unroll, policy, flat, rows)
    copy = _copy_rate()
    return Costs(
        algorithm=config.algorithm,
        env=config.env,
        model=model_options(config),
        unroll_length=config.unroll_length,
        step=acted.step,
        step_sd_s=acted.step_sd_s,
        inference=acted.inference,
        unroll=acted.rest,
        gradient=gradient,
        apply_s=apply_s,
        unroll_bytes=_unroll_bytes(config, task, policy),
        weights_bytes=4 * len(flat),
        copy_bytes_per_s=copy,
        nap_s=_median_seconds(lambda: time.sleep(_NAP_S)),
        node=Link(_NODE_LATENCY_S, copy),
        net=net,
        links_from=links_from,
        measured_on=os.uname().nodename,
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sizes(wanted: Sequence[float], most: int) -> list[int]:
    """The least, the largest, and one between them that is as far from both by ratio."""
    low, high = (max(1, min(most, round(edge))) for edge in (min(wanted), max(wanted)))
    if low == high:
        low = max(1, high // 4)
    return sorted({low, round((low * high) ** 0.5), high})


class _Acting(NamedTuple):
    """Lines by columns, and an unroll of the most columns as it was acted."""

    step: Line
    step_sd_s: float
    inference: Line
    rest: Line
    unroll: Unroll


def _measure_acting(config: ActorCriticConfig, world: World, task: Task, policy: Policy, columns: set[int]) -> _Acting:
    sizes = _sizes(sorted(columns), _MOST_COLUMNS)
    stepping, inference, rest, spreads = [], [], [], []
    for size in sizes:
        actor = _Actor(config, world, task, policy, size)
        try:
            times = _repeat(actor.fill)
        finally:
            actor.close()
        steps = actor.unroll.spec.unroll_length
        low, middle, high = np.quantile([each.stepping for each in times], (0.25, 0.5, 0.75))
        stepping.append(float(middle) / steps)
        # The quartiles of a normal distribution are 1.349 deviations apart, whatever a busy machine adds at the end.
        spreads.append(float(high - low) / 1.349 / (steps * size) ** 0.5)
        inference.append(statistics.median(each.inference for each in times) / steps)
        rest.append(statistics.median(each.rest for each in times))
    lines = (fit_line(sizes, values) for values in (stepping, inference, rest))
    step, infer, once = lines
    return _Acting(step, statistics.median(spreads), infer, once, actor.unroll)


class _Actor:
    """Acts as an actor does, with a watch. Local.

    Attributes:
        unroll: that is filled.
    """

    def __init__(self, config: ActorCriticConfig, world: World, task: Task, policy: Policy, num_envs: int) -> None:
        memory = Memory(policy.state_size, config.frame_stack - 1, config.normalise_returns)
        steps = min(config.unroll_length, _MOST_STEPS)
        spec = UnrollSpec(task, steps, num_envs, 0, num_finals(task, steps, num_envs), memory=memory)
        self.unroll = Unroll(spec)
        self._rows = unroll_rows(self.unroll, slice(0, num_envs))
        self._seen: list[torch.Tensor] = list(torch.from_numpy(self.unroll.observation).unbind())
        if policy.num_history:
            stacked = torch.from_numpy(np.zeros((num_envs, *policy.space.shape), policy.space.dtype))
            self._seen = [stacked] * (steps + 1)
        self._envs = make_episodes(world, task, num_envs, 0, config.seed, gamma=config.gamma)
        self._network, self._head = ActingNetwork(policy), policy.head
        self._noise = UniformsAhead(config.seed, self._envs.env_index, Purpose.ACTION, policy.head.noise_size)
        self._state = torch.zeros(num_envs, policy.state_size)

    def fill(self) -> _Acted:
        """One unroll."""
        unroll, envs, head = self.unroll, self._envs, self._head
        begin = time.perf_counter()
        self._network.refresh()
        unroll.observation[0] = envs.observation
        stepping = inference = 0.0
        behaviour = []
        for t, rows in enumerate(self._rows):
            start = time.perf_counter()
            with torch.inference_mode():
                parameters, self._state = self._network.step(self._seen[t], self._state)
                action = head.sample(parameters, torch.from_numpy(self._noise.at(envs.rows))).numpy()
            unroll.action[t] = action
            behaviour.append(parameters)
            asked = time.perf_counter()
            envs.step_into(unroll.action[t], rows)
            stepping += time.perf_counter() - asked
            inference += asked - start
        with torch.inference_mode():
            log_prob = head.log_prob(torch.stack(behaviour), torch.from_numpy(unroll.action))
        unroll.behaviour_log_prob[...] = log_prob.numpy()
        return _Acted(stepping, inference, time.perf_counter() - begin - stepping - inference)

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()


def _measure_learning(
    config: ActorCriticConfig, unroll: Unroll, policy: Policy, flat: FlatParameters, rows: Sequence[float]
) -> tuple[Line, float]:
    """Seconds of a gradient by rows, and of the clip and the optimizer's step."""
    length = config.unroll_length
    columns = _sizes([count / length for count in rows], max(1, _MOST_ROWS // length))
    loss_function = loss_of(config)
    normalise: Normaliser | None = _standardise if config.normalise_advantages else None
    optimizer = make_optimizer(flat.weights, config)
    # The policy stays as it is.
    optimizer.learning_rate = 0.0

    def learn(batch: Batch) -> None:
        flat.reduced.zero_()
        loss = loss_function(policy, batch, config, config.entropy_coef, normalise, None)
        flat.tail.copy_(loss.statistics)
        loss.total.backward()

    def apply() -> None:
        flat.gradient.div_(1.0)
        norm = float(torch.linalg.vector_norm(flat.gradient))
        flat.gradient.mul_(min(1.0, 1.0 / max(norm, 1e-9)))
        optimizer.step()

    batches = [_batch(unroll, length, size) for size in columns]
    evict = _evictor()
    seconds = [_median_seconds(lambda batch=batch: learn(batch), evict) for batch in batches]  # type: ignore[misc]
    return fit_line([length * size for size in columns], seconds), _median_seconds(apply, evict)


def _standardise(advantages: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """As one learner does alone, up to rounding; float32 [T, B]."""
    chosen = advantages.masked_fill_(~valid, 0.0)
    return (chosen - chosen.mean()) / (chosen.std() + 1e-8)


def _batch(unroll: Unroll, length: int, columns: int) -> Batch:
    """A batch of so many rows and columns out of an unroll's, which come again and again."""
    time_of, column_of = np.arange(length) % unroll.spec.unroll_length, np.arange(columns) % unroll.spec.num_envs
    names = {field.name for field in dataclasses.fields(Batch)}
    whole = {"core_state": unroll.core_state[column_of], "history": unroll.history[:, column_of]}
    whole["observation"] = unroll.observation[np.append(time_of, time_of[-1] + 1)][:, column_of]
    rest = names - set(whole) - {"env_index", "final_observation", "final_index"}
    for name in rest:
        rows = getattr(unroll, name)
        whole[name] = (rows[time_of] if len(rows) else rows)[:, column_of]
    # Their last observations are not kept here: none counts as truncated.
    whole["truncated"][...] = False
    return Batch(
        **{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in whole.items()},
        final_observation=torch.from_numpy(unroll.final_observation[:0]),
        final_index=torch.zeros((0, 2), dtype=torch.int64),
        env_index=torch.from_numpy(column_of),
    )


def _unroll_bytes(config: ActorCriticConfig, task: Task, policy: Policy) -> Line:
    memory = Memory(policy.state_size, config.frame_stack - 1, config.normalise_returns)
    length, sizes = config.unroll_length, (1, _MOST_COLUMNS)
    nbytes = [UnrollSpec(task, length, size, 0, num_finals(task, length, size), memory=memory).nbytes for size in sizes]
    each = (nbytes[1] - nbytes[0]) / ((sizes[1] - sizes[0]) * length)
    return Line(max(0.0, nbytes[0] - each * length), each)


def _evictor() -> Callable[[], object]:
    """Fills the caches with something else: a learner waited before its gradient, and others worked meanwhile."""
    source, target = np.ones(_COPY_BYTES, np.uint8), np.zeros(_COPY_BYTES, np.uint8)
    return lambda: np.copyto(target, source)


def _copy_rate() -> float:
    """Bytes per second from memory to memory."""
    return _COPY_BYTES / _median_seconds(_evictor())


def _median_seconds(once: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Of `once`, which comes after `before` each time."""

    def timed() -> float:
        before()
        begin = time.perf_counter()
        once()
        return time.perf_counter() - begin

    return statistics.median(_repeat(timed))


def _repeat(once: Callable[[], T]) -> list[T]:
    """What it returns, again and again for as long as there is time; the first time is a warm-up."""
    once()
    end = time.perf_counter() + _BUDGET_S
    results: list[T] = []
    while len(results) < _FEWEST_REPEATS or (time.perf_counter() < end and len(results) < _MOST_REPEATS):
        results.append(once())
    return results
