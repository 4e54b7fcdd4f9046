"""What compiling makes of updates, and of passes of central inference: the figures that decide on the default."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, cast

from torch import Tensor

from benchmarks.gpu import answers
from benchmarks.gpu.batches import GAME, ROBOT, Learning, random_unroll, relative
from benchmarks.gpu.findings import Finding, at_most
from benchmarks.gpu.updates import rate
from hpcrl.config import CONFIGS, ActorCriticConfig
from hpcrl.devices.accelerator import Accelerator
from hpcrl.devices.compiling import How
from hpcrl.errors import ConfigError
from hpcrl.roles.inbox import Piece
from hpcrl.spaces import Task

_SECTION = "compiled"
_HOW: tuple[How, ...] = ("kernels", "graphs")
_TIME = 20
#: Relative distance of gradients by their 2-norm.
_FLOAT32 = 1e-4
_BFLOAT16 = 0.05
_NATURE = {"frame_stack": 4, "model": "nature", "precision": "bfloat16"}


class Case(NamedTuple):
    """Columns of a batch, and options beside the usual ones."""

    task: Task
    num_envs: int
    options: dict[str, Any]

    @property
    def num_steps(self) -> int:
        """Of a batch."""
        return _TIME * self.num_envs


#: The smallest first.
_CASES = {
    "2 x 64, 20 x 64": Case(ROBOT, 64, {}),
    "LSTM of 256, 20 x 64": Case(ROBOT, 64, {"core": "lstm"}),
    "Nature CNN, 20 x 32, bfloat16": Case(GAME, 32, _NATURE),
    "Nature CNN, 20 x 256, bfloat16": Case(GAME, 256, _NATURE),
}


class Measured(NamedTuple):
    """Seconds of the first gradient, that gradient, and updates a second after it."""

    first_s: float
    gradient: Tensor
    rate: float


def check(accelerator: Accelerator, seconds: float, most: int | None = None) -> Iterator[Finding]:
    """Updates by impala with data that is there already, as `--compile` has them, and passes.

    Args:
        seconds: how long each way is measured.
        most: cases; None: all.
    """
    on_cpu = accelerator.device.type == "cpu"
    if on_cpu:
        if shutil.which("g++") is None:
            yield Finding(_SECTION, "skipped", None, note="g++ is missing")
            return
        _write_no_vectors()
    for name, case in islice(_CASES.items(), most):
        plain = _measure(accelerator, case, "none", seconds)
        yield Finding(_SECTION, f"{name}: none", plain.rate * case.num_steps, "agent steps/s")
        for how in _HOW:
            if how == "graphs" and on_cpu:
                yield Finding(_SECTION, f"{name}: {how}", None, note="CUDA graphs need a GPU")
            else:
                yield from _compare(f"{name}: {how}", accelerator, case, how, seconds, plain)
    if not on_cpu:
        for how in ("none", "kernels"):
            yield from answers.measure(accelerator, 64, "bfloat16", seconds, how)


def _compare(
    what: str, accelerator: Accelerator, case: Case, how: How, seconds: float, plain: Measured
) -> Iterator[Finding]:
    try:
        found = _measure(accelerator, case, how, seconds)
    except ConfigError as error:
        yield Finding(_SECTION, what, None, note=str(error))
        return
    yield Finding(_SECTION, what, found.rate * case.num_steps, "agent steps/s")
    yield Finding(_SECTION, f"{what}, rates of none", found.rate / plain.rate)
    yield Finding(_SECTION, f"{what}, to compile", found.first_s, "s")
    distance = relative(found.gradient, plain.gradient)
    yield at_most(_SECTION, f"{what}, gradient", distance, _BFLOAT16 if case.task is GAME else _FLOAT32)


def _measure(accelerator: Accelerator, case: Case, how: How, seconds: float) -> Measured:
    config = CONFIGS["impala"](device="auto", compile=how, unroll_length=_TIME, learning_rate=1e-6, **case.options)
    learning = Learning(case.task, cast(ActorCriticConfig, config), accelerator)
    unroll = random_unroll(case.task, learning.config, learning.memory, case.num_envs, 1)
    workplace = learning.workplace
    workplace.batcher.arrived(unroll)
    workplace.batcher.stack([Piece(unroll, 0, case.num_envs)])
    batch = workplace.batcher.batch
    start = time.perf_counter()
    gradient = learning.gradient(batch)[1].clone()
    workplace.settle()
    first_s = time.perf_counter() - start
    return Measured(first_s, gradient, rate(lambda: learning.update(batch), workplace.settle, seconds))


def _write_no_vectors() -> None:
    """Have torch write plain C++ in rehearsals: g++ 12 refuses the vectors of bool that torch 2.13 writes."""
    import torch._inductor.config as inductor

    inductor.cpp.simdlen = 1
