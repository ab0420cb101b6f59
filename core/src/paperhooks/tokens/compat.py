"""A name of torch that its documentation does not promise: whether a backward pass is under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

__all__ = ["in_backward"]

#: The number of the backward pass of this thread; older torch does not tell it.
_graph_task: Final[Callable[[], int]] = getattr(torch._C, "_current_graph_task_id", lambda: -1)


def in_backward() -> bool:
    """Whether this thread is inside a backward pass."""
    return _graph_task() != -1
