"""Environments: making, seeding, resetting and restoring them, and the two that hpcrl ships."""
