"""Which threads are inside a call of a model.

Found by looking at the threads' stacks, so that a forward costs nothing more and no count can be left behind by an
interrupt. Only attaching and closing ask.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType

__all__ = ["in_stack", "threads_inside"]

#: Functions whose ``self`` is what is being called: torch's dispatch of hooks, ``generate``, and what stands in for it.
_CALLS = ("_call_impl", "generate", "__call__")


def threads_inside(*called: object) -> list[int]:
    """Identifiers of the threads that are inside a call of one of ``called`` right now: a forward or ``generate``."""
    alive = {thread.ident for thread in threading.enumerate()}
    frames = sys._current_frames().items()
    return [ident for ident, frame in frames if ident in alive and _inside(frame, called)]


def in_stack(called: object) -> bool:
    """Whether this thread is inside a call of ``called``."""
    return _inside(sys._getframe(), (called,))


def _inside(frame: FrameType | None, called: tuple[object, ...]) -> bool:
    while isinstance(frame, FrameType):  # a generator's link of another thread may be stale
        if frame.f_code.co_name in _CALLS:
            owner = frame.f_locals.get("self")
            if any(owner is each for each in called):
                return True
        frame = frame.f_back
    return False
