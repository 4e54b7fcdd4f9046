"""Which rows of a shard belong to which episode, found block by block."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcrl.noise import Purpose, seeds
from hpcrl.storage.shard_table import Block, Episodes


class _Begins(NamedTuple):
    """Where episodes begin, or go on at the start of a shard, int64 [n] each: the first row that counts, and so on."""

    row: NDArray[np.int64]
    column: NDArray[np.intp]
    number: NDArray[np.int64]
    first_step: NDArray[np.int64]


class _Ends(NamedTuple):
    """Where they end, or the shard does, [n] each: the row behind, steps and return so far, and whether it is over."""

    row: NDArray[np.int64]
    column: NDArray[np.intp]
    length: NDArray[np.int64]
    episode_return: NDArray[np.float64]
    is_over: NDArray[np.bool_]


class Segments:
    """The episodes of one shard.

    Args:
        first: its first block, which is still to be added.
    """

    def __init__(self, first: Block) -> None:
        columns = np.arange(first.episode_number.shape[1])
        valid = first.series["valid"][0]
        number, steps_before = first.episode_number[0].copy(), first.episode_length[0] - valid
        # A row that does not count, before an episode, is one in which the environment only reset itself.
        self._begins = [_Begins(np.where(valid, 0, 1), columns, number, steps_before)]
        self._ends: list[_Ends] = []
        self._num_rows = 0
        nothing = np.zeros(len(columns))
        self._last = _Ends(columns * 0, columns, steps_before, nothing, nothing > 0)
        self._number = number

    def add(self, block: Block) -> None:
        """The next rows."""
        number, length, return_ = block.episode_number, block.episode_length, block.episode_return
        ended, valid = block.series["ended"], block.series["valid"]
        changed = np.empty(number.shape, np.bool_)
        changed[0] = number[0] != self._number
        np.not_equal(number[1:], number[:-1], out=changed[1:])
        t, column = changed.nonzero()
        if len(t):
            row = self._num_rows + t
            self._begins.append(_Begins(row + ~valid[t, column], column, number[t, column], np.zeros(len(t), np.int64)))
            # The row before may be the last one of the block before.
            before, known = t - 1, t > 0
            last = self._last
            self._ends.append(
                _Ends(
                    row,
                    column,
                    np.where(known, length[before, column], last.length[column]),
                    np.where(known, return_[before, column], last.episode_return[column]),
                    np.where(known, ended[before, column], last.is_over[column]),
                )
            )
        self._num_rows += len(number)
        self._number = number[-1].copy()
        behind = np.full_like(self._last.column, self._num_rows)
        self._last = _Ends(behind, self._last.column, length[-1].copy(), return_[-1].copy(), ended[-1].copy())

    def table(self, env_index: NDArray[np.int64], seed: int, purpose: Purpose) -> Episodes:
        """All of them, by column and then by row.

        Args:
            env_index: int64 [B], global indices of the columns.
            seed: of the run.
            purpose: that episodes are seeded for.
        """
        begins = _Begins._make(map(np.concatenate, zip(*self._begins, strict=True)))
        ends = _Ends._make(map(np.concatenate, zip(*self._ends, self._last, strict=True)))
        # The k-th beginning in a column belongs to its k-th end.
        first, end = np.lexsort((begins.row, begins.column)), np.lexsort((ends.row, ends.column))
        begins = _Begins._make(part[first] for part in begins)
        ends = _Ends._make(part[end] for part in ends)
        steps = ends.length - begins.first_step
        # Rows behind the last step belong to an environment that broke.
        table = {
            "column": begins.column,
            "env_index": env_index[begins.column],
            "number": begins.number,
            "seed": seeds(seed, env_index[begins.column], begins.number, purpose),
            "first_row": begins.row,
            "end_row": begins.row + steps,
            "first_step": begins.first_step,
            "episode_return": ends.episode_return,
            "is_over": ends.is_over,
            "final": _numbered(ends),
        }
        counts = steps > 0
        return Episodes(**{name: column[counts] for name, column in table.items()})


def _numbered(ends: _Ends) -> NDArray[np.int64]:
    """Of those that are over, the place by row and then column; -1 for the others."""
    places = np.full(len(ends.row), -1)
    over = np.flatnonzero(ends.is_over)
    order = np.lexsort((ends.column[over], ends.row[over]))
    places[over[order]] = np.arange(len(over))
    return places
