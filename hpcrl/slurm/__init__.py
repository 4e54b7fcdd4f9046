"""Slurm: batch scripts, and what its commands say. Knows no MPI."""
