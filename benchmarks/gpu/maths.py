"""Whether an accelerator computes what the CPU does: loss and gradients of every network and algorithm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch

from benchmarks.gpu.batches import GAME, ROBOT, Learning, random_unroll, relative
from benchmarks.gpu.findings import Finding, at_most
from hpcrl.config import CONFIGS, ActorCriticConfig
from hpcrl.devices.accelerator import Accelerator
from hpcrl.roles.inbox import Piece

_SECTION = "loss and gradients"
_NUM_ENVS = 8
#: Relative distance of losses, and of gradients by their 2-norm.
_FLOAT32 = 1e-4
_BFLOAT16 = 0.05
_CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "a2c, 2 x 64": (ROBOT, {"algorithm": "a2c", "normalise_observations": True}),
    "ppo, LSTM of 128": (ROBOT, {"algorithm": "ppo", "core": "lstm", "core_size": 128, "num_envs": _NUM_ENVS}),
    "impala, GRU of 128": (ROBOT, {"algorithm": "impala", "core": "gru", "core_size": 128}),
    "impala, Nature CNN": (GAME, {"algorithm": "impala", "frame_stack": 4, "model": "nature"}),
    "impala, IMPALA shallow": (GAME, {"algorithm": "impala", "frame_stack": 4, "model": "impala"}),
    "appo, IMPALA deep": (GAME, {"algorithm": "appo", "frame_stack": 4, "model": "impala-deep"}),
}


def check(accelerator: Accelerator) -> Iterator[Finding]:
    """Every case in float32, and those with images in bfloat16 against float32 on the CPU."""
    for name, (task, options) in _CASES.items():
        yield from _compare(name, task, options, accelerator, "float32", _FLOAT32)
        if task is GAME:
            yield from _compare(name, task, options, accelerator, "bfloat16", _BFLOAT16)


def _compare(
    name: str, task: Any, options: dict[str, Any], accelerator: Accelerator, precision: str, limit: float
) -> Iterator[Finding]:
    results = []
    for place, own in ((None, "float32"), (accelerator, precision)):
        learning = Learning(task, _config(options | {"precision": own}), place)
        unroll = random_unroll(task, learning.config, learning.memory, _NUM_ENVS, 1)
        batcher = learning.workplace.batcher
        batcher.arrived(unroll)
        batcher.stack([Piece(unroll, 0, _NUM_ENVS)])
        loss, gradient = learning.gradient(batcher.batch)
        learning.workplace.settle()
        results.append((loss.total.detach().reshape(1), gradient.clone()))
    (loss_here, gradient_here), (loss_there, gradient_there) = results
    yield at_most(_SECTION, f"{name}, {precision}: loss", relative(loss_there, loss_here), limit)
    yield at_most(_SECTION, f"{name}, {precision}: gradient", relative(gradient_there, gradient_here), limit)


def _config(options: dict[str, Any]) -> ActorCriticConfig:
    options = {"unroll_length": 20, "entropy_coef": 0.01, **options}
    torch.manual_seed(0)
    return cast(ActorCriticConfig, CONFIGS[options.pop("algorithm")](**options))
