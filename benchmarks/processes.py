"""The same work in several processes at once, as `hpcrl bench` has it."""

from __future__ import annotations

from hpcrl.benching.processes import on_every_core

__all__ = ["on_every_core"]
