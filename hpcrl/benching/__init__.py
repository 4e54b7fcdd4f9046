"""How fast training is on this machine, and what binds it."""
