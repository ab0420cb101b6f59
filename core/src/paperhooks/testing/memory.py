"""What memory a piece of work takes: the process' resident size and peak, and the largest tensor that is made."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LargestTensor", "forget_peak", "resident"]


class LargestTensor(TorchDispatchMode):
    """Inside ``with LargestTensor() as seen``, the sizes of the largest tensor that any operation returns.

    entries, nbytes
        Most entries, and most bytes, of one tensor; views count as what they show.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries = 0
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
                self.nbytes = max(self.nbytes, tensor.nbytes)
        return result


def resident(name: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (the peak) of this process; the peak where the system tells no more."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> bool:
    """Set the peak back to what is resident now; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return resident("VmHWM") <= resident("VmRSS") + (1 << 20)
