"""Questions between nodes: every answer belongs to its question, and nothing is left at the end."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch

from hpcrl.activity import Activity
from hpcrl.cluster.waiting import Waiter
from hpcrl.spaces import Space

if TYPE_CHECKING:
    from hpcrl.cluster.inference import QuestionSpec
    from hpcrl.cluster.mpi import Comm

_SPACE = Space("box", (3,), "float32")
_ROUNDS = 60


class _Sums:
    """A network whose answer tells the question."""

    @staticmethod
    def step(observation: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([observation.sum(-1), observation[:, 0]], -1), state + 1

    value = None

    def refresh(self) -> None:
        """It has no weights."""


def _specs() -> dict[int, list[QuestionSpec]]:
    """An odd number of environments on rank 1, one on rank 2."""
    from hpcrl.cluster.inference import QuestionSpec, group_sizes

    counts = {1: 5, 2: 1}
    return {actor: [QuestionSpec(_SPACE, size, 2, 5) for size in group_sizes(num)] for actor, num in counts.items()}


@pytest.mark.mpi(ranks=(3,), timeout=120)
def test_answers_belong_to_their_questions() -> None:
    from hpcrl.cluster.inference import MessageAnswers, MessageQuestions, SharedChannel
    from hpcrl.cluster.mpi import world
    from hpcrl.cluster.shared_memory import SharedSegments

    comm, waiter, specs = world(), Waiter(Activity()), _specs()
    segments = SharedSegments(comm, sum(spec.nbytes for spec in specs.get(comm.rank, [])))

    def shared(actor: int) -> list[Any]:
        channels, start = [], 0
        for spec in specs[actor]:
            channels.append(SharedChannel(spec, segments.segment(actor)[start : start + spec.nbytes], segments.fence))
            start += spec.nbytes
        return channels

    for is_shared in (True, False):
        if comm.rank == 0:
            answers: list[Any] = []
            for actor, groups in specs.items():
                far = (
                    [] if is_shared else [MessageAnswers(spec, group, comm, actor) for group, spec in enumerate(groups)]
                )
                answers += shared(actor) if is_shared else far
            _answer(answers, comm, waiter)
            for channel in [] if is_shared else answers:
                channel.cancel()
        elif is_shared:
            _ask(shared(comm.rank), comm.rank, waiter)
            waiter.request(comm.Ibarrier())
        else:
            _ask([MessageQuestions(spec, n, comm, 0) for n, spec in enumerate(specs[comm.rank])], comm.rank, waiter)
            waiter.request(comm.Ibarrier())
        waiter.request(comm.Ibarrier())
        assert not comm.Iprobe()
        waiter.request(comm.Ibarrier())
    segments.free()


def _answer(channels: list[Any], comm: Comm, waiter: Waiter) -> None:
    """Answer until the actors have asked all; every pass with another version."""
    from hpcrl.roles.inference import AnsweringService

    version = 0
    service = AnsweringService(cast(Any, _Sums()), channels, lambda: version, waiter)

    def serve() -> bool:
        nonlocal version
        served = service.serve()
        version += served
        return served

    waiter.chores.append(serve)
    waiter.request(comm.Ibarrier())
    waiter.chores.clear()


def _ask(channels: list[Any], rank: int, waiter: Waiter) -> None:
    """Questions of all groups in turn, one of each on its way."""
    from hpcrl.roles.inference import LearnerInference

    generator, rng = random.Random(rank), np.random.default_rng(rank)
    inference = LearnerInference(channels, waiter)
    asked = [torch.empty(0)] * len(channels)
    states = [torch.empty(0)] * len(channels)
    versions = [-1] * len(channels)

    def ask(group: int) -> None:
        asked[group] = torch.from_numpy(rng.normal(size=channels[group].observation.shape).astype(np.float32))
        states[group] = torch.from_numpy(rng.normal(size=channels[group].state.shape).astype(np.float32))
        inference.ask(group, asked[group], states[group])

    for group in range(len(channels)):
        ask(group)
    for number in range(_ROUNDS):
        for group in range(len(channels)):
            parameters, state, version, _ = inference.answer(group)
            expected, next_state = _Sums.step(asked[group], states[group])
            torch.testing.assert_close(parameters, expected)
            torch.testing.assert_close(state, next_state)
            assert version is not None and version > versions[group]
            versions[group] = version
            if generator.random() < 0.05:
                time.sleep(generator.random() * 2e-3)
            if number + 1 < _ROUNDS:
                ask(group)
