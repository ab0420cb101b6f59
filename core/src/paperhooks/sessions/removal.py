"""Finding and removing what paperhooks has put on a model, for copies of an attached one too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from paperhooks.compat import LOSS_FUNCTION, MASK_MAKER
from paperhooks.sessions.chain import Hook, Owner
from paperhooks.sessions.generate_guard import GuardedGenerate, MaskNotes
from paperhooks.sessions.torch_hooks import CompactLoss, ModelEnter

__all__ = ["open_session", "own_hooks", "strip", "strip_hooks"]


def own_hooks(model: nn.Module) -> list[Any]:
    """The torch hooks of paperhooks on ``model`` and all modules in it."""
    tables = (table for m in model.modules() for table in (m._forward_pre_hooks, m._forward_hooks) if table)
    return [hook for table in tables for hook in table.values() if isinstance(hook, Hook)]


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


def strip_hooks(model: nn.Module) -> int:
    """Remove the torch hooks of paperhooks from ``model`` and all modules in it; returns how many."""
    removed = 0
    for module in model.modules():
        for table in (module._forward_pre_hooks, module._forward_hooks):
            for key in [k for k, h in table.items() if isinstance(h, Hook)]:
                del table[key]
                for flags in _hook_flags(module):
                    flags.pop(key, None)
                removed += 1
    return removed


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


def _hook_flags(module: nn.Module) -> list[dict[int, Any]]:
    names = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    return [getattr(module, n) for n in names if hasattr(module, n)]
