"""Which threads are inside a call of a model.

Found by looking at the threads' stacks, so that a forward costs nothing more and no count can be left behind by an
interrupt. Only attaching and closing ask.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType

from torch import nn

__all__ = ["threads_inside"]

#: Functions whose ``self`` is a model that is being called: torch's dispatch of hooks, and ``generate``.
_CALLS = ("_call_impl", "generate")


def threads_inside(model: nn.Module) -> list[int]:
    """Identifiers of the threads that are inside a forward or ``generate`` of ``model`` right now."""
    alive = {thread.ident for thread in threading.enumerate()}
    frames = sys._current_frames().items()
    return [ident for ident, frame in frames if ident in alive and _inside(frame, model)]


def _inside(frame: FrameType | None, model: nn.Module) -> bool:
    while frame is not None:
        if frame.f_code.co_name in _CALLS and frame.f_locals.get("self") is model:
            return True
        frame = frame.f_back
    return False
