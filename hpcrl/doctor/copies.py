"""How fast data comes to a GPU."""

from __future__ import annotations

import statistics
import time
from typing import Any

_BYTES = 64 << 20
_COPIES = 7


def copy_rate(torch: Any, index: int) -> float | None:
    """Bytes a second from pinned host memory to a CUDA device: median of some copies; None where that fails. Local.

    Args:
        torch: the module.
        index: of the device.
    """
    seconds = []
    try:
        with torch.cuda.device(index):
            source = torch.empty(_BYTES, dtype=torch.uint8, pin_memory=True)
            target = torch.empty(_BYTES, dtype=torch.uint8, device="cuda")
            for _ in range(_COPIES + 1):
                torch.cuda.synchronize()
                start = time.perf_counter()
                target.copy_(source, non_blocking=True)
                torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
    except RuntimeError:
        # Another process may have it for itself, or all its memory.
        return None
    return _BYTES / statistics.median(seconds[1:])
