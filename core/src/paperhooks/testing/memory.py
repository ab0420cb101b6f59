"""What memory a piece of work takes: the process' resident size and peak, and the largest tensor that is made."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LargestTensor", "forget_peak", "fresh_process", "print_peak", "resident"]


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


def print_peak(work: Callable[[], Any]) -> None:
    """Print one JSON line for :func:`fresh_process`: ``mib``, by how much ``work`` raised the peak of this process.

    A mapping that ``work`` returns is printed with it.
    """
    reset, before = forget_peak(), resident("VmRSS")
    result = work()
    found = {"mib": (resident("VmHWM") - before) / 2**20, "reset": reset}
    sys.stdout.write(json.dumps(found | (result if isinstance(result, dict) else {})) + "\n")


def fresh_process(script: str | Path, *words: str) -> dict[str, Any]:
    """What a Python script prints as its last line, as JSON, in a process of its own with an allocator that forgets.

    Raises RuntimeError for a script that fails. Says on standard error where a peak could not be set back.
    """
    # Without this glibc keeps some of the freed blocks, and the peaks of equal runs differ by hundreds of MiB.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    command = [sys.executable, str(script), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if not found.get("reset", True):
        sys.stderr.write(f"the peak could not be set back: memory of {' '.join(words)} may hold what loading took\n")
    return found
