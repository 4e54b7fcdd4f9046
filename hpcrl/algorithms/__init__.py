"""Pure maths on tensors: returns, losses, optimizers. Nothing here knows of ranks, files or environments."""
