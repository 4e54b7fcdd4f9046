"""Storage: files that survive a kill, strict HDF5, checkpoints and the run directory."""
