"""What fields of configurations are made of: help text, group, and ranges that are checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_SEED = 2**63


def option(default: Any, help: str, group: str) -> Any:
    """A dataclass field that the command line shows in `group`."""
    return dataclasses.field(default=default, metadata={"help": help, "group": group})


class Range(NamedTuple):
    """Values that a field may have.

    Attributes:
        expected: says which, after "must be".
        holds: whether a value is one of them.
    """

    expected: str
    holds: Callable[[Any], bool]

    def or_none(self) -> Range:
        """The same, and None."""
        return Range(self.expected, lambda value: value is None or self.holds(value))


COUNT = Range("a whole number of at least 1", lambda value: value >= 1)
WHOLE = Range("a whole number of 0 or more", lambda value: value >= 0)
NOT_NEGATIVE = Range("0 or more", lambda value: value >= 0)
FINITE_NOT_NEGATIVE = Range("a finite number of 0 or more", lambda value: 0 <= value < math.inf)
POSITIVE = Range("a finite number above 0", lambda value: 0 < value < math.inf)
SHARE = Range("between 0 and 1", lambda value: 0 <= value <= 1)
SHARE_BELOW_1 = Range("at least 0 and below 1", lambda value: 0 <= value < 1)
