"""The environments of a preset alone: `python -m benchmarks.preset_stepping ALGORITHM/NAME NUM_ENVS SECONDS PROCESSES`.

Prints one JSON line. Actions are random and drawn before; every episode is reset from a seed of its own.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from benchmarks.processes import on_every_core
from benchmarks.stepping import own_step
from benchmarks.tables import RATE
from hpcrl.envs.factory import describe_task
from hpcrl.envs.world import worlds_of
from hpcrl.presets import PRESETS

_DRAWN = 256


def rate(label: str, num_envs: int, seconds: float) -> float:
    """Env steps per second of this process, of environments with choices for actions."""
    algorithm, name = label.split("/")
    world = worlds_of(PRESETS[name, algorithm].make())[0]
    num_choices = describe_task(world).action.num_choices
    step = own_step(world, num_envs)
    actions = np.random.default_rng(1).integers(0, num_choices, (_DRAWN, num_envs))

    for row in actions[:20]:
        step(row)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        step(actions[calls % _DRAWN])
        calls += 1
    return calls * num_envs / (time.perf_counter() - start)


def main() -> None:
    """Step in some processes at once; print the sum of their rates."""
    label, num_envs, seconds, processes = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    print(json.dumps({RATE: sum(on_every_core(rate, (label, num_envs, seconds), processes))}))


if __name__ == "__main__":
    main()
