"""Memory that was let go, given back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

__all__ = ["trim_memory"]


def trim_memory() -> None:
    """Give back what was freed.

    The C library keeps freed blocks that small ones that are still held lie between. Work that makes many large tensors
    and keeps small ones grows so to several times what it holds. Without glibc nothing happens.
    """
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library, or none by this name (Windows)
        return None
    return found
