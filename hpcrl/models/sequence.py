"""What a policy sees of an unroll or of a batch: observations in the order of time, and what came before them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Sequence(NamedTuple):
    """Observations of B environments side by side; time first.

    Attributes:
        observation: [T, B, *shape].
        starts: bool [T, B], an episode begins at this row, so that nothing from before counts; row 0 is False, as state
            and history say what comes before it.
        state: float32 [B, S], of the recurrent core before row 0; S is 0 without one.
        history: [frame_stack - 1, B, *shape], frames before row 0, oldest first.
        final_observation: [F, *shape], observations that followed row t of environment b, but were reset away.
        final_index: int64 [F, 2], their (t, b).
    """

    observation: Tensor
    starts: Tensor
    state: Tensor
    history: Tensor
    final_observation: Tensor
    final_index: Tensor


class Evaluation(NamedTuple):
    """What a policy says of a sequence.

    Attributes:
        parameters: float32 [T, B, P], of the action distributions.
        values: float32 [T, B].
        final_values: float32 [F], of the final observations.
    """

    parameters: Tensor
    values: Tensor
    final_values: Tensor
