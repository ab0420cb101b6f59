"""Waits of the host for the device: how often, and where in the code.

Kernels of an accelerator run behind the host's back until the host asks for a value; then it waits until everything
asked for before is done. One such wait a token is enough to make a fast method slow, and on a CPU nobody sees it. The
emulated accelerator tells of every wait; :func:`host_waits` takes them down.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

__all__ = ["HostWaits", "host_waits", "note"]

_BACKWARD: Final = "the backward pass"
#: Whose frames are never the place of a wait: torch itself, and what wraps calls.
_LIBRARIES: Final = ("torch", "contextlib", "functools")
_MACHINERY: Final = ("waits", "emulated", "emulated_tensor", "compat")

_OPEN: list[HostWaits] = []
_LOCK: Final = threading.Lock()


@dataclass(eq=False)
class HostWaits:
    """The waits of a block, of all threads.

    counts
        (what made the host wait, ``file:line`` that asked for it) to how often. The place is the innermost line outside
        of torch; what torch itself asks for while gradients are computed is in "the backward pass".

    >>> waits = HostWaits(Counter({("aten.nonzero", "method.py:12"): 2}))
    >>> waits.total
    2
    >>> print(waits)
    2 waits of the host
         2  aten.nonzero at method.py:12
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """How often the host waited."""
        return self.counts.total()

    def beyond(self, plain: HostWaits) -> HostWaits:
        """The waits that ``plain`` does not have: those of a method, where ``plain`` are those of the model alone."""
        return HostWaits(self.counts - plain.counts)

    def at(self, part: str) -> int:
        """How many of them were asked for at places whose ``file:line`` holds ``part``."""
        return sum(count for (_, place), count in self.counts.items() if part in place)

    def __str__(self) -> str:
        lines = (f"{count:6}  {what} at {place}" for (what, place), count in self.counts.most_common())
        return "\n".join([f"{self.total} wait{'' if self.total == 1 else 's'} of the host", *lines])


@contextmanager
def host_waits() -> Iterator[HostWaits]:
    """Take down every wait of the host for the emulated accelerator while the block runs.

    What counts is what CUDA waits for: ``item``, ``tolist``, ``bool``, copies to the host, ``nonzero`` and indexing by
    a mask, ``unique``, ``bincount``, ``repeat_interleave`` by a tensor; and copies from the host, unless they are asked
    for with ``non_blocking=True`` (``torch.tensor(..., device=)`` is one, as is indexing by a list).

    A model has waits of its own. Run it without the method first, and look at ``waits.beyond(plain)``.
    """
    waits = HostWaits()
    with _LOCK:
        _OPEN.append(waits)
    try:
        yield waits
    finally:
        with _LOCK:
            _OPEN.remove(waits)


def note(what: str) -> None:
    """Tell every open :func:`host_waits` that the host waits now."""
    if not _OPEN:
        return
    key = (what, _place())
    with _LOCK:
        for each in _OPEN:
            each.counts[key] += 1


def _place() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        top = name.partition(".")[0]
        if top not in _LIBRARIES and not name.startswith(_OWN):
            path = frame.f_code.co_filename.replace("\\", "/")
            inside = path.rpartition(f"/{top}/")[2]
            return f"{path.rpartition('/')[2] if inside == path else f'{top}/{inside}'}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return _BACKWARD


_OWN: Final = tuple(f"{__name__.rpartition('.')[0]}.{name}" for name in _MACHINERY)
