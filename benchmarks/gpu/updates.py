"""How fast updates are: with data that is there already, and through the way that unrolls take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from benchmarks.gpu.batches import GAME, Learning, random_unroll
from benchmarks.gpu.findings import Finding, at_least
from hpcrl.config import CONFIGS, ActorCriticConfig
from hpcrl.devices.accelerator import Accelerator
from hpcrl.roles.inbox import Piece
from hpcrl.unroll import Unroll

_SECTION = "updates"
#: Least share of the rate with data that is there already.
_WANTED = 0.9
_NUM_SLOTS = 4


def check(accelerator: Accelerator, seconds: float, rounds: int) -> Iterator[Finding]:
    """Games of 20 steps, of 32 and of 256 environments, in both precisions.

    Args:
        seconds, rounds: how long each way is measured at a time, and how often, in turns.
    """
    for num_envs in (32, 256):
        for precision in ("float32", "bfloat16"):
            yield from _measure(accelerator, num_envs, precision, seconds, rounds)


def _measure(accelerator: Accelerator, num_envs: int, precision: str, seconds: float, rounds: int) -> Iterator[Finding]:
    options: dict[str, Any] = {"frame_stack": 4, "model": "nature", "unroll_length": 20, "precision": precision}
    config = cast(ActorCriticConfig, CONFIGS["impala"](**options, max_grad_norm=40.0, learning_rate=1e-6))
    learning = Learning(GAME, config, accelerator)
    unrolls = [random_unroll(GAME, config, learning.memory, num_envs, slot) for slot in range(_NUM_SLOTS)]
    accelerator.pin(unroll.buffer for unroll in unrolls)
    try:
        resident, whole = _rates(learning, unrolls, seconds, rounds)
    finally:
        accelerator.unpin()
    name = f"Nature CNN, 20 x {num_envs}, {precision}"
    frames = config.unroll_length * num_envs
    for rates, words in ((resident, "data there already"), (whole, "through our way")):
        yield Finding(_SECTION, f"{name}: {words}", statistics.median(rates) * frames, "agent steps/s")
    ratio = statistics.median(ours / best for ours, best in zip(whole, resident, strict=True))
    what = f"{name}: share of that rate"
    # The copies of a CPU take the time of its updates.
    is_gpu = accelerator.device.type == "cuda"
    yield at_least(_SECTION, what, ratio, _WANTED) if is_gpu else Finding(_SECTION, what, ratio)


def _rates(
    learning: Learning, unrolls: Sequence[Unroll], seconds: float, rounds: int
) -> tuple[list[float], list[float]]:
    """Updates a second with data that is there, and through our way, of rounds in which both took turns."""
    batcher, place = learning.workplace.batcher, 0

    def resident() -> None:
        learning.update(batcher.batch)

    def whole() -> None:
        nonlocal place
        batcher.stack([Piece(unrolls[place % _NUM_SLOTS], 0, unrolls[0].spec.num_envs)])
        place += 1
        # As where actors run ahead, the next unroll is there before this one is learned from.
        batcher.arrived(unrolls[place % _NUM_SLOTS])
        learning.update(batcher.batch)
        learning.workplace.deliver()

    batcher.arrived(unrolls[0])
    whole()
    settle = learning.workplace.settle
    found = [(rate(resident, settle, seconds), rate(whole, settle, seconds)) for _ in range(rounds)]
    return [first for first, _ in found], [second for _, second in found]


def rate(work: Callable[[], None], settle: Callable[[], None], seconds: float) -> float:
    """How often a second."""
    work()
    settle()
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or count < 3:
        work()
        count += 1
    settle()
    elapsed = time.perf_counter() - start
    return count / elapsed
