"""Which threads are inside a call of a model.

Of this thread the stack tells, exactly. Of other threads only names of functions are read, never their variables, which
may change under the reader: hooks note which threads they run in, and the names tell whether a note is left over from a
call that an interrupt has ended.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from types import FrameType

__all__ = ["in_stack", "still_inside"]

#: Functions whose ``self`` is what is being called: torch's dispatch of hooks, ``generate``, and what stands in for it.
_CALLS = ("_call_impl", "generate", "__call__")
_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def in_stack(called: object, names: tuple[str, ...] = _CALLS) -> bool:
    """Whether this thread is inside a call of ``called``: a forward or ``generate`` of a model, a guard."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name in names and frame.f_locals.get("self") is called:
            return True
        frame = frame.f_back
    return False


def still_inside(threads: Iterable[int]) -> set[int]:
    """Those of ``threads`` that are inside a forward or a ``generate`` of any model, or where that cannot be told now.

    A thread goes on while its stack is read: ask again until it is told.
    """
    frames = sys._current_frames()
    return {ident for ident in threads if ident in frames and not _outside(frames[ident])}


def _outside(frame: FrameType) -> bool:
    """Whether the whole stack was seen and no call of a model stands in it."""
    at: FrameType | None = frame
    while isinstance(at, FrameType):  # the link of a generator's frame may be stale
        if at.f_code.co_name in ("_call_impl", "generate"):
            return False
        above = at.f_back
        if above is None:  # a generator that has just yielded has lost its link; no stack begins with one
            return not at.f_code.co_flags & _SUSPENDABLE
        at = above
    return False
