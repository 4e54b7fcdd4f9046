"""Storage: files that survive a kill, strict HDF5, checkpoints, trajectories and the run directory.

Importing it loads neither torch nor h5py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcrl.storage.dataset import TrajectoryDataset

__all__ = ["TrajectoryDataset"]


def __getattr__(name: str) -> Any:
    if name == "TrajectoryDataset":
        from hpcrl.storage.dataset import TrajectoryDataset

        return TrajectoryDataset
    raise AttributeError(f"module 'hpcrl.storage' has no attribute {name!r}")
