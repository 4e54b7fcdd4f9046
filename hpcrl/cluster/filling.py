"""Follows backward through a flat vector, so that its end is summed while its start is still being computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from hpcrl.cluster.reductions import Reduction
from hpcrl.errors import ShapeError


class Filling:
    """Tells a reduction how far a backward has filled the vector of all gradients.

    Each parameter's hook runs when its gradient is complete: on the CPU in the thread that calls backward, for a
    device in the thread that runs its backward, which queues work but waits for none. A parameter that gets no
    gradient holds back those before it, until `finish`; one that never needs any holds back nothing.

    Args:
        parameters: in the order in which their gradients lie in the vector, from its start, without gaps.
        reduction: of that vector; where it does not overlap, nothing is hooked.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], reduction: Reduction) -> None:
        self._reduction = reduction
        self._starts = [0]
        for parameter in parameters:
            self._starts.append(self._starts[-1] + parameter.numel())
        self._is_frozen = [not parameter.requires_grad for parameter in parameters]
        self._is_complete = list(self._is_frozen)
        self._first_complete = len(parameters)
        self._is_listening = False
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._complete, place))
            for place, parameter in enumerate(parameters)
            if reduction.overlaps and parameter.requires_grad
        ]

    @contextmanager
    def summing(self, vector: Tensor) -> Iterator[None]:
        """Around one backward: afterwards `vector` is its sum over the learners. Collective over them.

        Args:
            vector: float32 [N + num_extra], the gradients of all parameters, zeroed, and behind them what travels with
                them, which is final already.

        Raises:
            ShapeError: two backwards add to the same gradient inside, of which a part may be summed already.
            ShapeError, RankError: as of `Reduction.sum`.
        """
        self._reduction.begin(vector)
        self._is_complete, self._first_complete = list(self._is_frozen), len(self._is_frozen)
        self._is_listening = True
        try:
            yield
        finally:
            self._is_listening = False
        self._reduction.finish()

    def _complete(self, place: int, parameter: Tensor) -> None:
        if not self._is_listening:
            return
        if self._is_complete[place]:
            raise ShapeError(f"parameter {place} of {len(self._is_complete)} got a gradient twice in one sum")
        self._is_complete[place] = True
        before = self._first_complete
        while self._first_complete and self._is_complete[self._first_complete - 1]:
            self._first_complete -= 1
        if self._first_complete < before:
            self._reduction.filled(self._starts[self._first_complete])

    def close(self) -> None:
        """Leave the parameters alone. Local."""
        for hook in self._hooks:
            hook.remove()
