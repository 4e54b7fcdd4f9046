"""Where a tensor lies decides how a layer is computed: some arrangements pay on a CPU alone."""

from __future__ import annotations

import torch
from torch import Tensor


def on_host(tensor: Tensor) -> bool:
    """Whether the tensor is a CPU's to compute with, operation by operation: a compiler arranges them itself."""
    return tensor.is_cpu and not torch.compiler.is_compiling()
