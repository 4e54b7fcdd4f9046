"""What the cores of this machine reach: matrix products and copies, all cores at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from hpcrl.benching.processes import on_every_core

_SQUARE = 1024
_COPY_BYTES = 64 << 20


class Limits(NamedTuple):
    """Of one core while all are busy.

    Attributes:
        flop_per_s: multiplications and additions of large float32 products.
        copied_bytes_per_s: bytes that are read and written elsewhere; each counts once.
    """

    flop_per_s: float
    copied_bytes_per_s: float


def limits(cores: int, seconds: float) -> Limits:
    """Means over the cores. Starts a process for each; `seconds` for each of both."""
    parts = on_every_core(_limits_of_one, (seconds,), cores)
    return Limits(*(statistics.fmean(values) for values in zip(*parts, strict=True)))


def _limits_of_one(seconds: float) -> Limits:
    torch.set_num_threads(1)
    square = torch.rand(_SQUARE, _SQUARE)
    source, target = np.ones((2, _COPY_BYTES), np.uint8)
    with torch.inference_mode():
        product = torch.empty_like(square)
        products = _calls_per_s(lambda: torch.mm(square, square, out=product), seconds)
    copies = _calls_per_s(lambda: np.copyto(target, source), seconds)
    return Limits(2 * _SQUARE**3 * products, _COPY_BYTES * copies)


def _calls_per_s(work: Callable[[], object], seconds: float) -> float:
    work()
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() < start + seconds:
        work()
        calls += 1
    return calls / (time.perf_counter() - start)
