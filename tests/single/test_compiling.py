"""Compiled learners: the losses and gradients of those that are not, few shapes, results that are kept in time.

Graphs are traced as for a GPU, but computed operation by operation: no test needs a compiler of C++.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import tests.no_mpi  # noqa: F401

# isort: split
import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from hpcrl.algorithms.batch import Batch
from hpcrl.algorithms.loss import STATISTICS
from hpcrl.algorithms.registry import LOSSES
from hpcrl.algorithms.standardising import standardise
from hpcrl.cluster.filling import Filling
from hpcrl.config import CONFIGS, ActorCriticConfig, ImpalaConfig
from hpcrl.devices import compiling
from hpcrl.devices.accelerator import HostAccelerator
from hpcrl.devices.compiling import MOST_SHAPES, compiled, roomy
from hpcrl.errors import ConfigError
from hpcrl.models.flat import FlatParameters
from hpcrl.models.policy import Policy
from hpcrl.roles import compiled_loss
from hpcrl.roles.batching import batch_of
from hpcrl.roles.compiled_loss import CompiledLoss, widened, with_finals
from hpcrl.roles.workplace import copy_of
from hpcrl.spaces import Space, Task
from hpcrl.unroll import Memory, Unroll, UnrollSpec
from tests.late import LateAccelerator
from tests.single.test_accelerators import advance, station
from tests.single.test_reductions import Recorder

TIME = 4
VECTORS = Task(Space("box", (5,), "float32"), Space("discrete", (), "int64", 3), None, True)
IMAGES = Task(Space("box", (36, 36), "uint8"), Space("discrete", (), "int64", 3), None, True)
MODELS: dict[str, tuple[Task, dict[str, Any]]] = {
    "mlp": (VECTORS, {}),
    "images": (IMAGES, {"model": "nature", "frame_stack": 2}),
    "lstm": (VECTORS, {"core": "lstm"}),
}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compiling.WAYS, "kernels", {"backend": "eager"})


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that were compiled so far."""
    found: list[Any] = []

    def backend(graph: Any, _inputs: Sequence[Tensor]) -> Callable[..., Any]:
        found.append(graph)
        return cast(Callable[..., Any], graph.forward)

    monkeypatch.setitem(compiling.WAYS, "kernels", {"backend": backend})
    return found


