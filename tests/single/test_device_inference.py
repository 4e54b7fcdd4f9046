"""Answers that an accelerator computes: the learner's, of the weights that they are said to be of."""

from __future__ import annotations

from typing import Any, cast

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
import torch

from hpcrl.cluster.inference import QuestionSpec, SharedChannel
from hpcrl.config import ImpalaConfig
from hpcrl.devices import compiling
from hpcrl.devices.accelerator import Accelerator, HostAccelerator
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles.device_inference import DeviceAnsweringService, DeviceNetwork
from hpcrl.roles.workplace import copy_of
from hpcrl.spaces import Space, Task
from hpcrl.unroll import aligned_zeros
from tests.late import LateAccelerator
from tests.playing import BusyWaiter, no_fence

SIZES = (3, 1, 2)
TASK = Task(Space("box", (5,), "float32"), Space("discrete", (), "int64", 4), None, True)
IMAGES = Task(Space("box", (36, 36), "uint8"), Space("discrete", (), "int64", 4), None, True)


class Serving:
    """Three groups of actors, their learner, and its service."""

    def __init__(self, task: Task, accelerator: Accelerator, with_value: bool = False, **options: Any) -> None:
        config = ImpalaConfig(hidden_sizes=(8,), core_size=6, **options)
        self.learned = Policy(task, config)
        self.learned.initialise(1)
        following = copy_of(self.learned, config, task, accelerator)
        self.flat = FlatParameters(self.learned)
        self.version = 0
        specs = [QuestionSpec(self.learned.space, size, 4 + with_value, self.learned.state_size) for size in SIZES]
        memories = [aligned_zeros(spec.nbytes) for spec in specs]
        both = list(zip(specs, memories, strict=True))
        self.asking, answering = ([SharedChannel(spec, memory, no_fence) for spec, memory in both] for _ in range(2))
        self.with_value = with_value
        network = DeviceNetwork(
            following, self.flat, accelerator, sum(SIZES), 4 + with_value, config.compile, with_value
        )
        waiter = cast(Any, BusyWaiter())
        self.service = DeviceAnsweringService(network, answering, lambda: self.version, waiter)
        self._rng = np.random.default_rng(3)

    def ask(self, group: int) -> None:
        channel = self.asking[group]
        channel.observation[...] = self._rng.integers(0, 200, channel.observation.shape)
        channel.state[:] = self._rng.normal(size=channel.state.shape)
        channel.ask()

    def serve_until_answered(self) -> None:
        for _ in range(100):
            if not self.service.serve() and all(channel.is_answered() for channel in self.asking):
                return
        raise AssertionError("no answer came")

    def check(self, group: int, version: int) -> None:
        channel = self.asking[group]
        asked = torch.from_numpy(channel.observation.copy()), torch.from_numpy(channel.state.copy())
        parameters, state, value = self.learned.step_and_value(*asked)
        if self.with_value:
            parameters = torch.cat([parameters, value[:, None]], 1)
        for got, expected in zip((channel.parameters, channel.next_state), (parameters, state), strict=True):
            np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)
        assert channel.version.tolist() == [version]

    @torch.no_grad()
    def update(self) -> None:
        self.flat.weights.add_(torch.randn(len(self.flat), generator=torch.Generator().manual_seed(self.version)) * 0.1)
        self.version += 1


@pytest.mark.parametrize(
    ("task", "options"), [(TASK, {}), (TASK, {"core": "lstm"}), (IMAGES, {"model": "nature", "frame_stack": 2})]
)
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_answers_are_the_learners_of_its_newest_weights(task: Task, options: dict[str, Any], seed: int | None) -> None:
    serving = Serving(task, HostAccelerator() if seed is None else LateAccelerator(seed), **options)
    assert not serving.service.serve()
    for who in [(0, 2), (1,), (0, 1, 2), (2, 0)]:
        for group in who:
            serving.ask(group)
        serving.serve_until_answered()
        for group in who:
            serving.check(group, serving.version)
        serving.update()


@pytest.mark.parametrize(
    ("task", "options", "num_graphs"),
    [
        (TASK, {"with_value": True}, 4),
        (TASK, {"core": "lstm"}, None),
        (IMAGES, {"model": "nature", "frame_stack": 2}, 4),
    ],
)
def test_compiled_answers_are_the_learners_and_have_few_sizes(
    task: Task, options: dict[str, Any], num_graphs: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setitem(compiling.WAYS, "kernels", {"backend": backend})
    # Weights that are folded without a compiler are as on an accelerator, too.
    for module in ("images", "convolutions"):
        monkeypatch.setattr(f"hpcrl.models.{module}.on_host", lambda tensor: False)
    torch._dynamo.reset()
    serving = Serving(task, LateAccelerator(1), device="auto", compile="graphs", **options)
    # Of 3, 1, 4, 2, 5, 3 and 6 environments: 4, 1, 2 and 6 rows.
    for who in [(0,), (1,), (0, 1), (2,), (0, 2), (1, 2), (0, 1, 2)]:
        for group in who:
            serving.ask(group)
        serving.serve_until_answered()
        for group in who:
            serving.check(group, serving.version)
        serving.update()
    assert num_graphs is None or len(graphs) == num_graphs


def test_questions_gather_while_a_pass_is_under_way() -> None:
    serving = Serving(TASK, LateAccelerator(2))
    serving.ask(0)
    assert serving.service.serve()
    serving.ask(1)
    serving.ask(2)
    assert serving.service.serve() and not serving.asking[1].is_answered()
    serving.serve_until_answered()
    for group in range(3):
        serving.check(group, 0)


def test_an_answer_keeps_the_version_that_it_was_computed_with() -> None:
    serving = Serving(TASK, LateAccelerator(2))
    serving.ask(0)
    assert serving.service.serve() and not serving.asking[0].is_answered()
    serving.update()
    serving.serve_until_answered()
    assert serving.asking[0].version.tolist() == [0]
