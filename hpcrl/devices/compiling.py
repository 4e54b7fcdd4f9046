"""What torch computes on an accelerator, compiled: a kernel for many operations, and maybe all kernels in one go."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from hpcrl.errors import ConfigError

#: none: operation by operation; kernels: torch.compile; graphs: the same, replayed as CUDA graphs.
How = Literal["none", "kernels", "graphs"]

#: What torch.compile is told.
WAYS: dict[How, dict[str, Any]] = {"kernels": {}, "graphs": {"mode": "reduce-overhead"}}

#: Beyond so many sets of shapes torch computes further ones operation by operation, and warns of it.
MOST_SHAPES = 64

_LONGEST_REASON = 300


def compiled(function: Callable[..., Any], how: How) -> Callable[..., Any]:
    """`function`, compiled anew for every set of shapes that it is called with; itself for "none". Local.

    Numbers among its arguments are constants to the compiler: what changes must be a tensor. Under "graphs" results
    lie in memory that is used again once `step_begins` is called: keep copies.

    Raises:
        ConfigError: when called, torch can't compile it.
    """
    if how == "none":
        return function
    # Else torch starts a process for every core of the node, whoever they belong to. Read when it is first imported.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    made = torch.compile(function, dynamic=False, **WAYS[how])
    limits = torch._dynamo.config
    limits.cache_size_limit = max(limits.cache_size_limit, MOST_SHAPES)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        with told_in_a_sentence():
            return made(*arguments, **named)

    return call


def not_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as it is written, also where a compiled one calls it. Local."""
    return torch.compiler.disable(function)


def step_begins() -> None:
    """Nobody needs what functions compiled as "graphs" have returned so far. Local."""
    torch.compiler.cudagraph_mark_step_begin()


@contextmanager
def told_in_a_sentence() -> Iterator[None]:
    """Around what may be compiled: ConfigError where torch can't, in place of its report. Local."""
    try:
        yield
    except RuntimeError as error:
        if all(cls.__module__ != "torch._dynamo.exc" for cls in type(error).__mro__):
            raise
        reason = " ".join(str(error).partition("\n\n")[0].split())
        raise ConfigError(
            f"torch {torch.__version__} can't compile here ({reason[:_LONGEST_REASON]}); --compile none does without"
        ) from None


def roomy(size: int, steps: int) -> int:
    """The least size of a few that is at least `size`: `steps` of them from each power of two to the next. Local."""
    unit = max(1, (1 << max(0, (size - 1).bit_length() - 1)) // steps)
    return -(-size // unit) * unit
