"""Names of torch's checkpoints that its documentation does not promise."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from paperhooks.tokens.compat import in_backward

__all__ = ["recomputed", "without_selective_checkpoint"]

#: The hooks of :class:`torch.autograd.graph.saved_tensors_hooks` that are in force; older torch does not tell them.
_saved_tensors_hooks: Callable[[bool], Any] | None = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", None
)


def recomputed() -> bool:
    """Whether what runs now with gradient is computed again in the backward pass, or is being so."""
    if _saved_tensors_hooks is None:
        return in_backward() or _in_stack(sys.modules[checkpoint.__module__].__file__)
    hooks = _saved_tensors_hooks(False)
    return in_backward() if hooks is None else hooks[0].__module__ == checkpoint.__module__ or in_backward()


def _in_stack(file: str | None) -> bool:
    """Whether this thread is inside a function of a source file."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename != file:
        frame = frame.f_back
    return frame is not None


def without_selective_checkpoint() -> AbstractContextManager[Any]:
    """A context in which a selective checkpoint (``context_fn`` of torch's) neither keeps nor replaces results."""
    from torch.utils import _python_dispatch as dispatch

    selective = type(dispatch._get_current_dispatch_mode()).__module__ == checkpoint.__module__
    return dispatch._pop_mode_temporarily() if selective else nullcontext()
