"""Action heads for tests, over spaces of every kind."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpcrl.models.heads import ActionHead, make_head
from hpcrl.noise import Purpose, uniforms
from hpcrl.spaces import Space, packed

#: The largest number that `hpcrl.noise.uniforms` draws.
HIGHEST = 1 - 2.0**-24

CHOICE = Space("discrete", (), "int64", 5)
CHOICES = Space("multi_discrete", (2, 3), "int64", nvec=(3, 2, 3, 1, 2, 4))
EQUAL_CHOICES = Space("multi_discrete", (4,), "int64", nvec=(3, 3, 3, 3))
FLAGS = Space("multi_binary", (2, 2), "int8")
FORCE = Space("box", (3,), "float32")
FORCES = Space("box", (2, 3), "float32")
NUMBER = Space("box", (), "float32")
EVERYTHING = packed(
    (("turn", CHOICE), ("arm/force", FORCE), ("arm/levers", CHOICES), ("arm/flags", FLAGS), ("gas", NUMBER))
)
CHOICES_ONLY = packed((("0", CHOICE), ("1", FLAGS)))
SPACES = [CHOICE, CHOICES, EQUAL_CHOICES, FLAGS, FORCE, FORCES, NUMBER, EVERYTHING, CHOICES_ONLY]
#: The same, as they can be written into a test's name.
KINDS = [f"{space.kind}{list(space.shape)}" for space in SPACES]
MASKABLE = [CHOICE, CHOICES, EQUAL_CHOICES]


def categorical(num_choices: int) -> ActionHead:
    return make_head(Space("discrete", (), "int64", num_choices), 2)


def random_head(space: Space, seed: int) -> tuple[ActionHead, Tensor]:
    """A head with random weights and scales, and its parameters [6, 5, P] for random features."""
    generator = torch.Generator().manual_seed(seed)
    head = make_head(space, 4)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head, head(torch.randn(6, 5, 4, generator=generator))


def noise_for(head: ActionHead, rows: int, seed: int = 3) -> Tensor:
    """Counter-based noise [rows, noise_size]."""
    return torch.from_numpy(uniforms(seed, np.arange(rows), 0, Purpose.ACTION, head.noise_size))
