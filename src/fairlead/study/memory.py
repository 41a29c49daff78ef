"""The largest memory this process held in a window of time: Linux counts it, and so does CUDA. Elsewhere it is not
measured, and None says so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def begin() -> bool:
    """Start a window: the high-water marks fall to what is held now. False where the kernel does not allow that."""
    for torch in _cuda():
        torch.cuda.reset_peak_memory_stats()
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak() -> int | None:
    """Bytes at the high-water mark since `begin`: resident memory, and what CUDA allocated beside it."""
    try:
        line = next(x for x in STATUS.read_text(encoding="ascii").splitlines() if x.startswith("VmHWM:"))
        held = 1024 * int(line.split()[1])
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    for torch in _cuda():
        held += sum(int(torch.cuda.max_memory_allocated(i)) for i in range(torch.cuda.device_count()))
    return held


def _cuda() -> list[Any]:
    """torch, where a CUDA device is in use; study itself never imports it."""
    torch = sys.modules.get("torch")
    return [torch] if torch is not None and torch.cuda.is_initialized() else []
