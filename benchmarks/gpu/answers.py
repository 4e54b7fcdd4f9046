"""Central inference: how long an answer takes, and how many a second there are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.batches import GAME, Learning
from benchmarks.gpu.findings import Finding
from hpcrl.config import ImpalaConfig
from hpcrl.devices.accelerator import Accelerator
from hpcrl.devices.compiling import How
from hpcrl.models.policy import Policy
from hpcrl.roles.device_inference import DeviceNetwork

_SECTION = "central inference"


def check(accelerator: Accelerator, seconds: float) -> Iterator[Finding]:
    """Passes of various numbers of environments, one after the other."""
    for precision in ("float32", "bfloat16"):
        for num_envs in (8, 64, 512):
            yield from measure(accelerator, num_envs, precision, seconds)


def measure(
    accelerator: Accelerator, num_envs: int, precision: str, seconds: float, how: How = "none"
) -> Iterator[Finding]:
    """Passes of so many environments, compiled or not."""
    precise: Any = {"precision": precision}
    config = ImpalaConfig(frame_stack=4, model="nature", device="auto", compile=how, **precise)
    learning = Learning(GAME, config, accelerator)
    with accelerator.device:
        policy = Policy(GAME, config)
    network = DeviceNetwork(policy, learning.workplace.flat, accelerator, num_envs, 6, how)
    network.refresh()
    network.observation.copy_(torch.from_numpy(np.random.default_rng(1).integers(0, 256, network.observation.shape)))
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 5:
        start = time.perf_counter()
        mark = network.begin(num_envs)
        while not mark.is_passed():
            pass
        taken.append(time.perf_counter() - start)
    median = statistics.median(taken[len(taken) // 5 :])
    name = f"Nature CNN, {num_envs} environments, {precision}" + ("" if how == "none" else f", {how}")
    yield Finding(_SECTION, f"{name}: a pass", median * 1e6, "us")
    yield Finding(_SECTION, f"{name}: answers", num_envs / median, "1/s")