class Learning:
    """A policy as an accelerator has it, and its losses over random batches."""

    def __init__(self, algorithm: str, model: str = "mlp", **changes: Any) -> None:
        task, options = MODELS[model]
        options = {"device": "auto", "compile": "kernels", "hidden_sizes": (8,), "core_size": 6} | options | changes
        options |= {"minibatches": 1} if algorithm == "ppo" else {}
        self.task = task
        self.config = cast(ActorCriticConfig, CONFIGS[algorithm](unroll_length=TIME, **options))
        own = Policy(task, self.config)
        own.initialise(1)
        self.policy = copy_of(own, self.config, task, HostAccelerator())
        self.policy.load_state_dict(own.state_dict())
        self.flat = FlatParameters(self.policy, len(STATISTICS))
        self.plain = LOSSES[algorithm]
        self.compiled = CompiledLoss(self.plain, self.config.compile)

    def batch(self, num_envs: int, num_finals: int, seed: int = 1) -> Batch:
        rng = np.random.default_rng(seed)
        memory = Memory(self.policy.state_size, self.config.frame_stack - 1)
        unroll = Unroll(UnrollSpec(self.task, TIME, num_envs, 0, max(1, num_finals), memory=memory))
        for name in ("observation", "history", "final_observation"):
            array = getattr(unroll, name)
            array[...] = rng.integers(0, 200, array.shape) if array.dtype == np.uint8 else rng.normal(size=array.shape)
        unroll.action[...] = rng.integers(0, 3, unroll.action.shape)
        unroll.reward[...] = rng.normal(size=unroll.reward.shape)
        unroll.behaviour_log_prob[...] = -1 + 0.1 * rng.normal(size=unroll.reward.shape)
        unroll.terminated[...] = rng.random(unroll.terminated.shape) < 0.2
        unroll.valid[...] = rng.random(unroll.valid.shape) < 0.9
        for final in range(num_finals):
            t, b = divmod(final, num_envs)
            unroll.final_index[final] = t, b
            unroll.terminated[t, b], unroll.truncated[t, b], unroll.valid[t, b] = False, True, True
        unroll.set_header(length=TIME, num_finals=num_finals)
        batch = batch_of(unroll)
        return replace(batch, core_state=torch.from_numpy(rng.normal(size=batch.core_state.shape)).float())

    def gradient(
        self, loss: Callable[..., Any], batch: Batch, entropy_coef: float = 0.01, is_normalised: bool = False
    ) -> Tensor:
        """Gradient, statistics and loss, one behind the other."""
        self.flat.reduced.zero_()
        told = loss(self.policy, batch, self.config, entropy_coef, normalised if is_normalised else None)
        told.total.backward()
        self.flat.tail.copy_(told.statistics)
        return torch.cat([self.flat.reduced, told.total.detach().reshape(1)])

    def check(self, batch: Batch, entropy_coef: float = 0.01, is_normalised: bool = False, **coefficients: Any) -> None:
        expected, found = (
            self.gradient(partial(loss, **coefficients), batch, entropy_coef, is_normalised)
            for loss in (self.plain, self.compiled)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert expected[: len(self.flat)].abs().max() > 1e-3


def normalised(advantages: Tensor, valid: Tensor) -> Tensor:
    return standardise(advantages, valid, lambda sums: sums)


@pytest.mark.parametrize(
    ("algorithm", "model"), [("ppo", "mlp"), ("appo", "mlp"), ("impala", "images"), ("a2c", "lstm")]
)
def test_losses_and_gradients_are_those_that_are_not_compiled(algorithm: str, model: str, traced: None) -> None:
    learning = Learning(algorithm, model)
    learning.check(learning.batch(9, 2), is_normalised=model == "mlp")


def test_batches_have_few_shapes(graphs: list[Any]) -> None:
    learning = Learning("a2c")
    for num_envs, num_finals in ((33, 0), (40, 8), (36, 3), (39, 1)):
        learning.check(learning.batch(num_envs, num_finals))
    assert len(graphs) == 1
    for num_envs, num_finals in ((40, 9), (36, 16), (40, 0)):
        learning.check(learning.batch(num_envs, num_finals))
    assert len(graphs) == 2


def test_a_learner_without_columns_compiles_nothing(graphs: list[Any]) -> None:
    learning = Learning("a2c")
    nothing = learning.gradient(learning.compiled, learning.batch(0, 0))
    assert not nothing.any() and not graphs


def test_coefficients_that_change_compile_nothing_anew(graphs: list[Any]) -> None:
    learning = Learning("ppo")
    batch = learning.batch(4, 0)
    for entropy_coef, clip_range in ((0.02, 0.2), (0.01, 0.1), (0.005, 0.05)):
        learning.check(batch, entropy_coef, clip_range=clip_range)
    assert len(graphs) == 1


@pytest.mark.parametrize("steps", [1, 4])
def test_sizes_leave_room_and_are_few(steps: int) -> None:
    sizes = [roomy(size, steps) for size in range(1, 1025)]
    assert sizes == sorted(sizes) and [roomy(size, steps) for size in sizes] == sizes
    assert all(size <= room < size * (1 + 1 / steps) for size, room in enumerate(sizes, 1))
    assert len(set(sizes)) <= 10 * steps + 1 < MOST_SHAPES


def test_what_is_added_to_a_batch_is_ignored() -> None:
    learning = Learning("a2c", "images")
    batch = learning.batch(3, 2)
    added = with_finals(widened(batch, 5), 8)
    assert added.observation.shape[:2] == (TIME + 1, 5) and len(added.history[0]) == len(added.core_state) == 5
    assert not added.valid[:, 3:].any() and torch.equal(added.reward[:, :3], batch.reward)
    assert torch.equal(added.final_index[2:], batch.final_index[1:].expand(6, 2))
    assert widened(batch, 3).observation is batch.observation
    assert with_finals(learning.batch(3, 0), 8).final_index.tolist() == [[0, 0]] * 8


class Replayed:
    """A backend whose results are lost when the next step begins, as those of CUDA graphs are."""

    def __init__(self) -> None:
        self._results: list[Tensor] = []
        self.num_steps = 0

    def compile(self, graph: Any, _inputs: Sequence[Tensor]) -> Callable[..., Any]:
        def run(*inputs: Tensor) -> list[Any]:
            results = [each.clone() if isinstance(each, Tensor) else each for each in graph.forward(*inputs)]
            self._results += [each for each in results if isinstance(each, Tensor) and each.is_floating_point()]
            return results

        return make_boxed_func(run)

    def step_begins(self) -> None:
        self.num_steps += 1
        for result in self._results:
            result.detach().fill_(torch.nan)
        self._results.clear()


def test_what_is_learned_is_that_of_the_host_though_results_are_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    replayed = Replayed()
    backend = aot_autograd(fw_compiler=replayed.compile)
    monkeypatch.setitem(compiling.WAYS, "graphs", {"backend": backend})
    monkeypatch.setattr(compiled_loss, "step_begins", replayed.step_begins)
    there, here = station("replayed", LateAccelerator(), device="auto", compile="graphs"), station("replayed", None)
    for each in (there, here):
        advance(each, 2)
    assert replayed.num_steps >= 4 and there.learner is not None and here.learner is not None
    assert replayed.num_steps == there.learner.learner_updates == here.learner.learner_updates
    assert (there.flat.weights - here.flat.weights).norm() < 1e-3 * here.flat.weights.norm()


class Watching(Recorder):
    """Writes down what is there when it may be summed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def filled(self, start: int) -> None:
        super().filled(start)
        self.seen.append(self._vector[start:].clone())


def test_all_of_the_gradient_is_there_when_it_is_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Backward is compiled too.
    monkeypatch.setitem(compiling.WAYS, "kernels", {"backend": "aot_eager"})
    learning = Learning("impala")
    batch = learning.batch(3, 2)
    learning.check(batch)
    expected = learning.gradient(learning.compiled, batch)[:-1]
    watching = Watching()
    filling = Filling(list(learning.policy.parameters()), watching)
    loss = learning.compiled(learning.policy, batch, learning.config, 0.01, None)
    learning.flat.reduced.zero_()
    learning.flat.tail.copy_(loss.statistics)
    with filling.summing(learning.flat.reduced):
        loss.total.backward()
    # The last is from `finish`; by the hooks all was there before.
    assert watching.news[-2:] == [0, 0] and watching.finished == 1
    for start, seen in zip(watching.news, watching.seen, strict=True):
        assert torch.equal(seen, expected[start:])


def test_what_can_not_be_compiled_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_graph: Any, _inputs: Any) -> Any:
        raise RuntimeError("no compiler of\n C++\n\nmany\nlines")

    monkeypatch.setitem(compiling.WAYS, "kernels", {"backend": broken})
    function = compiled(lambda rows: rows * 2, "kernels")
    with pytest.raises(ConfigError, match=r"can't compile here \(.*no compiler of C\+\+\); --compile none") as caught:
        function(torch.ones(3))
    assert "\n" not in str(caught.value) and caught.value.__suppress_context__


def test_other_errors_are_left_as_they_are(traced: None) -> None:
    def fail(_rows: Tensor) -> Tensor:
        raise RuntimeError("of the function itself")

    with pytest.raises(RuntimeError, match="of the function itself"):
        compiled(compiling.not_compiled(fail), "kernels")(torch.ones(3))
    with pytest.raises(RuntimeError, match="of the function itself"), compiling.told_in_a_sentence():
        fail(torch.ones(3))


def test_nothing_is_compiled_where_nobody_asks() -> None:
    assert compiled(len, "none") is len


def test_on_the_cpu_it_is_refused() -> None:
    for how in ("kernels", "graphs"):
        with pytest.raises(ConfigError, match="--compile must be none with --device cpu"):
            ImpalaConfig(compile=how)
