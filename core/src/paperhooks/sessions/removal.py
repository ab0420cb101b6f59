"""Finding and removing what paperhooks has put on a model, for copies of an attached one too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from paperhooks.compat import LOSS_FUNCTION, MASK_MAKER
from paperhooks.models.own_hooks import own_hooks, strip_hooks
from paperhooks.sessions.chain import Owner
from paperhooks.sessions.generate_guard import GuardedGenerate, MaskNotes
from paperhooks.sessions.torch_hooks import CompactLoss, ModelEnter

__all__ = ["open_session", "strip"]


def open_session(model: nn.Module) -> Owner | None:
    """The open session of ``model`` or of the model inside it, or None. A copy has hooks but no session."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    return next((h.session for h in hooks if isinstance(h, ModelEnter) and h.session), None)


def strip(model: nn.Module) -> int:
    """Remove every trace of paperhooks from ``model``, for example from a copy of an attached model.

    An open session of the model is closed first, also one whose closing was interrupted. Returns how many hooks and
    instance attributes were removed.
    """
    session = open_session(model)
    removed = len(own_hooks(model)) if session is not None else 0
    if session is not None:
        session.close()
    return removed + strip_hooks(model) + sum(map(_strip_attributes, model.modules()))


def _strip_attributes(module: nn.Module) -> int:
    """Put back what an instance had before; a wrapper that passes calls on because others kept it stays theirs."""
    found = list(_attributes(module))
    for name, before in found:
        del module.__dict__[name]
        if before is not None:
            module.__dict__[name] = before
    return len(found)


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    guard, maker, loss = (module.__dict__.get(name) for name in ("generate", MASK_MAKER, LOSS_FUNCTION))
    if isinstance(guard, GuardedGenerate):
        yield "generate", guard.inner
    if isinstance(maker, MaskNotes):
        yield MASK_MAKER, maker.previous
    if isinstance(loss, CompactLoss):
        yield LOSS_FUNCTION, loss.previous
