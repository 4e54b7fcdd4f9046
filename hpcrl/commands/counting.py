"""How many episodes of an evaluation are over, for whoever waits at a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self, TextIO

from hpcrl.words import plural

_BEGIN_THE_LINE_AGAIN = "\r\x1b[K"


class Progress:
    """One line that is written over as episodes end, and is gone afterwards; nothing where there is no terminal. Local.

    Use it as a context.

    Args:
        total: of all episodes.
        out: where the line is shown.
    """

    def __init__(self, total: int, out: TextIO) -> None:
        self._done, self._total, self._out = 0, total, out

    def add(self, episodes: int) -> None:
        """So many more are over."""
        self._done += episodes
        self._show(f"{self._done:,} of {plural(self._total, 'episode')}")

    def _show(self, line: str) -> None:
        if self._out.isatty():
            print(_BEGIN_THE_LINE_AGAIN + line, end="", file=self._out, flush=True)

    def __enter__(self) -> Self:
        self.add(0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._show("")
